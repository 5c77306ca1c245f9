//! virtio-blk (virtio 1.3, 5.2): a disk, from a raw file or block device of the host.
//!
//! - `request`: a chain of descriptors becomes a typed [`Operation`], or the status that refuses
//!   it. Pure.
//! - [`Block`]: identity, features and configuration of the device.
//! - `worker`: one thread per queue, from the driver's ring to an [`Engine`] and back.
//! - [`Image`] and [`Engine`]: what the device wants done to a disk. How is the host's business;
//!   `vmm` implements both.
//!
//! **Invariants.** A [`DiskRange`] lies on the disk: nothing past `request` checks bounds. Each
//! chain taken from a ring is answered exactly once. No more chains are in flight than the ring
//! has entries. Once a worker has quiesced, nothing touches guest memory.

mod backend;
mod buffers;
mod counters;
mod device;
mod geometry;
mod pending;
mod request;
#[cfg(test)]
mod tests;
mod worker;

pub use backend::{Completion, Engine, Image, Operation};
pub use buffers::Buffers;
pub use counters::Counters;
pub use device::{Block, BlockOptions, MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS};
pub use geometry::{DiskRange, Geometry, SECTOR, Sectors};
