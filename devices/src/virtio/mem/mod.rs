//! virtio-mem (virtio 1.3, 5.15): memory that the guest takes and gives back in blocks, or in
//! partitions (docs/partition-channel.md).
//!
//! - `request`: a chain of descriptors becomes a typed request, or what is wrong with it. Pure.
//! - `reply`, `record`: an answer becomes bytes in the guest.
//! - `books`: a request meets the [`Partitioner`](memctl::Partitioner), which alone decides, and
//!   the host's part of it, [`HostBlocks`], which `vmm` implements.
//! - `shared`: what the worker and the [`MemHandle`]s have in common, under one lock.
//! - `worker`: from the driver's ring to `shared` and back. [`Mem`]: identity and features.
//! - [`MemHandle`]: what the machine and the API wish for, and see.
//!
//! ```text
//!   driver -> worker -> request -> Partitioner::plan_*() -> HostBlocks, run by run -> commit -> ACK
//!                          | ERROR      | NACK, ERROR          | BUSY, runs undone
//!   API    -> MemHandle ----------> Partitioner -> configuration space -> interrupt
//! ```
//!
//! **Invariants.** Each chain taken from the ring is answered exactly once, whatever it holds. A
//! block changes hands only in the answer to a guest's request, and only as a whole: host and books
//! are as before the request or as after it. Where the host fails so badly that they are not, every
//! later change is BUSY until they agree again. The configuration space shows the books' sizes
//! before anyone can learn of a change in another way.
//!
//! **Locks.** One lock guards partitioner and host. The worker holds it for one request, host calls
//! included; API calls hold it for accounting only. Neither the observer nor an interrupt is called
//! under it; [`HostBlocks`] is, and must not call back.

mod books;
mod config;
mod counters;
mod device;
mod event;
mod handle;
mod host;
mod record;
mod reply;
mod request;
mod shared;
#[cfg(test)]
mod tests;
mod worker;

pub use counters::Counters;
pub use device::Mem;
pub use event::{MemEvent, Observer, PartitionView};
pub use handle::{BlockView, MemError, MemHandle};
pub use host::HostBlocks;
