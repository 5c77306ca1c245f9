//! How the world talks to the monitor: the command line, Cloud Hypervisor's JSON, HTTP.
//!
//! - [`config`]: the JSON of a virtual machine.

pub mod config;
