//! The entropy device (virtio 1.3, 5.4).

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::Bytes;

use crate::virtio::device::{Activation, ConfigSpace, VirtioDevice};
use crate::virtio::queue::{Chain, VirtQueue};
use crate::virtio::worker::{Worker, slice};

/// The most one chain of buffers gets, in bytes; the used length tells the driver.
pub const MAX_CHAIN_BYTES: usize = 64 << 10;

/// The entropy device.
pub struct Rng {
    source: Arc<File>,
}

impl Rng {
    /// A device that reads `source`, usually `/dev/urandom`. A pause waits for a read in progress,
    /// so the file must not be one that blocks for ever.
    pub fn new(source: File) -> Self {
        Self { source: Arc::new(source) }
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u16 {
        4
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::default()
    }

    fn activate(&mut self, activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        let queues = activation.queues.into_iter().flatten();
        Ok(queues
            .map(|queue| RngWorker { queue, source: Arc::clone(&self.source) })
            .map(|worker| Box::new(worker) as Box<dyn Worker>)
            .collect())
    }
}

struct RngWorker {
    queue: VirtQueue,
    source: Arc<File>,
}

impl Worker for RngWorker {
    fn name(&self) -> String {
        "rng".into()
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        vec![&self.queue]
    }

    fn queue_ready(&mut self, _position: usize) {
        let source = self.source.as_ref();
        self.queue.drain(slice(), |chain| Some(fill(chain, source)));
    }
}

/// Fills `chain` from `source` and returns the bytes written: fewer than it holds when the source
/// runs dry or fails, or when a buffer lies outside RAM.
fn fill(chain: Chain, mut source: &File) -> u32 {
    let mut written = 0;
    for buffer in chain.clone().writable() {
        let wanted = (MAX_CHAIN_BYTES - written).min(buffer.len() as usize);
        let got = chain.memory().read_volatile_from(buffer.addr(), &mut source, wanted);
        let got = got.unwrap_or(0);
        written += got;
        if got < wanted || written == MAX_CHAIN_BYTES {
            break;
        }
    }
    written as u32
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;
    use virtio_queue::desc::split::Descriptor;

    use super::*;
    use crate::virtio::testing::{Interrupts, answers, memory, offer, queue, readable};
    use crate::virtio::testing::{ring, writable};

    const DATA: u64 = 0x1_0000;

    fn source(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    /// Offers `chains` at once and returns the bytes written to each.
    fn served(source: File, chains: &[&[Descriptor]]) -> Vec<u32> {
        let memory = memory();
        let ring = ring(&memory, 0);
        let mut at = 0;
        for chain in chains {
            offer(&ring, at, chain);
            at += chain.len() as u16;
        }
        let interrupts = Arc::new(Interrupts::default());
        let queues = vec![Some(queue(0, &ring, &memory, &interrupts))];
        let interrupt = Arc::clone(&interrupts) as _;
        let activation = Activation { features: 0, memory: Arc::clone(&memory), queues, interrupt };
        let mut workers = super::Rng::new(source).activate(activation).unwrap();
        workers[0].queue_ready(0);
        assert_eq!(interrupts.needs_reset.load(Ordering::Relaxed), 0);
        answers(&ring).into_iter().map(|(_, written)| written).collect()
    }

    #[test]
    fn buffers_are_filled_in_order() {
        let memory = memory();
        let ring = ring(&memory, 0);
        offer(&ring, 0, &[writable(DATA, 3), writable(DATA + 0x100, 5)]);
        let interrupts = Arc::new(Interrupts::default());
        let queue = queue(0, &ring, &memory, &interrupts);
        let source = Arc::new(source(b"entropy!more"));
        RngWorker { queue, source }.queue_ready(0);
        assert_eq!(answers(&ring), [(0, 8)]);
        assert_eq!(interrupts.used.load(Ordering::Relaxed), 1);
        let mut bytes = [0; 5];
        memory.read_slice(&mut bytes[..3], vm_memory::GuestAddress(DATA)).unwrap();
        assert_eq!(&bytes[..3], b"ent");
        memory.read_slice(&mut bytes, vm_memory::GuestAddress(DATA + 0x100)).unwrap();
        assert_eq!(&bytes, b"ropy!");
    }

    #[test]
    fn a_dry_source_answers_with_what_there_was() {
        assert_eq!(served(source(b"12345"), &[&[writable(DATA, 8)], &[writable(DATA, 8)]]), [5, 0]);
    }

    #[test]
    fn an_unreadable_source_answers_with_nothing() {
        let write_only = File::options().write(true).open("/dev/null").unwrap();
        assert_eq!(served(write_only, &[&[writable(DATA, 8)]]), [0]);
    }

    #[test]
    fn a_chain_gets_no_more_than_the_bound() {
        let urandom = File::open("/dev/urandom").unwrap();
        let half = MAX_CHAIN_BYTES as u32 / 2 + 1;
        let chain = [writable(DATA, half), writable(DATA, half), writable(DATA, half)];
        assert_eq!(served(urandom, &[&chain]), [MAX_CHAIN_BYTES as u32]);
    }

    #[test]
    fn malformed_chains_are_answered() {
        let outside = writable(1 << 40, 8);
        let cases: [&[Descriptor]; 3] =
            [&[readable(DATA, 8)], &[outside], &[writable(DATA, 8), outside]];
        assert_eq!(served(source(&[7; 64]), &cases), [0, 0, 8]);
    }

    proptest! {
        #[test]
        fn any_chain_is_answered_within_bounds(
            buffers in proptest::collection::vec((any::<u64>(), any::<u32>(), 0u16..4), 1..8),
        ) {
            // Behind the queue: a driver that has it overwritten has broken it.
            let chain: Vec<_> = buffers
                .iter()
                .map(|&(at, len, flags)| Descriptor::new(DATA + at % (1 << 21), len, flags, 0))
                .collect();
            let written = served(File::open("/dev/zero").unwrap(), &[&chain]);
            prop_assert!(written[0] as usize <= MAX_CHAIN_BYTES);
        }
    }
}
