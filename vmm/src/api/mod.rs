//! How the world talks to the monitor: the command line, Cloud Hypervisor's JSON, HTTP.
//!
//! - [`Cli`]: the command line; [`Launch`]: what it comes down to.
//! - [`config`]: the JSON of a virtual machine.
//! - [`Request`], [`Reply`], [`Control`]: the calls of the API as types. The monitor implements
//!   [`Control`] and never sees HTTP.
//! - [`Pending`], [`Promise`]: an answer that the monitor gives later.
//! - [`Server`]: the socket they come through.
//! - [`EventMonitor`]: what happens, told as it happens.

mod bodies;
mod cli;
pub mod config;
mod connection;
mod descriptor;
mod events;
mod http;
mod launch;
mod pending;
mod regions;
mod registry;
mod reply;
mod request;
mod routes;
mod server;

pub use bodies::Release;
pub use cli::{Cli, CliError, OptionError};
pub use descriptor::Endpoint;
pub use events::EventMonitor;
pub use launch::Launch;
pub use pending::{Pending, Promise};
pub use regions::{ExtentReply, PartitionReply, RegionReply, SharedReply, micros};
pub use reply::{ApiError, Counters, DeviceNode, ErrorKind, InfoReply, PingReply, Reply, VmState};
pub use request::{Control, Request};
pub use server::{Server, ServerError};
