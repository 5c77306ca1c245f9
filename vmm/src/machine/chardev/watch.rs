//! Waiting for input, once per request.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

/// An epoll instance whose descriptors report once per [`Watch::arm`]. It is a descriptor itself,
/// which another thread's loop waits for in their place.
pub(super) struct Watch(OwnedFd);

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Reports the next time `fd` has one of `interest`, or hangs up. At once if it is so now.
    ///
    /// # Errors
    /// `fd` is of a kind that can't be waited for, such as a regular file.
    pub(super) fn arm(&self, fd: impl AsFd, interest: EventFlags) -> io::Result<()> {
        let flags = interest | EventFlags::ONESHOT;
        let data = EventData::new_u64(0);
        match epoll::modify(&self.0, &fd, data, flags) {
            Err(Errno::NOENT) => Ok(epoll::add(&self.0, &fd, data, flags)?),
            result => Ok(result?),
        }
    }

    /// Takes the report that is waiting, if any.
    pub(super) fn take(&self) -> Option<EventFlags> {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = epoll::wait(&self.0, &mut events[..], Some(&now)).unwrap_or(0);
        (count > 0).then(|| events[0].flags)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
