//! The console's thread: what goes in, and what comes out.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_queue::{Reader, Writer};

use crate::chardev::CharBackend;
use crate::virtio::queue::{Chain, VirtQueue};
use crate::virtio::worker::{Worker, slice};

/// Bytes that move between host and guest in one go.
const CHUNK: usize = 4096;

/// Serves both queues of the port.
///
/// **Invariant:** the backend is armed only while no input is pending, so input the driver has no
/// buffers for stays with the host.
/// **Invariant:** a wake-up ends with the chunk that its slice is over in, whatever the driver has
/// queued and however slowly the host reads; the doorbell then rings already for the next.
pub(super) struct ConsoleWorker {
    receive: VirtQueue,
    transmit: VirtQueue,
    backend: Arc<dyn CharBackend>,
    buffer: Box<[u8; CHUNK]>,
    pending: Range<usize>,
    /// What a wake-up had no time to send all of.
    output: Option<Output>,
}

impl ConsoleWorker {
    pub(super) fn new(
        receive: VirtQueue,
        transmit: VirtQueue,
        backend: Arc<dyn CharBackend>,
    ) -> Self {
        let buffer = Box::new([0; CHUNK]);
        Self { receive, transmit, backend, buffer, pending: 0..0, output: None }
    }

    /// Hands pending input to the driver as far as it has buffers, and asks for more once all is
    /// delivered.
    fn deliver(&mut self) {
        let in_time = slice();
        while !self.pending.is_empty() {
            let Some(chain) = next(&mut self.receive) else { break };
            let head = chain.head_index();
            let written = fill(&chain, &self.buffer[self.pending.clone()]);
            self.pending.start += written;
            self.receive.complete(head, written as u32);
            // A driver can add buffers without room for a byte for ever.
            if !in_time() {
                self.receive.ring();
                break;
            }
        }
        self.receive.notify();
        if self.pending.is_empty() {
            self.backend.arm();
        }
    }

    /// Sends what the driver has for the host, chunk by chunk.
    fn send(&mut self) {
        let in_time = slice();
        while let Some(mut output) = self.next_output() {
            if output.send_chunk(self.backend.as_ref()) {
                self.output = Some(output);
            } else {
                self.transmit.complete(output.chain.head_index(), 0);
            }
            if !in_time() {
                self.transmit.ring();
                break;
            }
        }
        self.transmit.notify();
    }

    fn next_output(&mut self) -> Option<Output> {
        let new = |chain| Output { chain, sent: 0 };
        self.output.take().or_else(|| next(&mut self.transmit).map(new))
    }
}

/// The next chain of `queue`. When there is none, the doorbell is on and the driver will ring for
/// the next one.
fn next(queue: &mut VirtQueue) -> Option<Chain> {
    queue.pop().or_else(|| queue.set_doorbell(true).then(|| queue.pop()).flatten())
}

/// A chain on its way to the host.
struct Output {
    chain: Chain,
    sent: usize,
}

impl Output {
    /// Sends the next chunk to the host; nothing when a buffer lies outside RAM. Returns whether
    /// there is more.
    fn send_chunk(&mut self, backend: &dyn CharBackend) -> bool {
        let reader = Reader::new(self.chain.memory(), self.chain.clone());
        let rest = reader.and_then(|mut reader| reader.split_at(self.sent));
        let Ok(mut rest) = rest else { return false };
        let mut chunk = [0; CHUNK];
        let Ok(count @ 1..) = rest.read(&mut chunk) else { return false };
        backend.write(&chunk[..count]);
        self.sent += count;
        rest.available_bytes() > 0
    }
}

impl Worker for ConsoleWorker {
    fn name(&self) -> String {
        "console".into()
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        vec![&self.receive, &self.transmit]
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.backend.input().into_iter().collect()
    }

    fn queue_ready(&mut self, position: usize) {
        match position {
            0 => self.deliver(),
            _ => self.send(),
        }
    }

    fn source_ready(&mut self, _position: usize) -> bool {
        self.pending = 0..self.backend.read(self.buffer.as_mut_slice());
        self.deliver();
        true
    }
}

