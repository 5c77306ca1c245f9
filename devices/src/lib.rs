//! Device models: what the guest sees on its buses.
//!
//! Nothing here knows KVM, JSON or how long a thread lives. What a device needs of its host
//! it names as a trait in [`hypervisor`]; `vmm` implements them.
//!
//! - [`bus`]: port and memory-mapped I/O, by address.
//! - [`chardev`]: the host's end of a serial port or console.
//! - [`guest_memory`]: guest RAM as devices may touch it.
//! - [`lifecycle`]: pause and resume, the same for all.
//! - [`pci`]: configuration space, MSI-X, the root bus.
//! - [`platform`]: power registers and the clock.
//! - [`readers`]: who may be reading guest memory that is about to close.
//! - [`serial`]: the serial port.
//! - [`sync`]: locks that outlive a panic.
//! - [`virtio`]: the transport, written once, and one folder per device.
#![forbid(unsafe_code)]

pub mod bus;
pub mod chardev;
pub mod guest_memory;
pub mod hypervisor;
pub mod lifecycle;
pub mod pci;
pub mod platform;
pub mod readers;
pub mod serial;
pub mod sync;
pub mod virtio;
