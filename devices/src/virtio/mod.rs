//! Virtio 1.3: one transport, one folder per device.
//!
//! A device is three things: what it tells the transport about itself ([`device::VirtioDevice`]),
//! the queues the driver gave it ([`queue::VirtQueue`]), and the threads that serve them
//! ([`worker::Worker`]). Status, features, queue addresses, interrupts, reset and pause are the
//! transport's, and written once.

pub mod block;
pub mod console;
pub mod device;
pub mod mem;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;
pub mod worker;
