//! The Tessera virtual machine monitor.
#![deny(unsafe_code)]

pub mod api;
pub mod arch;
#[allow(unsafe_code)]
pub mod disk;
#[allow(unsafe_code)]
pub mod kvm;
pub mod machine;
#[allow(unsafe_code)]
pub mod memory;
pub mod monitor;
