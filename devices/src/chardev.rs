//! Characters to and from the host: what a serial port or a console is connected to.
//!
//! The devices know the trait only; `vmm` opens terminals, files and sockets behind it.

use std::os::fd::BorrowedFd;

/// The host's end of a character device. It outlives the device: a reset or a reboot of the guest
/// leaves it open. Every method may be called on any thread, and none may block for long: `write`
/// runs on vCPU threads.
///
/// Input is taken in a cycle, so that a guest that does not read holds the host's writer back and
/// no byte is lost: [`CharBackend::arm`], wait until [`CharBackend::input`] is readable,
/// [`CharBackend::read`], and again `arm` once there is room for more.
pub trait CharBackend: Send + Sync {
    /// The descriptor to wait for, the same one at every call; `None` when there is never any
    /// input. Quiet from each `read` until the next `arm`.
    fn input(&self) -> Option<BorrowedFd<'_>>;

    /// Takes at most `buffer.len()` bytes of input and returns how many, without waiting. What does
    /// not fit stays with the host for a later call.
    fn read(&self, buffer: &mut [u8]) -> usize;

    /// Lets `input` become readable, at once if input is waiting.
    fn arm(&self);

    /// Sends all of `bytes`. What the host's end does not take in bounded time is dropped.
    fn write(&self, bytes: &[u8]);
}

#[cfg(test)]
pub(crate) mod testing {
    use std::collections::VecDeque;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Duration;

    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    use super::CharBackend;

    /// A backend in memory.
    pub(crate) struct Loop {
        event: [UnixStream; 2],
        armed: Mutex<bool>,
        pub(crate) input: Mutex<VecDeque<u8>>,
        pub(crate) output: Mutex<Vec<u8>>,
        pub(crate) writes: Mutex<usize>,
        /// How long the host takes over each write.
        pub(crate) write_takes: Mutex<Duration>,
    }

    impl Loop {
        pub(crate) fn new() -> Arc<Self> {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            Arc::new(Self {
                event: [near, far],
                armed: Mutex::default(),
                input: Mutex::default(),
                output: Mutex::default(),
                writes: Mutex::default(),
                write_takes: Mutex::default(),
            })
        }

        /// What a user types.
        pub(crate) fn type_in(&self, bytes: &[u8]) {
            self.input.lock().unwrap().extend(bytes);
            self.signal();
        }

        /// Whether the descriptor says that there is input.
        pub(crate) fn is_ready(&self) -> bool {
            let epoll = Epoll::new().unwrap();
            let event = EpollEvent::new(EventSet::IN, 0);
            epoll.ctl(ControlOperation::Add, self.event[0].as_raw_fd(), event).unwrap();
            epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
        }

        pub(crate) fn take_output(&self) -> Vec<u8> {
            std::mem::take(&mut self.output.lock().unwrap())
        }

        fn signal(&self) {
            let mut armed = self.armed.lock().unwrap();
            if *armed && !self.input.lock().unwrap().is_empty() {
                *armed = false;
                (&self.event[1]).write_all(&[1]).unwrap();
            }
        }
    }

    impl CharBackend for Loop {
        fn input(&self) -> Option<BorrowedFd<'_>> {
            Some(self.event[0].as_fd())
        }

        fn read(&self, buffer: &mut [u8]) -> usize {
            let _ = (&self.event[0]).read(&mut [0; 8]);
            let mut input = self.input.lock().unwrap();
            let count = input.len().min(buffer.len());
            buffer.iter_mut().zip(input.drain(..count)).for_each(|(to, from)| *to = from);
            count
        }

        fn arm(&self) {
            *self.armed.lock().unwrap() = true;
            self.signal();
        }

        fn write(&self, bytes: &[u8]) {
            thread::sleep(*self.write_takes.lock().unwrap());
            self.output.lock().unwrap().extend_from_slice(bytes);
            *self.writes.lock().unwrap() += 1;
        }
    }
}
