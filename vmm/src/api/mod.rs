//! How the world talks to the monitor: the command line, Cloud Hypervisor's JSON, HTTP.
//!
//! - [`config`]: the JSON of a virtual machine.
//! - [`Request`], [`Reply`], [`Control`]: the calls of the API as types. The monitor implements
//!   [`Control`] and never sees HTTP.
//! - [`EventMonitor`]: what happens, told as it happens.

pub mod config;
mod descriptor;
mod events;
mod launch;
mod reply;
mod request;

pub use descriptor::Endpoint;
pub use events::EventMonitor;
pub use launch::Launch;
pub use reply::{
    ApiError, Counters, DeviceNode, ErrorKind, InfoReply, PciBarType, PingReply, Reply, Resource,
    VmState,
};
pub use request::{Control, Request};
