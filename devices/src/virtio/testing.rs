//! What the device tests share: a little RAM, the driver's half of a queue, counted interrupts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{GuestAddress, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::{InterruptSink, VirtQueue};
use crate::guest_memory::{GuestMemory, Region};

/// The number of descriptors in a [`ring`].
pub(crate) const RING_SIZE: u16 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver's half of a queue.
pub(crate) type Ring<'a> = MockSplitQueue<'a, GuestMemory>;

/// 1 MiB of RAM at address 0.
pub(crate) fn memory() -> Arc<GuestMemory> {
    let region = Region::open(MmapRegion::new(1 << 20).unwrap(), GuestAddress(0)).unwrap();
    Arc::new(GuestMemory::from_regions(vec![region]).unwrap())
}

/// An empty ring at `base`.
pub(crate) fn ring(memory: &GuestMemory, base: u64) -> Ring<'_> {
    MockSplitQueue::create(memory, GuestAddress(base), RING_SIZE)
}

/// The device's half of `ring`, as queue `index`.
pub(crate) fn queue(
    index: u16,
    ring: &Ring<'_>,
    memory: &Arc<GuestMemory>,
    interrupts: &Arc<Interrupts>,
) -> VirtQueue {
    VirtQueue::new(
        index,
        ring.create_queue().unwrap(),
        EventFd::new(EFD_NONBLOCK).unwrap(),
        Arc::clone(memory),
        Arc::clone(interrupts) as _,
    )
}

/// A buffer that the device reads.
pub(crate) fn readable(address: u64, len: u32) -> Descriptor {
    Descriptor::new(address, len, 0, 0)
}

/// A buffer that the device writes.
pub(crate) fn writable(address: u64, len: u32) -> Descriptor {
    Descriptor::new(address, len, WRITE, 0)
}

/// Makes a chain of `buffers` available, in the descriptors from `at` on.
pub(crate) fn offer(ring: &Ring<'_>, at: u16, buffers: &[Descriptor]) {
    let last = buffers.len() - 1;
    let linked: Vec<_> = buffers
        .iter()
        .enumerate()
        .map(|(i, buffer)| {
            let next = if i < last { NEXT } else { 0 };
            let flags = buffer.flags() | next;
            let link = at + i as u16 + 1;
            RawDescriptor::from(Descriptor::new(buffer.addr().0, buffer.len(), flags, link))
        })
        .collect();
    ring.add_desc_chains(&linked, at).unwrap();
}

/// The answers so far: the head of each chain and the bytes written to it.
pub(crate) fn answers(ring: &Ring<'_>) -> Vec<(u32, u32)> {
    let used = ring.used();
    (0..used.idx().load())
        .map(|i| used.ring().ref_at(usize::from(i)).unwrap().load())
        .map(|element| (element.id(), element.len()))
        .collect()
}

/// Counts what a device raises.
#[derive(Default)]
pub(crate) struct Interrupts {
    pub(crate) used: AtomicUsize,
    pub(crate) config: AtomicUsize,
    pub(crate) needs_reset: AtomicUsize,
}

impl InterruptSink for Interrupts {
    fn queue_used(&self, _index: u16) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }

    fn needs_reset(&self) {
        self.needs_reset.fetch_add(1, Ordering::Relaxed);
    }
}
