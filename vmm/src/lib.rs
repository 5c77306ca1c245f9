//! The Tessera virtual machine monitor.

pub mod api;
pub mod machine;
pub mod memory;
