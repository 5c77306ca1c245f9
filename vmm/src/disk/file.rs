//! An open image, and how to finish any job on it with blocking system calls.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use devices::virtio::block::DiskRange;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::job::Job;
use super::transfer::Transfer;

/// `fallocate` that frees a range's space.
pub(super) const PUNCH: FallocateFlags =
    FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// `fallocate` that zeroes a range and keeps its space.
pub(super) const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// What an image is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// An open disk image. Its lock lasts as long as it.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    kind: Kind,
    /// What memory must be aligned to, where the page cache is bypassed.
    memory_alignment: Option<usize>,
}

impl DiskFile {
    /// The image `file`; `memory_alignment` in bytes where it was opened with `O_DIRECT`.
    pub(super) fn new(file: File, kind: Kind, memory_alignment: Option<usize>) -> Self {
        Self { file, kind, memory_alignment }
    }

    /// The descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// File or block device.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the kernel takes the memory of `transfer` as it is.
    pub(super) fn can_take(&self, transfer: &Transfer) -> bool {
        self.memory_alignment.is_none_or(|alignment| transfer.is_aligned(alignment))
    }

    /// Does what is left of `job`, however long it takes.
    ///
    /// # Errors
    /// The host's; of the job, any part may have been done.
    pub(super) fn finish(&self, job: &mut Job) -> io::Result<()> {
        match job {
            Job::Transfer(transfer) => match self.memory_alignment {
                Some(alignment) if !self.can_take(transfer) => {
                    transfer.finish_bounced(self.fd(), alignment)
                }
                _ => transfer.finish(self.fd()),
            },
            Job::Flush => Ok(rustix::io::retry_on_intr(|| rustix::fs::fdatasync(self.fd()))?),
            Job::Discard(range) => self.discard(*range),
            Job::WriteZeroes { range, may_unmap } => self.write_zeroes(*range, *may_unmap),
        }
    }

    /// A hint: a host that can't follow it has not failed.
    fn discard(&self, range: DiskRange) -> io::Result<()> {
        let result = match self.kind {
            Kind::File => self.fallocate(PUNCH, range).map_err(io::Error::from),
            Kind::BlockDevice => discard_blocks(self.fd(), range),
        };
        result.or_else(|error| if is_unsupported(&error) { Ok(()) } else { Err(error) })
    }

    fn write_zeroes(&self, range: DiskRange, may_unmap: bool) -> io::Result<()> {
        let modes: &[FallocateFlags] = if may_unmap { &[PUNCH, ZERO] } else { &[ZERO] };
        for mode in modes {
            match self.fallocate(*mode, range).map_err(io::Error::from) {
                Err(error) if is_unsupported(&error) => {}
                result => return result,
            }
        }
        Transfer::zeros(range)?.finish(self.fd())
    }

    fn fallocate(&self, mode: FallocateFlags, range: DiskRange) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(self.fd(), mode, range.start(), range.len())
        })
    }
}

/// Whether the host has no such operation for this image.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// BLKDISCARD.
fn discard_blocks(device: BorrowedFd<'_>, range: DiskRange) -> io::Result<()> {
    /// `_IO(0x12, 119)`, from `linux/fs.h`.
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let argument = [range.start(), range.len()];
    // SAFETY: BLKDISCARD reads two u64, start and length in bytes, and writes nothing; `argument`
    // is that, and lives through the call. The descriptor is open while `device` is borrowed.
    match unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, argument.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
