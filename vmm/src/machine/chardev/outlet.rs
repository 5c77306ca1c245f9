//! Writing without being held up for ever.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::debug;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// The longest that one write waits for a reader.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// What is written at once: a pipe or socket that reports room has room for this, so the write does
/// not block even if the descriptor is a blocking one.
const CHUNK: usize = 4096;

/// A descriptor to write to.
pub(super) struct Outlet<F> {
    fd: F,
    patience: Duration,
    /// The last write ran out of patience, and there has been no room since.
    stalled: AtomicBool,
}

impl<F: AsFd> Outlet<F> {
    /// Each write waits for a reader for [`PATIENCE`].
    pub(super) fn new(fd: F) -> Self {
        Self::with_patience(fd, PATIENCE)
    }

    pub(super) fn with_patience(fd: F, patience: Duration) -> Self {
        Self { fd, patience, stalled: AtomicBool::new(false) }
    }

    pub(super) fn get(&self) -> &F {
        &self.fd
    }

    /// Writes `bytes`, or as many as there is room for before patience is over.
    ///
    /// # Errors
    /// The other end is gone, or the host can't write.
    pub(super) fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        let until = Instant::now() + self.patience;
        while !bytes.is_empty() && self.has_room(until)? {
            match rustix::io::write(&self.fd, &bytes[..bytes.len().min(CHUNK)]) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < until => {}
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for room, but not where the last write waited in vain.
    fn has_room(&self, until: Instant) -> io::Result<bool> {
        let stalled = self.stalled.load(Ordering::Relaxed);
        loop {
            let left = match stalled {
                true => Duration::ZERO,
                false => until.saturating_duration_since(Instant::now()),
            };
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            match rustix::event::poll(&mut fds, Some(&left)) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(ready) => {
                    let room = ready > 0;
                    self.stalled.store(!room, Ordering::Relaxed);
                    if !room && !stalled {
                        debug!("nobody reads a character device: its output is dropped");
                    }
                    return Ok(room);
                }
            }
        }
    }
}
