//! Device threads: one loop that all of them run, and the set of them a device has.
//!
//! A worker owns its part of the device while it runs and comes back whole when its thread ends, so
//! pause is "join and keep", resume is "start again", and reset is "join and drop". No lock.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use epoll::{ControlOptions, Event, Events};
use log::error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::VirtQueue;
use crate::hypervisor::Hypervisor;
use crate::readers::Reader;

/// How long a worker takes on more of what a guest has queued before the thread looks at its other
/// events: a pause, the machine's end and whoever closes memory wait for a wake-up to be over.
const SLICE: Duration = Duration::from_millis(10);

/// Tells whether a wake-up that begins with this call may take on more. What has begun is finished.
pub(super) fn slice() -> impl Fn() -> bool {
    let (start, slice) = (Instant::now(), length());
    move || start.elapsed() < slice
}

#[cfg(not(test))]
fn length() -> Duration {
    SLICE
}

/// Tests count what one wake-up does, on machines that may stand still for a while.
#[cfg(test)]
fn length() -> Duration {
    if SLICED.get() { SLICE } else { Duration::MAX }
}

#[cfg(test)]
thread_local! {
    /// Whether wake-ups on this thread end in time in a test: where that is what it tests.
    pub(super) static SLICED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The part of a device that one thread serves. Every method is called on that thread, except
/// `name`, `queues` and `sources`, which are also called before it starts.
pub trait Worker: Send {
    /// The thread's name, at most 15 bytes.
    fn name(&self) -> String;

    /// The queues whose doorbells this worker waits for. Fixed for its lifetime.
    fn queues(&self) -> Vec<&VirtQueue>;

    /// Other descriptors to wait for until readable. Fixed for its lifetime.
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// The driver rang for `queues()[position]`; the doorbell has been read.
    fn queue_ready(&mut self, position: usize);

    /// `sources()[position]` is readable, or its other end is gone. Returns whether to go on
    /// waiting for it.
    fn source_ready(&mut self, _position: usize) -> bool {
        false
    }

    /// The thread is about to end: finish what is in flight, so that afterwards nothing touches
    /// guest memory.
    fn quiesce(&mut self) {}
}

/// A device's threads, running or parked.
#[derive(Default)]
pub struct WorkerSet {
    running: Vec<Running>,
    parked: Vec<Box<dyn Worker>>,
}

struct Running {
    stop: EventFd,
    thread: JoinHandle<Box<dyn Worker>>,
}

impl WorkerSet {
    /// Workers that wait for their first [`WorkerSet::resume`].
    pub fn parked(workers: Vec<Box<dyn Worker>>) -> Self {
        Self { running: Vec::new(), parked: workers }
    }

    /// Starts every parked worker. Each looks at its queues at once, so a doorbell that rang while
    /// it was parked is not lost.
    ///
    /// # Errors
    /// The host refused a thread or a descriptor; that worker is lost, those after it stay parked.
    pub fn resume(&mut self, host: &dyn Hypervisor) -> io::Result<()> {
        while let Some(worker) = self.parked.pop() {
            let stop = EventFd::new(EFD_NONBLOCK)?;
            let stopped = stop.try_clone()?;
            let (name, readers) = (worker.name(), host.readers());
            let body = Box::new(move || run(worker, &stopped, &readers.register()));
            let thread = host.spawn(&name, body)?;
            self.running.push(Running { stop, thread });
        }
        Ok(())
    }

    /// Ends the threads and keeps their workers. When it returns, none touches guest memory.
    pub fn pause(&mut self) {
        for running in &self.running {
            if let Err(error) = running.stop.write(1) {
                error!("stopping a device thread: {error}");
            }
        }
        self.parked.extend(self.running.drain(..).filter_map(|running| running.thread.join().ok()));
    }
}

/// Dropping the set ends the threads and drops their workers.
impl Drop for WorkerSet {
    fn drop(&mut self) {
        self.pause();
    }
}

/// Runs `worker` until `stop` is readable, then hands it back.
fn run(mut worker: Box<dyn Worker>, stop: &EventFd, reader: &Reader) -> Box<dyn Worker> {
    if let Err(error) = serve(worker.as_mut(), stop, reader) {
        error!("{}: waiting for events: {error}", worker.name());
    }
    reader.awake(|| worker.quiesce());
    worker
}

const STOP: u64 = u64::MAX;
const SOURCE: u64 = 1 << 32;

fn serve(worker: &mut dyn Worker, stop: &EventFd, reader: &Reader) -> io::Result<()> {
    let epoll = Epoll::new()?;
    epoll.add(stop.as_raw_fd(), STOP)?;
    for (position, queue) in worker.queues().iter().enumerate() {
        epoll.add(queue.kick().as_raw_fd(), position as u64)?;
    }
    for (position, source) in worker.sources().iter().enumerate() {
        epoll.add(source.as_raw_fd(), SOURCE | position as u64)?;
    }
    for position in 0..worker.queues().len() {
        reader.awake(|| worker.queue_ready(position));
    }
    let mut events = [Event::new(Events::empty(), 0); 16];
    loop {
        for event in epoll.wait(&mut events)? {
            let token = event.data;
            match token {
                STOP => return Ok(()),
                _ if token & SOURCE != 0 => {
                    let position = (token & !SOURCE) as usize;
                    if !reader.awake(|| worker.source_ready(position)) {
                        epoll.remove(worker.sources()[position].as_raw_fd())?;
                    }
                }
                position => {
                    // A doorbell that another event already emptied is no error.
                    let _ = worker.queues()[position as usize].kick().read();
                    reader.awake(|| worker.queue_ready(position as usize));
                }
            }
        }
    }
}

/// An epoll instance that closes itself.
struct Epoll(RawFd);

impl Epoll {
    fn new() -> io::Result<Self> {
        epoll::create(true).map(Self)
    }

    fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        epoll::ctl(self.0, ControlOptions::EPOLL_CTL_ADD, fd, Event::new(Events::EPOLLIN, token))
    }

    fn remove(&self, fd: RawFd) -> io::Result<()> {
        epoll::ctl(self.0, ControlOptions::EPOLL_CTL_DEL, fd, Event::new(Events::empty(), 0))
    }

    fn wait<'a>(&self, events: &'a mut [Event]) -> io::Result<&'a [Event]> {
        match epoll::wait(self.0, -1, events) {
            Ok(count) => Ok(&events[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // The descriptor is ours alone; there is nothing to do about a failure.
        let _ = epoll::close(self.0);
    }
}
