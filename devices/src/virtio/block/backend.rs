//! What the device wants done to a disk, and what does it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::buffers::Buffers;
use super::geometry::{DiskRange, Geometry};
use crate::guest_memory::GuestMemory;

/// Something to be done to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill `into`, which is as long as `range` and never empty, from the disk.
    Read {
        /// Where on the disk.
        range: DiskRange,
        /// Where in guest memory.
        into: Buffers,
    },
    /// Put `from`, which is as long as `range` and never empty, on the disk.
    Write {
        /// Where on the disk.
        range: DiskRange,
        /// Where in guest memory.
        from: Buffers,
    },
    /// Make every write that has finished survive a power cut.
    Flush,
    /// The contents of the range, never empty, are not needed any more.
    Discard(DiskRange),
    /// The range, never empty, is to read as zeros.
    WriteZeroes {
        /// Where on the disk.
        range: DiskRange,
        /// Whether the disk may give the space back.
        may_unmap: bool,
    },
}

impl Operation {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Read { range, .. } | Self::Write { range, .. } => range.is_empty(),
            Self::Discard(range) | Self::WriteZeroes { range, .. } => range.is_empty(),
            Self::Flush => false,
        }
    }

    /// Whether what the disk holds differs afterwards in a way that the driver relies on.
    pub(super) fn changes_disk(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteZeroes { .. })
    }
}

/// The end of an [`Operation`].
#[derive(Debug)]
pub struct Completion {
    /// The token it was pushed with.
    pub token: u16,
    /// Success means all of it: a transfer that moved fewer bytes is an error.
    pub result: io::Result<()>,
}

/// An open disk. The device owns it and makes one [`Engine`] of it per queue.
pub trait Image: Send {
    /// What the disk is like. Always the same.
    fn geometry(&self) -> Geometry;

    /// An engine for one queue, to transfer to and from `memory`, with at most `depth` operations
    /// unfinished at a time. Called on a vCPU thread.
    ///
    /// # Errors
    /// The host refused a resource.
    fn engine(&self, memory: &Arc<GuestMemory>, depth: u16) -> io::Result<Box<dyn Engine>>;
}

/// Carries out operations, in any order, several at a time.
///
/// One thread at a time calls it, not always the same one. It keeps guest memory mapped until all
/// that it was given has finished, even when it is dropped before. Memory that the guest unplugs
/// meanwhile fails the operation and nothing else.
pub trait Engine: Send {
    /// Takes `operation`, which [`Engine::reap`] will answer under `token`; the token is below
    /// `depth`, and belongs to no unfinished operation.
    fn push(&mut self, token: u16, operation: Operation);

    /// Starts what was pushed. What the host has no room for stays for the next call.
    fn submit(&mut self);

    /// Appends what has finished to `done`, without waiting.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// Waits until everything pushed has finished. [`Engine::reap`] then has it all.
    fn wait(&mut self);

    /// Readable while there is something to reap; `None` when [`Engine::submit`] finishes all.
    /// Fixed for the engine's lifetime.
    fn completions(&self) -> Option<BorrowedFd<'_>>;
}
