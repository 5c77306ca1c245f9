//! One queue of a disk: takes requests, has the engine carry them out, answers.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use log::warn;

use super::backend::{Completion, Engine, Operation};
use super::counters::Counters;
use super::pending::Pending;
use super::request::{Reply, Request, Rules, Status, receive};
use crate::virtio::queue::{Chain, VirtQueue};
use crate::virtio::worker::{Worker, slice};

/// What a queue needs to know of its disk.
pub(super) struct Disk {
    pub(super) rules: Rules,
    /// The driver does not flush: a write has finished when it is stable (virtio 1.3, 5.2.6.2).
    pub(super) write_through: bool,
    pub(super) id: [u8; 20],
    pub(super) counters: Arc<Counters>,
}

/// A request that the engine has.
struct InFlight {
    head: u16,
    reply: Reply,
    kind: Kind,
    /// Once done, flush before answering.
    then_flush: bool,
}

impl InFlight {
    /// Whether a flush is due; it is, at most once.
    fn wants_flush(&mut self) -> bool {
        mem::take(&mut self.then_flush)
    }
}

/// What to count, and to report as written, when a request has succeeded.
#[derive(Clone, Copy)]
enum Kind {
    Read(u64),
    Write(u64),
    Flush,
    Other,
}

impl Kind {
    fn of(operation: &Operation) -> Self {
        match operation {
            Operation::Read { range, .. } => Self::Read(range.len()),
            Operation::Write { range, .. } => Self::Write(range.len()),
            Operation::Flush => Self::Flush,
            Operation::Discard(_) | Operation::WriteZeroes { .. } => Self::Other,
        }
    }
}

/// Serves one queue on one thread.
pub(super) struct BlockWorker {
    name: String,
    queue: VirtQueue,
    engine: Box<dyn Engine>,
    disk: Disk,
    in_flight: Pending<InFlight>,
    done: Vec<Completion>,
    /// Answers since the driver was last told.
    answered: bool,
}

impl BlockWorker {
    /// Serves `queue`, which has `depth` entries, by way of `engine`.
    pub(super) fn new(
        name: String,
        queue: VirtQueue,
        depth: u16,
        engine: Box<dyn Engine>,
        disk: Disk,
    ) -> Self {
        let in_flight = Pending::new(depth);
        Self { name, queue, engine, disk, in_flight, done: Vec::new(), answered: false }
    }

    /// Takes requests until the ring is empty, enough are in flight, or it is time to look for other
    /// events.
    fn serve(&mut self) {
        let in_time = slice();
        loop {
            self.queue.set_doorbell(false);
            self.take_requests(&in_time);
            self.engine.submit();
            self.settle();
            self.notify();
            if !self.in_flight.has_room() {
                // The driver has more than its ring holds; a completion makes room.
                return;
            }
            if !self.queue.set_doorbell(true) {
                return;
            }
            if !in_time() {
                return self.queue.ring();
            }
        }
    }

    /// Starts what the driver has made available, at least one request. An engine without io_uring
    /// carries each out here.
    fn take_requests(&mut self, in_time: impl Fn() -> bool) {
        while self.in_flight.has_room() {
            let Some(chain) = self.queue.pop() else { break };
            self.start(chain);
            if !in_time() {
                break;
            }
        }
    }

    /// Answers `chain`, or hands it to the engine.
    fn start(&mut self, chain: Chain) {
        let head = chain.head_index();
        let received = receive(chain, &self.disk.rules);
        let Some(reply) = received.reply else {
            self.disk.refused(&self.name);
            return self.complete(head, 0);
        };
        match received.request {
            Ok(Request::Disk(operation)) => self.push(head, reply, operation),
            Ok(Request::Identify(buffers)) => {
                let written = buffers.write(self.queue.memory(), &self.disk.id);
                let status = written.map_or(Status::IoError, |()| Status::Ok);
                let bytes = written.map_or(0, |()| self.disk.id.len() as u64);
                self.answer(head, reply, status, bytes);
            }
            Err(status) => {
                self.disk.refused(&self.name);
                self.answer(head, reply, status, 0);
            }
        }
    }