/// Writes as much of `bytes` to `chain` as it holds and returns how much; nothing when a buffer
/// lies outside RAM.
fn fill(chain: &Chain, bytes: &[u8]) -> usize {
    Writer::new(chain.memory(), chain.clone())
        .ok()
        .and_then(|mut writer| writer.write(bytes).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::{Queue, QueueT};
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::chardev::testing::Loop;
    use crate::guest_memory::GuestMemory;
    use crate::virtio::testing::{Interrupts, Ring, answers, memory, offer, queue, readable};
    use crate::virtio::testing::{ring, writable};
    use crate::virtio::worker::SLICED;

    const DATA: u64 = 0x1_0000;

    struct Port<'a> {
        backend: Arc<Loop>,
        interrupts: Arc<Interrupts>,
        memory: &'a Arc<GuestMemory>,
        receive: Ring<'a>,
        transmit: Ring<'a>,
        worker: ConsoleWorker,
    }

    impl<'a> Port<'a> {
        fn new(memory: &'a Arc<GuestMemory>) -> Self {
            let (receive, transmit) = (ring(memory, 0), ring(memory, 0x1000));
            let interrupts = Arc::new(Interrupts::default());
            let backend = Loop::new();
            let mut worker = ConsoleWorker::new(
                queue(0, &receive, memory, &interrupts),
                queue(1, &transmit, memory, &interrupts),
                Arc::clone(&backend) as _,
            );
            worker.queue_ready(0);
            worker.queue_ready(1);
            Self { backend, interrupts, memory, receive, transmit, worker }
        }

        /// What the worker's loop does while its source is readable.
        fn run_source(&mut self) {
            while self.backend.is_ready() {
                assert!(self.worker.source_ready(0));
            }
        }

        fn received(&self, at: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        }
    }

    #[test]
    fn output_reaches_the_host_in_order() {
        let memory = memory();
        let mut port = Port::new(&memory);
        let interrupts = port.interrupts.used.load(Ordering::Relaxed);
        memory.write_slice(b"hello, world", GuestAddress(DATA)).unwrap();
        offer(&port.transmit, 0, &[readable(DATA, 7), readable(DATA + 7, 4)]);
        offer(&port.transmit, 2, &[readable(DATA + 11, 1)]);
        port.worker.queue_ready(1);
        assert_eq!(port.backend.take_output(), b"hello, world");
        assert_eq!(answers(&port.transmit), [(0, 0), (2, 0)]);
        assert_eq!(port.interrupts.used.load(Ordering::Relaxed), interrupts + 1);
    }

    #[test]
    fn input_spreads_over_buffers() {
        let memory = memory();
        let mut port = Port::new(&memory);
        offer(&port.receive, 0, &[writable(DATA, 4)]);
        offer(&port.receive, 1, &[writable(DATA + 0x100, 100)]);
        port.backend.type_in(b"typing");
        port.run_source();
        assert_eq!(answers(&port.receive), [(0, 4), (1, 2)]);
        assert_eq!(port.received(DATA, 4), b"typi");
        assert_eq!(port.received(DATA + 0x100, 2), b"ng");
    }

    #[test]
    fn input_without_buffers_waits_and_is_not_lost() {
        let memory = memory();
        let mut port = Port::new(&memory);
        port.backend.type_in(&[b'a'; CHUNK]);
        port.backend.type_in(b"tail");
        port.run_source();
        // A full buffer is pending, the tail is still the host's, and nothing spins.
        assert_eq!(port.backend.input.lock().unwrap().len(), 4);
        assert!(!port.backend.is_ready());
        offer(&port.receive, 0, &[writable(DATA, CHUNK as u32)]);
        offer(&port.receive, 1, &[writable(DATA + 0x2000, 16)]);
        port.worker.queue_ready(0);
        port.run_source();
        assert_eq!(answers(&port.receive), [(0, CHUNK as u32), (1, 4)]);
        assert_eq!(port.received(DATA + 0x2000, 4), b"tail");
    }

    #[test]
    fn malformed_chains_are_answered_with_nothing() {
        let memory = memory();
        let mut port = Port::new(&memory);
        offer(&port.transmit, 0, &[readable(1 << 40, 8)]);
        offer(&port.transmit, 1, &[writable(DATA, 8)]);
        port.worker.queue_ready(1);
        assert_eq!(answers(&port.transmit), [(0, 0), (1, 0)]);
        assert!(port.backend.take_output().is_empty());

        offer(&port.receive, 0, &[readable(DATA, 8)]);
        offer(&port.receive, 1, &[writable(1 << 40, 8)]);
        offer(&port.receive, 2, &[writable(DATA, 8)]);
        port.backend.type_in(b"ok");
        port.run_source();
        assert_eq!(answers(&port.receive), [(0, 0), (1, 0), (2, 2)]);
        assert_eq!(port.received(DATA, 2), b"ok");
    }

    #[test]
    fn a_garbage_ring_ends_the_queue_and_not_the_thread() {
        let memory = memory();
        let mut port = Port::new(&memory);
        port.receive.avail().idx().store(1000);
        port.backend.type_in(b"x");
        port.run_source();
        assert_eq!(port.interrupts.needs_reset.load(Ordering::Relaxed), 1);
        assert!(answers(&port.receive).is_empty());
    }

    /// A host that reads slowly would hold up a pause for minutes.
    #[test]
    fn a_slow_reader_gets_all_output_and_does_not_keep_the_thread() {
        SLICED.set(true);
        let memory = memory();
        let mut port = Port::new(&memory);
        let text: Vec<u8> = (0..4 * CHUNK).map(|at| (at / 7) as u8).collect();
        memory.write_slice(&text, GuestAddress(DATA)).unwrap();
        let half = 2 * CHUNK as u32;
        offer(&port.transmit, 0, &[readable(DATA, 1), readable(DATA + 1, half - 1)]);
        offer(&port.transmit, 2, &[readable(DATA + u64::from(half), half)]);
        *port.backend.write_takes.lock().unwrap() = Duration::from_millis(11);
        for (written, answered) in [(1, 0), (2, 1), (3, 1), (4, 2)] {
            port.worker.queue_ready(1);
            assert_eq!(port.backend.output.lock().unwrap().len(), written * CHUNK);
            assert_eq!(answers(&port.transmit).len(), answered);
            assert!(port.worker.transmit.kick().read().is_ok());
        }
        assert_eq!(port.backend.take_output(), text);
        port.worker.queue_ready(1);
        assert!(port.worker.transmit.kick().read().is_err());
    }

    #[test]
    fn a_driver_that_adds_empty_buffers_does_not_keep_the_thread() {
        SLICED.set(true);
        let memory = memory();
        let mut port = Port::new(&memory);
        offer(&port.receive, 0, &[readable(DATA, 8)]);
        // The mock's own used ring overlaps its available ring.
        let (index, used) = (GuestAddress(port.receive.avail_addr().0 + 2), DATA + 0x1000);
        let mut queue = port.receive.create_queue::<Queue>().unwrap();
        queue.set_used_ring_address(Some(used as u32), None);
        let (kick, interrupt) = (EventFd::new(EFD_NONBLOCK).unwrap(), port.interrupts.clone());
        port.worker.receive = VirtQueue::new(0, queue, kick, memory.clone(), interrupt);

        let (start, seconds) = (Instant::now(), Duration::from_secs);
        let done = AtomicBool::new(false);
        port.backend.type_in(b"x");
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) && start.elapsed() < seconds(60) {
                    let answered: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
                    memory.write_obj(answered.wrapping_add(8), index).unwrap();
                }
            });
            port.run_source();
            // The driver does not keep up where both have one CPU.
            while port.worker.receive.kick().read().is_err() && start.elapsed() < seconds(3) {
                port.worker.queue_ready(0);
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(start.elapsed() < seconds(30));
        assert_eq!(port.interrupts.needs_reset.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #[test]
        fn any_chain_is_answered(
            buffers in proptest::collection::vec((any::<u64>(), any::<u32>(), 0u16..4), 1..8),
        ) {
            let memory = memory();
            let mut port = Port::new(&memory);
            // Behind the queues: a driver that has them overwritten has broken them.
            let chain: Vec<_> = buffers
                .iter()
                .map(|&(at, len, flags)| Descriptor::new(DATA + at % (1 << 21), len, flags, 0))
                .collect();
            offer(&port.transmit, 0, &chain);
            offer(&port.receive, 0, &chain);
            port.backend.type_in(&[1; 100]);
            port.run_source();
            port.worker.queue_ready(1);
            while port.worker.transmit.kick().read().is_ok() {
                port.worker.queue_ready(1);
            }
            prop_assert_eq!(answers(&port.transmit).len(), 1);
            prop_assert_eq!(answers(&port.receive).len(), 1);
        }
    }
}
