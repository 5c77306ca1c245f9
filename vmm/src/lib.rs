//! The Tessera virtual machine monitor.

pub mod api;
pub mod arch;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod monitor;
