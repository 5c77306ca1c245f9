//! Bytes on their way between a disk and memory.

use std::any::Any;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use devices::guest_memory::GuestMemory;
use devices::virtio::block::{Buffers, DiskRange};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// The most pieces one system call takes.
const MAX_PIECES: usize = libc::UIO_MAXIOV as usize;

/// Size of the aligned buffer that stands in for guest memory which `O_DIRECT` can't use.
const BOUNCE_BYTES: usize = 256 << 10;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the disk to memory.
    Read,
    /// From memory to the disk.
    Write,
}

/// One run of memory, as the kernel wants it described.
#[repr(transparent)]
struct Piece(libc::iovec);

// SAFETY: a piece is an address and a length; nothing is read or written through it except by the
// kernel in `Transfer`'s calls, and a Transfer owns a share of the mapping the address lies in.
unsafe impl Send for Piece {}

impl Piece {
    fn new(slice: &VolatileSlice<'_>) -> Self {
        let iov_base = slice.ptr_guard_mut().as_ptr().cast();
        Self(libc::iovec { iov_base, iov_len: slice.len() })
    }

    fn len(&self) -> usize {
        self.0.iov_len
    }

    fn is_aligned(&self, alignment: usize) -> bool {
        (self.0.iov_base as usize | self.0.iov_len).is_multiple_of(alignment)
    }

    fn skip(&mut self, count: usize) {
        self.0.iov_base = self.0.iov_base.wrapping_byte_add(count);
        self.0.iov_len -= count;
    }
}

