//! What a device asks of the machine it sits in. `vmm` implements these over KVM; the devices'
//! own tests over vectors.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use crate::readers::Readers;
use crate::virtio::worker::Worker;

/// Where a message-signalled interrupt is sent: the address and data of PCI 3.0, 6.8.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address, upper half included.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// A function's message-signalled interrupt vectors. Dropping it gives their host resources back.
pub trait MsiVectors: Send + Sync {
    /// Sends `vector` to `message` from now on, or nowhere while the guest has it masked.
    ///
    /// # Errors
    /// The host refused the route; the vector then keeps its former one.
    fn route(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()>;

    /// Raises `vector`. Callable from any thread; never blocks.
    fn trigger(&self, vector: u16);
}

/// The machine as a device sees it.
pub trait Hypervisor: Send + Sync {
    /// Reserves `count` interrupt vectors, masked.
    ///
    /// # Errors
    /// The host has no more interrupt lines or file descriptors.
    fn msi_vectors(&self, count: u16) -> io::Result<Box<dyn MsiVectors>>;

    /// Signals `event` for every guest write to the guest-physical `address`, without an exit to
    /// the monitor.
    ///
    /// # Errors
    /// The host refused; writes then still arrive as ordinary memory-mapped I/O.
    fn bind_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`Hypervisor::bind_doorbell`] with the same arguments.
    ///
    /// # Errors
    /// No such binding.
    fn unbind_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// The machine's threads that touch guest memory; device threads register there.
    fn readers(&self) -> Arc<Readers>;

    /// Starts a device thread called `name` (at most 15 bytes) that runs `body` and hands its
    /// worker back when it ends.
    ///
    /// # Errors
    /// The host refused a new thread.
    fn spawn(&self, name: &str, body: WorkerBody) -> io::Result<JoinHandle<Box<dyn Worker>>>;
}

/// What a device thread runs.
pub type WorkerBody = Box<dyn FnOnce() -> Box<dyn Worker> + Send>;
