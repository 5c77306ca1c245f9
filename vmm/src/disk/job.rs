//! An operation, resolved to what system calls need.

use std::io;
use std::sync::Arc;

use devices::guest_memory::GuestMemory;
use devices::virtio::block::{DiskRange, Operation};

use super::transfer::{Direction, Transfer};

/// Something for a `DiskFile` to finish.
pub(super) enum Job {
    /// Move bytes.
    Transfer(Transfer),
    /// Make finished writes stable.
    Flush,
    /// Give space back.
    Discard(DiskRange),
    /// Make a range read as zeros.
    WriteZeroes {
        /// Where on the disk.
        range: DiskRange,
        /// Whether space may be given back.
        may_unmap: bool,
    },
}

impl Job {
    /// The job for `operation`.
    ///
    /// # Errors
    /// EFAULT when a buffer is not plugged RAM.
    pub(super) fn new(operation: Operation, memory: &Arc<GuestMemory>) -> io::Result<Self> {
        Ok(match operation {
            Operation::Read { range, into } => {
                Self::Transfer(Transfer::guest(Direction::Read, range, &into, memory)?)
            }
            Operation::Write { range, from } => {
                Self::Transfer(Transfer::guest(Direction::Write, range, &from, memory)?)
            }
            Operation::Flush => Self::Flush,
            Operation::Discard(range) => Self::Discard(range),
            Operation::WriteZeroes { range, may_unmap } => Self::WriteZeroes { range, may_unmap },
        })
    }

    /// Takes note of what a successful system call returned; returns whether the job is done.
    pub(super) fn advance(&mut self, count: usize) -> bool {
        match self {
            Self::Transfer(transfer) => transfer.advance(count),
            Self::Flush | Self::Discard(_) | Self::WriteZeroes { .. } => true,
        }
    }
}
