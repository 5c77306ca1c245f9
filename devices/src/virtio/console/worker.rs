use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_queue::{Reader, Writer};

use crate::chardev::CharBackend;
use crate::virtio::queue::{Chain, VirtQueue};
use crate::virtio::worker::Worker;

/// Bytes that move between host and guest in one go.
const CHUNK: usize = 4096;

/// The most output that one chain may carry, in bytes; the rest is dropped. Linux sends 128 KiB at
/// most.
const MAX_CHAIN_BYTES: u64 = 256 << 10;

/// Serves both queues of the port.
///
/// **Invariant:** the backend is armed only while no input is pending, so input the driver has no
/// buffers for stays with the host.
pub(super) struct ConsoleWorker {
    receive: VirtQueue,
    transmit: VirtQueue,
    backend: Arc<dyn CharBackend>,
    buffer: Box<[u8; CHUNK]>,
    pending: Range<usize>,
}

impl ConsoleWorker {
    pub(super) fn new(
        receive: VirtQueue,
        transmit: VirtQueue,
        backend: Arc<dyn CharBackend>,
    ) -> Self {
        Self { receive, transmit, backend, buffer: Box::new([0; CHUNK]), pending: 0..0 }
    }

    /// Hands pending input to the driver as far as it has buffers, and asks for more once all is
    /// delivered.
    fn deliver(&mut self) {
        let mut delivered = false;
        while !self.pending.is_empty() {
            let Some(chain) = self.next_receive_chain() else { break };
            let head = chain.head_index();
            let written = fill(&chain, &self.buffer[self.pending.clone()]);
            self.pending.start += written;
            self.receive.complete(head, written as u32);
            delivered = true;
        }
        if delivered {
            self.receive.notify();
        }
        if self.pending.is_empty() {
            self.backend.arm();
        }
    }

    /// The next chain to receive into. When there is none, the doorbell is on and the driver will
    /// ring for the next one.
    fn next_receive_chain(&mut self) -> Option<Chain> {
        self.receive.pop().or_else(|| {
            let more = self.receive.set_doorbell(true);
            more.then(|| self.receive.pop()).flatten()
        })
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
        if position == 0 {
            return self.deliver();
        }
        let backend = self.backend.as_ref();
        self.transmit.drain(|chain| {
            send(chain, backend);
            Some(0)
        });
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

/// Sends what `chain` holds to the host; nothing when a buffer lies outside RAM.
fn send(chain: Chain, backend: &dyn CharBackend) {
    let Ok(reader) = Reader::new(chain.memory(), chain.clone()) else { return };
    let mut reader = reader.take(MAX_CHAIN_BYTES);
    let mut chunk = [0; CHUNK];
    while let Ok(count @ 1..) = reader.read(&mut chunk) {
        backend.write(&chunk[..count]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;
    use virtio_queue::desc::split::Descriptor;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::chardev::testing::Loop;
    use crate::guest_memory::GuestMemory;
    use crate::virtio::testing::{Interrupts, Ring, answers, memory, offer, queue, readable};
    use crate::virtio::testing::{ring, writable};

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

    #[test]
    fn output_of_one_chain_is_bounded() {
        let memory = memory();
        let mut port = Port::new(&memory);
        let big = readable(DATA, MAX_CHAIN_BYTES as u32);
        offer(&port.transmit, 0, &[big, big, big]);
        port.worker.queue_ready(1);
        assert_eq!(port.backend.take_output().len() as u64, MAX_CHAIN_BYTES);
    }

    proptest! {
        #[test]
        fn any_chain_is_answered(
            buffers in proptest::collection::vec((any::<u64>(), any::<u32>(), 0u16..4), 1..8),
        ) {
            let memory = memory();
            let mut port = Port::new(&memory);
            let chain: Vec<_> = buffers
                .iter()
                .map(|&(address, len, flags)| Descriptor::new(address % (1 << 21), len, flags, 0))
                .collect();
            offer(&port.transmit, 0, &chain);
            offer(&port.receive, 0, &chain);
            port.backend.type_in(&[1; 100]);
            port.run_source();
            port.worker.queue_ready(1);
            prop_assert_eq!(answers(&port.transmit).len(), 1);
            prop_assert_eq!(answers(&port.receive).len(), 1);
            prop_assert!(port.backend.take_output().len() as u64 <= MAX_CHAIN_BYTES);
        }
    }
}
