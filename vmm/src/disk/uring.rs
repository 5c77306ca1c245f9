//! The engine over io_uring: many operations in flight, one system call to start a batch.
//!
//! Only the first attempt at a job goes through the ring. What the kernel leaves over (a short
//! transfer, an operation this file system has not got) is rare, and [`DiskFile::finish`] does it
//! there and then.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use devices::guest_memory::GuestMemory;
use devices::virtio::block::{Completion, DiskRange, Engine, Operation};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use log::error;
use rustix::fs::FallocateFlags;

use super::file::{self, DiskFile, Kind, PUNCH, ZERO};
use super::job::Job;
use super::transfer::Direction;

/// Entries of the submission ring: how much one system call starts, not how much can be in flight.
const BATCH: u32 = 128;

/// How often to try to submit when the kernel is short of memory, a millisecond apart.
const ATTEMPTS: usize = 100;

/// See the module.
///
/// **Invariant:** a job whose entry is in the ring stays in `flights`, at its token, until its
/// completion has been taken from the ring; `unfinished` counts them.
pub(super) struct Uring {
    ring: IoUring,
    file: Arc<DiskFile>,
    memory: Arc<GuestMemory>,
    flights: Vec<Option<Job>>,
    unfinished: usize,
    done: Vec<Completion>,
}

impl Uring {
    /// An engine between `file` and `memory` for `depth` operations at a time.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or lacks one of the operations.
    pub(super) fn new(
        file: Arc<DiskFile>,
        memory: Arc<GuestMemory>,
        depth: u16,
    ) -> io::Result<Self> {
        let entries = u32::from(depth).clamp(1, BATCH).next_power_of_two();
        // A completion ring for all that can be in flight never overflows.
        let completions = u32::from(depth).next_power_of_two().max(2 * entries);
        let ring = IoUring::builder().dontfork().setup_cqsize(completions).build(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { ring, file, memory, flights: Vec::new(), unfinished: 0, done: Vec::new() })
    }

    /// Puts `job` into the ring, or finishes it where the ring can't.
    fn start(&mut self, token: u16, mut job: Job) -> io::Result<Option<()>> {
        let Some(entry) = entry(&self.file, &job) else {
            return self.file.finish(&mut job).map(Some);
        };
        if self.ring.submission().is_full() {
            self.submit();
        }
        let place = usize::from(token);
        if place >= self.flights.len() {
            self.flights.resize_with(place + 1, || None);
        }
        if self.flights[place].is_some() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.flights[place] = Some(job);
        // SAFETY: the entry names the descriptor of `self.file`, and for a transfer the job's list
        // of iovecs, on the heap, and the guest memory they name, which the job owns a share of.
        // The job stays in `flights` until the kernel has answered it; `drop` waits for that, or
        // leaks all three.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(u64::from(token))) };
        if pushed.is_err() {
            self.flights[place] = None;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.unfinished += 1;
        Ok(None)
    }

    /// Takes what the kernel has answered.
    fn collect(&mut self) {
        loop {
            // Bound to a variable, so that the ring is free again in the body.
            let completion = self.ring.completion().next();
            let Some(completion) = completion else { return };
            let token = completion.user_data() as u16;
            let flight = self.flights.get_mut(usize::from(token)).and_then(Option::take);
            let Some(mut job) = flight else { continue };
            self.unfinished -= 1;
            let result = self.conclude(&mut job, completion.result());
            self.done.push(Completion { token, result });
        }
    }

    /// What became of `job`, for which the kernel answered `code`.
    fn conclude(&self, job: &mut Job, code: i32) -> io::Result<()> {
        match usize::try_from(code) {
            Ok(count) if job.advance(count) => Ok(()),
            Ok(_) => self.file.finish(job),
            Err(_) => {
                let error = io::Error::from_raw_os_error(-code);
                if is_transient(&error) || file::is_unsupported(&error) {
                    return self.file.finish(job);
                }
                Err(error)
            }
        }
    }

    /// Hands the kernel what is in the submission ring and, with `wait`, blocks until one more has
    /// finished. Returns whether to try again.
    fn enter(&mut self, wait: bool) -> bool {
        match self.ring.submit_and_wait(usize::from(wait)) {
            Ok(_) => true,
            Err(error) if is_transient(&error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    // Out of memory, or completions to be taken first.
                    thread::sleep(Duration::from_millis(1));
                }
                true
            }
            Err(error) => {
                error!("io_uring: {error}");
                false
            }
        }
    }
}

impl Engine for Uring {
    fn push(&mut self, token: u16, operation: Operation) {
        let started = Job::new(operation, &self.memory).and_then(|job| self.start(token, job));
        if let Some(result) = started.transpose() {
            self.done.push(Completion { token, result });
        }
    }

    fn submit(&mut self) {
        for _ in 0..ATTEMPTS {
            if self.ring.submission().is_empty() || !self.enter(false) {
                break;
            }
            self.collect();
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        self.collect();
        done.append(&mut self.done);
    }

    fn wait(&mut self) {
        while self.unfinished > 0 && self.enter(true) {
            self.collect();
        }
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is the ring's own, which stays open as long as `self`, and the
        // result borrows `self`.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }
}

/// Waits for the kernel to let go of guest memory.
impl Drop for Uring {
    fn drop(&mut self) {
        self.wait();
        if self.unfinished > 0 {
            // The kernel may still use what these point at, so it must stay for ever.
            error!("io_uring: {} operations never finished", self.unfinished);
            std::mem::forget(std::mem::take(&mut self.flights));
            std::mem::forget(Arc::clone(&self.file));
        }
    }
}

/// The ring's entry for `job`; `None` where only blocking calls will do. It points into the job.
fn entry(file: &DiskFile, job: &Job) -> Option<squeue::Entry> {
    let fd = Fd(file.fd().as_raw_fd());
    let fallocate = |mode: FallocateFlags, range: DiskRange| {
        let call = opcode::Fallocate::new(fd, range.len()).offset(range.start());
        call.mode(mode.bits() as i32).build()
    };
    match job {
        Job::Transfer(transfer) if !file.can_take(transfer) => None,
        Job::Transfer(transfer) => {
            let (iovecs, position) = (transfer.iovecs(), transfer.position());
            let (start, count) = (iovecs.as_ptr(), iovecs.len() as u32);
            Some(match transfer.direction() {
                Direction::Read => opcode::Readv::new(fd, start, count).offset(position).build(),
                Direction::Write => opcode::Writev::new(fd, start, count).offset(position).build(),
            })
        }
        Job::Flush => Some(opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build()),
        Job::Discard(_) if file.kind() == Kind::BlockDevice => None,
        Job::Discard(range) => Some(fallocate(PUNCH, *range)),
        Job::WriteZeroes { range, may_unmap: true } => Some(fallocate(PUNCH, *range)),
        Job::WriteZeroes { range, may_unmap: false } => Some(fallocate(ZERO, *range)),
    }
}

/// Whether the same call may succeed if it is made again.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}
