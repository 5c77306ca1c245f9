//! A split virtqueue with what goes round it: its doorbell, its interrupt, and the rule that every
//! head taken is answered.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use log::warn;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::guest_memory::GuestMemory;

/// A chain of descriptors popped from a [`VirtQueue`]. It must be answered with
/// [`VirtQueue::complete`], whatever it holds.
pub type Chain = DescriptorChain<Arc<GuestMemory>>;

/// How a device interrupts its driver. The transport implements it.
pub trait InterruptSink: Send + Sync {
    /// Used buffers are waiting in queue `index`.
    fn queue_used(&self, index: u16);

    /// The configuration space has changed.
    fn config_changed(&self);

    /// The driver broke the protocol beyond repair: sets DEVICE_NEEDS_RESET and tells it.
    fn needs_reset(&self);
}

/// A shared handle to a device's interrupts.
pub type Interrupt = Arc<dyn InterruptSink>;

/// A queue the driver has enabled. Owned by the worker that serves it.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    kick: EventFd,
    memory: Arc<GuestMemory>,
    interrupt: Interrupt,
    /// Something was completed since the last [`VirtQueue::notify`].
    unsignalled: bool,
    broken: bool,
}

impl VirtQueue {
    /// Queue `index` as the driver configured it; `kick` is its doorbell.
    pub fn new(
        index: u16,
        queue: Queue,
        kick: EventFd,
        memory: Arc<GuestMemory>,
        interrupt: Interrupt,
    ) -> Self {
        Self { index, queue, kick, memory, interrupt, unsignalled: false, broken: false }
    }