    fn push(&mut self, head: u16, reply: Reply, operation: Operation) {
        let kind = Kind::of(&operation);
        if operation.is_empty() {
            return self.succeed(head, reply, kind);
        }
        let then_flush = self.disk.write_through && operation.changes_disk();
        let entry = InFlight { head, reply, kind, then_flush };
        match self.in_flight.insert(entry) {
            Ok(token) => self.engine.push(token, operation),
            Err(entry) => self.answer(entry.head, entry.reply, Status::IoError, 0),
        }
    }

    /// Answers whatever the engine has finished.
    fn settle(&mut self) {
        loop {
            let mut done = mem::take(&mut self.done);
            self.engine.reap(&mut done);
            if done.is_empty() {
                return;
            }
            let mut follow_up = false;
            for Completion { token, result } in done.drain(..) {
                follow_up |= self.finish(token, result);
            }
            self.done = done;
            if follow_up {
                self.engine.submit();
            }
        }
    }

    /// Answers the request `token` stands for, unless a flush has to follow; returns whether one
    /// was pushed.
    fn finish(&mut self, token: u16, result: io::Result<()>) -> bool {
        if result.is_ok() && self.in_flight.get_mut(token).is_some_and(InFlight::wants_flush) {
            self.engine.push(token, Operation::Flush);
            return true;
        }
        let Some(entry) = self.in_flight.remove(token) else { return false };
        match result {
            Ok(()) => self.succeed(entry.head, entry.reply, entry.kind),
            Err(error) => {
                self.disk.failed(&self.name, &error);
                self.answer(entry.head, entry.reply, Status::IoError, 0);
            }
        }
        false
    }

    fn succeed(&mut self, head: u16, reply: Reply, kind: Kind) {
        self.disk.count(kind);
        let written = if let Kind::Read(bytes) = kind { bytes } else { 0 };
        self.answer(head, reply, Status::Ok, written);
    }

    fn answer(&mut self, head: u16, reply: Reply, status: Status, written: u64) {
        let used = reply.send(self.queue.memory(), status, written);
        self.complete(head, used);
    }

    fn complete(&mut self, head: u16, used: u32) {
        self.queue.complete(head, used);
        self.answered = true;
    }

    /// One interrupt for all answers since the last.
    fn notify(&mut self) {
        if mem::take(&mut self.answered) {
            self.queue.notify();
        }
    }
}

impl Worker for BlockWorker {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        vec![&self.queue]
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.engine.completions().into_iter().collect()
    }

    fn queue_ready(&mut self, _position: usize) {
        self.serve();
    }

    fn source_ready(&mut self, _position: usize) -> bool {
        let full = !self.in_flight.has_room();
        self.settle();
        self.notify();
        if full {
            self.serve();
        }
        true
    }

    fn quiesce(&mut self) {
        // Twice, because a write may have to be followed by a flush.
        for _ in 0..2 {
            self.engine.wait();
            self.settle();
        }
        self.notify();
    }
}

impl Disk {
    fn count(&self, kind: Kind) {
        match kind {
            Kind::Read(bytes) => self.counters.read(bytes),
            Kind::Write(bytes) => self.counters.written(bytes),
            Kind::Flush => self.counters.flushed(),
            Kind::Other => {}
        }
    }

    /// Counts a request that makes no sense.
    fn refused(&self, name: &str) {
        self.failed(name, &"the driver's request is malformed, out of range or unknown");
    }

    /// Counts a request that went wrong. The log gets ever fewer of them: both a driver and a
    /// failing disk can make millions.
    fn failed(&self, name: &str, why: &dyn fmt::Display) {
        let errors = self.counters.failed();
        if errors.is_power_of_two() {
            warn!("{name}: {why} ({errors} errors so far)");
        }
    }
}
