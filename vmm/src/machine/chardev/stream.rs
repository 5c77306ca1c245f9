//! A pair of descriptors that stay what they are: terminal, pty, file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use devices::chardev::CharBackend;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::outlet::Outlet;
use super::terminal::in_foreground;
use super::watch::Watch;

pub(super) struct Stream {
    input: Option<Input>,
    output: Outlet<OwnedFd>,
}

struct Input {
    fd: OwnedFd,
    watch: Watch,
    /// It is the terminal that we were started on.
    shared_with_shell: bool,
    /// Not to be waited for: at its end, or the shell's for now.
    deaf: AtomicBool,
}

impl Stream {
    pub(super) fn new(input: Option<OwnedFd>, output: OwnedFd) -> io::Result<Self> {
        let input = match input {
            None => None,
            Some(fd) => Some(Input {
                fd,
                watch: Watch::new()?,
                shared_with_shell: false,
                deaf: AtomicBool::new(false),
            }),
        };
        Ok(Self { input, output: Outlet::new(output) })
    }

    /// The same, reading only while the shell has us in the foreground.
    pub(super) fn shared_with_shell(mut self) -> Self {
        self.input.iter_mut().for_each(|input| input.shared_with_shell = true);
        self
    }

    /// Listens again after the terminal was the shell's.
    pub(super) fn listen_again(&self) {
        if let Some(input) = &self.input
            && input.deaf.swap(false, Ordering::AcqRel)
        {
            input.arm();
        }
    }

    pub(super) fn output(&self) -> &OwnedFd {
        self.output.get()
    }
}

impl CharBackend for Stream {
    fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(|input| input.watch.as_fd())
    }

    fn read(&self, buffer: &mut [u8]) -> usize {
        self.input.as_ref().map_or(0, |input| input.read(buffer))
    }

    fn arm(&self) {
        if let Some(input) = &self.input {
            input.arm();
        }
    }

    /// An error drops the bytes: there is no one to tell, and the next write may succeed.
    fn write(&self, bytes: &[u8]) {
        let _ = self.output.send(bytes);
    }
}

impl Input {
    fn read(&self, buffer: &mut [u8]) -> usize {
        if self.watch.take().is_none() || buffer.is_empty() {
            return 0;
        }
        if self.shared_with_shell && !in_foreground(&self.fd) {
            // To read would stop the process.
            return self.go_deaf();
        }
        match rustix::io::read(&self.fd, buffer) {
            Ok(count @ 1..) => count,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Ok(0) | Err(_) => self.go_deaf(),
        }
    }

    fn go_deaf(&self) -> usize {
        self.deaf.store(true, Ordering::Release);
        0
    }

    /// A descriptor that can't be waited for, like a regular file, gives no input.
    fn arm(&self) {
        if !self.deaf.load(Ordering::Acquire) && self.watch.arm(&self.fd, EventFlags::IN).is_err() {
            self.go_deaf();
        }
    }
}
