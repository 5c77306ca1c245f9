//! How the world talks to the monitor: the command line, Cloud Hypervisor's JSON, HTTP.
//!
//! - [`Cli`]: the command line; [`Launch`]: what it comes down to.
//! - [`config`]: the JSON of a virtual machine.
//! - [`Request`], [`Reply`], [`Control`]: the calls of the API as types. The monitor implements
//!   [`Control`] and never sees HTTP.
//! - [`Server`]: the socket they come through.
//! - [`EventMonitor`]: what happens, told as it happens.

mod cli;
pub mod config;
mod connection;
mod descriptor;
mod events;
mod http;
mod launch;
mod registry;
mod reply;
mod request;
mod routes;
mod server;

pub use cli::{Cli, CliError, OptionError};
pub use descriptor::Endpoint;
pub use events::EventMonitor;
pub use launch::Launch;
pub use reply::{
    ApiError, Counters, DeviceNode, ErrorKind, InfoReply, PciBarType, PingReply, Reply, Resource,
    VmState,
};
pub use request::{Control, Request};
pub use server::{Server, ServerError};