/// A read or write, and how far it has come.
///
/// **Invariant:** every piece lies in a mapping that `_owner` keeps in place, and the pieces from
/// `first` on are `left` bytes.
pub(super) struct Transfer {
    direction: Direction,
    pieces: Vec<Piece>,
    first: usize,
    position: u64,
    left: u64,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl Transfer {
    /// A transfer of `range` between the disk and the guest's `buffers`, which are as long.
    ///
    /// # Errors
    /// EFAULT when a buffer is not plugged RAM.
    pub(super) fn guest(
        direction: Direction,
        range: DiskRange,
        buffers: &Buffers,
        memory: &Arc<GuestMemory>,
    ) -> io::Result<Self> {
        let pieces = buffers
            .slices(memory)
            .map(|slice| slice.map(|slice| Piece::new(&slice)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
        let _owner = Arc::clone(memory) as _;
        Ok(Self { direction, pieces, first: 0, position: range.start(), left: range.len(), _owner })
    }

    /// A transfer between `left` bytes of the disk at `position` and `buffer`, as often as it
    /// takes.
    fn host(direction: Direction, position: u64, left: u64, buffer: &Arc<MmapRegion>) -> Self {
        let mut pieces = Vec::new();
        let mut rest = left as usize;
        while rest > 0 {
            let whole = buffer.as_volatile_slice();
            let mut piece = Piece::new(&whole);
            piece.0.iov_len = piece.len().min(rest);
            rest -= piece.len();
            pieces.push(piece);
        }
        Self { direction, pieces, first: 0, position, left, _owner: Arc::clone(buffer) as _ }
    }

    /// A write of zeros all over `range`.
    ///
    /// # Errors
    /// The host has no memory for a buffer.
    pub(super) fn zeros(range: DiskRange) -> io::Result<Self> {
        Ok(Self::host(Direction::Write, range.start(), range.len(), &host_buffer()?))
    }

    /// Which way the bytes go.
    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    /// The place on the disk to go on at.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The memory to go on at, as much as one call takes. Valid while this transfer lives.
    pub(super) fn iovecs(&self) -> &[libc::iovec] {
        let rest = &self.pieces[self.first..];
        let window = &rest[..rest.len().min(MAX_PIECES)];
        // SAFETY: Piece is a transparent wrapper of iovec, so a slice of one has the layout of a
        // slice of the other; the lifetime is that of `self.pieces`.
        unsafe { std::slice::from_raw_parts(window.as_ptr().cast(), window.len()) }
    }

    /// Takes note that `count` more bytes have been moved; returns whether that was all.
    pub(super) fn advance(&mut self, count: usize) -> bool {
        let mut rest = count.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.position += rest as u64;
        self.left -= rest as u64;
        while let Some(piece) = self.pieces.get_mut(self.first).filter(|_| rest > 0) {
            let taken = piece.len().min(rest);
            rest -= taken;
            if taken < piece.len() {
                piece.skip(taken);
            } else {
                self.first += 1;
            }
        }
        self.left == 0
    }

    /// Whether every piece left starts and ends on a multiple of `alignment`.
    pub(super) fn is_aligned(&self, alignment: usize) -> bool {
        self.pieces[self.first..].iter().all(|piece| piece.is_aligned(alignment))
    }

    /// Moves all that is left, in as many blocking calls as it takes.
    ///
    /// # Errors
    /// The host's; `UnexpectedEof` where the file ends, EFAULT where memory is unplugged.
    pub(super) fn finish(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        while self.left > 0 {
            match self.call(file) {
                Ok(0) if self.direction == Direction::Read => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.advance(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// As [`Transfer::finish`], by way of a buffer aligned to a page: for `O_DIRECT`, when the
    /// guest's own buffers are not multiples of `alignment`. The disk's range is.
    pub(super) fn finish_bounced(
        &mut self,
        file: BorrowedFd<'_>,
        alignment: usize,
    ) -> io::Result<()> {
        let buffer = host_buffer()?;
        while self.left > 0 {
            let window: usize = self.iovecs().iter().map(|piece| piece.iov_len).sum();
            let count = window.min(BOUNCE_BYTES) / alignment * alignment;
            if count == 0 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut inner = Self::host(self.direction, self.position, count as u64, &buffer);
            match self.direction {
                Direction::Read => {
                    inner.finish(file)?;
                    self.copy(&buffer, count)?;
                }
                Direction::Write => {
                    self.copy(&buffer, count)?;
                    inner.finish(file)?;
                }
            }
            self.advance(count);
        }
        Ok(())
    }

    /// One system call's worth.
    fn call(&self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let (iovecs, fd) = (self.iovecs(), file.as_raw_fd());
        let (start, count) = (iovecs.as_ptr(), iovecs.len() as libc::c_int);
        let position = self.position as libc::off_t;
        // SAFETY: `start` and `count` are a live slice of iovecs, and each names memory that
        // `_owner` keeps mapped at least as long as `self`, which this call borrows. No Rust
        // reference to that memory exists: guest RAM and host buffers are only ever accessed
        // through volatile slices and system calls. Memory without access rights is EFAULT.
        let moved = unsafe {
            match self.direction {
                Direction::Read => libc::preadv(fd, start, count, position),
                Direction::Write => libc::pwritev(fd, start, count, position),
            }
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    /// Copies between the memory to go on at and the first `count` bytes of `buffer`. The kernel
    /// does the copying, because memory that is unplugged meanwhile must be an error, not a fault.
    fn copy(&self, buffer: &MmapRegion, count: usize) -> io::Result<()> {
        let (guest, this) = (self.iovecs(), std::process::id() as libc::pid_t);
        let local = libc::iovec { iov_base: buffer.as_ptr().cast(), iov_len: count };
        let (start, pieces) = (guest.as_ptr(), guest.len() as libc::c_ulong);
        // SAFETY: our own process is asked to copy between two lists of iovecs that live through
        // the call. Those of the guest name memory that `_owner` keeps mapped; `local` lies in
        // `buffer`, which is BOUNCE_BYTES long, and `count` is no more. Neither is behind a Rust
        // reference. The kernel stops after the shorter of the two lists.
        let moved = unsafe {
            match self.direction {
                Direction::Read => libc::process_vm_writev(this, &local, 1, start, pieces, 0),
                Direction::Write => libc::process_vm_readv(this, &local, 1, start, pieces, 0),
            }
        };
        match usize::try_from(moved) {
            Ok(moved) if moved == count => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

/// A buffer of zeros, aligned to a page.
fn host_buffer() -> io::Result<Arc<MmapRegion>> {
    MmapRegion::new(BOUNCE_BYTES).map(Arc::new).map_err(io::Error::other)
}