    /// The queue's number within its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The doorbell, readable when the driver has added buffers.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Guest RAM, to read and write what a chain points at.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// How many chains the ring has room for.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next chain the driver made available. Returns `None` when there is none, and for
    /// ever once the ring itself is malformed; the driver has then been told to reset.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.broken || !self.has_next() {
            return None;
        }
        let chain = self.queue.pop_descriptor_chain(Arc::clone(&self.memory));
        if chain.is_none() {
            // The index can be read and the entry it points at can't: some of the ring has been
            // unplugged. Without this, `drain` would try for ever.
            self.fail(&"an entry of the available ring can't be read");
        }
        chain
    }

    /// Answers the chain that began with `head`: `written` bytes were written to it.
    pub fn complete(&mut self, head: u16, written: u32) {
        self.unsignalled = true;
        if let Err(error) = self.queue.add_used(self.memory.as_ref(), head, written) {
            self.fail(&error);
        }
    }

    /// Interrupts the driver if it wants to know of what was completed since the last call.
    pub fn notify(&mut self) {
        if !std::mem::take(&mut self.unsignalled) {
            return;
        }
        match self.queue.needs_notification(self.memory.as_ref()) {
            Ok(true) => self.interrupt.queue_used(self.index),
            Ok(false) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// [`VirtQueue::serve`], after which the driver is interrupted if there is a reason to.
    pub fn drain(&mut self, more: impl Fn() -> bool, serve: impl FnMut(Chain) -> Option<u32>) {
        self.serve(more, serve);
        self.notify();
    }

    /// Serves the queue until it is empty: `serve` gets each chain and returns the bytes written,
    /// or `None` when it will call [`VirtQueue::complete`] later. Doorbells are off meanwhile, and
    /// interrupts are left to [`VirtQueue::notify`].
    ///
    /// A driver that adds buffers as fast as they are served gets one ring's worth per call, and less
    /// when `more` says no after a chain: the next waits until the thread has looked at its other
    /// events, its end included.
    pub fn serve(&mut self, more: impl Fn() -> bool, mut serve: impl FnMut(Chain) -> Option<u32>) {
        let mut budget = self.queue.size();
        loop {
            self.set_doorbell(false);
            while let Some(chain) = (budget > 0).then(|| self.pop()).flatten() {
                budget -= 1;
                let head = chain.head_index();
                if let Some(written) = serve(chain) {
                    self.complete(head, written);
                }
                if !more() {
                    budget = 0;
                }
            }
            if !self.set_doorbell(true) {
                break;
            }
            if budget == 0 {
                self.ring();
                break;
            }
        }
    }

    /// Rings the doorbell in the driver's place, so that the thread comes back after it has looked at
    /// its other events.
    pub fn ring(&self) {
        // Full means that it rings already.
        let _ = self.kick.write(1);
    }

    /// Asks for doorbells, or for none; returns whether there are buffers that arrived before the
    /// request took effect. A malformed ring has none.
    pub fn set_doorbell(&mut self, wanted: bool) -> bool {
        if self.broken {
            return false;
        }
        let memory = self.memory.as_ref();
        let result = match wanted {
            true => self.queue.enable_notification(memory),
            false => self.queue.disable_notification(memory).map(|()| false),
        };
        result.unwrap_or_else(|error| {
            self.fail(&error);
            false
        })
    }

    /// Whether the driver has made a chain available. It can have at most `size` outstanding: an
    /// available index further ahead means that the ring is garbage.
    fn has_next(&mut self) -> bool {
        let next = self.queue.next_avail();
        match self.queue.avail_idx(self.memory.as_ref(), Ordering::Acquire) {
            Ok(idx) if idx.0.wrapping_sub(next) <= self.queue.size() => idx.0 != next,
            Ok(idx) => {
                self.fail(&format_args!("available index {idx} is too far ahead of {next}"));
                false
            }
            Err(error) => {
                self.fail(&error);
                false
            }
        }
    }

    /// Stops serving this queue. Logged once: only a reset makes a new `VirtQueue`.
    fn fail(&mut self, error: &dyn fmt::Display) {
        if !self.broken {
            self.broken = true;
            warn!("virtio queue {}: {error}; the driver must reset the device", self.index);
            self.interrupt.needs_reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use virtio_queue::desc::{RawDescriptor, split::Descriptor as SplitDescriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress, MmapRegion};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::guest_memory::{Gate, Region};

    const BLOCK: u64 = 1 << 12;

    #[derive(Default)]
    struct Broken(AtomicUsize);

    impl InterruptSink for Broken {
        fn queue_used(&self, _index: u16) {}
        fn config_changed(&self) {}
        fn needs_reset(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn queue_on(memory: &Arc<GuestMemory>, queue: Queue, sink: Interrupt) -> VirtQueue {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        VirtQueue::new(0, queue, kick, Arc::clone(memory), sink)
    }

    fn memory(gate: Option<Arc<Gate>>) -> Arc<GuestMemory> {
        let mapping = MmapRegion::new(4 * BLOCK as usize).unwrap();
        let region = Region::new(mapping, GuestAddress(0), gate, Box::new(())).unwrap();
        Arc::new(GuestMemory::from_regions(vec![region]).unwrap())
    }

    #[test]
    fn a_slice_that_is_over_leaves_the_rest_for_the_next_call() {
        let memory = memory(None);
        let ring = MockSplitQueue::create(memory.as_ref(), GuestAddress(0), 16);
        let chains = [(); 3].map(|()| RawDescriptor::from(SplitDescriptor::new(BLOCK, 1, 2, 0)));
        ring.add_desc_chains(&chains, 0).unwrap();
        let sink = Arc::new(Broken::default());
        let mut queue = queue_on(&memory, ring.create_queue().unwrap(), sink);
        for left in [2, 1, 0] {
            let mut served = 0;
            let serve = |_| {
                served += 1;
                Some(0)
            };
            queue.drain(|| false, serve);
            assert_eq!((served, queue.kick().read().is_ok()), (1, left > 0));
        }
    }

    /// The available index lies in a block that stays plugged, the entries in one that goes away.
    #[test]
    fn a_ring_that_is_half_unplugged_breaks_the_queue_and_ends_the_drain() {
        let gate = Arc::new(Gate::closed(12, 4));
        gate.set(0, 4, true);
        let memory = memory(Some(Arc::clone(&gate)));
        let ring = MockSplitQueue::create(memory.as_ref(), GuestAddress(0), 16);
        let mut queue: Queue = ring.create_queue().unwrap();
        queue.set_avail_ring_address(Some(2 * BLOCK as u32 - 4), None);
        memory.write_obj(1u16, GuestAddress(2 * BLOCK - 2)).unwrap();
        gate.set(2, 1, false);

        let broken = Arc::new(Broken::default());
        let mut queue = queue_on(&memory, queue, Arc::clone(&broken) as Interrupt);
        queue.drain(|| true, |_| panic!("nothing can be read"));
        assert!(queue.pop().is_none());
        assert_eq!(broken.0.load(Ordering::Relaxed), 1);
    }
}
