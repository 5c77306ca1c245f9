//! The device from the driver's side, over a host that only keeps books.

mod channel;
mod channel_driver;
mod channel_failures;
mod channel_hostile;
mod channel_lives;
mod channel_model;
mod failures;
mod handle;
mod hostile;
mod model;
mod rules;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use memctl::{Blocks, Bytes as Size, Cookie, Geometry, Layout, PartitionId, Policy};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{HostBlocks, Mem, MemEvent, MemHandle, PartitionView};
use crate::guest_memory::{Gate, GuestMemory, Region};
use crate::virtio::device::{Activation, VirtioDevice};
use crate::virtio::queue::VirtQueue;
use crate::virtio::testing::{self, Interrupts, RING_SIZE, Ring, readable, writable};
use crate::virtio::worker::Worker;

/// Where the region is.
const BASE: u64 = 4 << 30;
const BLOCK: u64 = 2 << 20;
const BLOCKS: u64 = 64;

/// Where the tests put the available ring, the used ring, requests and answers.
const AVAIL: u32 = 0x4000;
const USED: u32 = 0x8000;
const REQUEST: u64 = 0x1_0000;
const REPLY: u64 = 0x2_0000;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

const F_ACPI_PXM: u64 = 1 << 0;
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
const F_PARTITION: u64 = 1 << 56;
const F_PART_ZEROED: u64 = 1 << 57;

/// Offsets in `struct virtio_mem_config`.
const USABLE: usize = 32;
const PLUGGED: usize = 40;
const REQUESTED: usize = 48;
const PART_MAX: usize = 56;
const PART_GEN: usize = 60;
const PART_PREPARE: usize = 64;
const PART_BACK: usize = 72;

/// What the tests and the mock host share.
struct HostState {
    open: Vec<bool>,
    /// Calls so far: whether it was `open`, the first block, the number of blocks.
    calls: Vec<(bool, u64, u64)>,
    /// Whether the call with this number fails.
    fails: Box<dyn FnMut(usize) -> bool + Send>,
    failed: usize,
    /// How many calls were to provide the memory at once.
    populated: usize,
    /// Called before each call is carried out.
    hook: Box<dyn FnMut() + Send>,
    gate: Arc<Gate>,
}

impl HostState {
    fn open_blocks(&self) -> u64 {
        self.open.iter().filter(|open| **open).count() as u64
    }
}

/// Refuses what a device must not ask for: to open what is open, to release what is closed.
struct MockHost(Arc<Mutex<HostState>>);

impl MockHost {
    fn change(&self, range: Range<u64>, open: bool) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        assert!(range.start < range.end && range.end <= BLOCKS * BLOCK, "{range:?}");
        let (first, end) = (range.start / BLOCK, range.end / BLOCK);
        state.calls.push((open, first, end - first));
        (state.hook)();
        let number = state.calls.len() - 1;
        let blocks = first as usize..end as usize;
        assert!(state.open[blocks.clone()].iter().all(|was| *was != open), "{range:?} twice");
        if (state.fails)(number) {
            state.failed += 1;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        state.gate.set_bytes(&range, open);
        state.open[blocks].fill(open);
        Ok(())
    }
}

impl HostBlocks for MockHost {
    fn open(&mut self, range: Range<u64>) -> io::Result<()> {
        self.change(range, true)
    }

    fn open_populated(&mut self, range: Range<u64>) -> io::Result<()> {
        self.0.lock().unwrap().populated += 1;
        self.change(range, true)
    }

    fn release(&mut self, range: Range<u64>) -> io::Result<()> {
        self.change(range, false)
    }
}

/// A device, its driver, its machine and its host.
struct Rig {
    device: Mem,
    handle: MemHandle,
    host: Arc<Mutex<HostState>>,
    events: Arc<Mutex<Vec<MemEvent>>>,
    memory: &'static Arc<GuestMemory>,
    ring: Ring<'static>,
    interrupts: Arc<Interrupts>,
    /// How often the driver had been interrupted by the queue when the last event was told.
    used_when_told: Arc<AtomicUsize>,
    worker: Option<Box<dyn Worker>>,
}

fn geometry() -> Geometry {
    Geometry::new(BASE, Size::new(BLOCK), Size::new(BLOCK * BLOCKS)).unwrap()
}

/// 64 blocks of which the first `shared_area` are for shared memory.
fn layout(shared_area: u64) -> Layout {
    let shared_area = Blocks::new(shared_area);
    Layout { geometry: geometry(), shared_area, max_partitions: 8 }
}

/// The size of `blocks` blocks.
fn size(blocks: u64) -> Size {
    Size::new(blocks * BLOCK)
}

/// RAM at 0, and the region with all blocks closed.
fn memory(gate: &Arc<Gate>) -> GuestMemory {
    let ram = Region::open(MmapRegion::new(1 << 20).unwrap(), GuestAddress(0)).unwrap();
    let mapping = MmapRegion::new((BLOCKS * BLOCK) as usize).unwrap();
    let gate = Some(Arc::clone(gate));
    let region = Region::new(mapping, GuestAddress(BASE), gate, Box::new(())).unwrap();
    GuestMemory::from_regions(vec![ram, region]).unwrap()
}

impl Rig {
    /// A device for shared memory only, of which `requested` blocks are wanted.
    fn wanting(requested: u64) -> Self {
        let rig = Self::new(Layout::shared_only(geometry()), None);
        rig.handle.resize_shared(size(requested), None).unwrap();
        rig
    }

    fn new(layout: Layout, node: Option<u16>) -> Self {
        let gate = Arc::new(Gate::closed(BLOCK.trailing_zeros(), BLOCKS as usize));
        // Leaked, because the ring borrows it.
        let memory: &'static Arc<GuestMemory> = Box::leak(Box::new(Arc::new(memory(&gate))));
        let host = Arc::new(Mutex::new(HostState {
            open: vec![false; BLOCKS as usize],
            calls: Vec::new(),
            fails: Box::new(|_| false),
            failed: 0,
            populated: 0,
            hook: Box::new(|| ()),
            gate,
        }));
        let events = Arc::new(Mutex::new(Vec::new()));
        let interrupts: Arc<Interrupts> = Arc::default();
        let used_when_told: Arc<AtomicUsize> = Arc::default();
        let (seen, used, when) =
            (Arc::clone(&events), Arc::clone(&interrupts), Arc::clone(&used_when_told));
        let observer = Box::new(move |event| {
            seen.lock().unwrap().push(event);
            when.store(used.used.load(Ordering::Relaxed), Ordering::Relaxed);
        });
        let device = Mem::new(layout, node, Box::new(MockHost(Arc::clone(&host))), observer);
        let handle = device.handle();
        let ring = testing::ring(memory, 0);
        let worker = None;
        let mut rig =
            Self { device, handle, host, events, memory, ring, interrupts, used_when_told, worker };
        rig.activate();
        rig
    }

    /// The driver starts, with empty rings.
    fn activate(&mut self) {
        self.worker = self.try_activate(F_UNPLUGGED_INACCESSIBLE).unwrap().pop();
    }

    fn try_activate(&mut self, features: u64) -> io::Result<Vec<Box<dyn Worker>>> {
        let mut queue: Queue = self.ring.create_queue().unwrap();
        queue.set_avail_ring_address(Some(AVAIL), None);
        queue.set_used_ring_address(Some(USED), None);
        for at in [AVAIL, USED] {
            self.write(u64::from(at), &[0; 4]);
        }
        let (memory, interrupt) = (Arc::clone(self.memory), Arc::clone(&self.interrupts) as _);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let queue = VirtQueue::new(0, queue, kick, Arc::clone(&memory), Arc::clone(&interrupt));
        let queues = vec![Some(queue)];
        self.device.activate(Activation { features, memory, queues, interrupt })
    }

    /// The driver resets the device.
    fn reset(&mut self) {
        self.worker = None;
    }

    fn host(&self) -> MutexGuard<'_, HostState> {
        self.host.lock().unwrap()
    }

    /// The host calls with these numbers fail, counted from the next one on.
    fn fail_calls(&self, numbers: &'static [usize]) {
        let mut host = self.host();
        let next = host.calls.len();
        host.fails = Box::new(move |call| numbers.contains(&(call - next)));
    }

    fn events(&self) -> Vec<MemEvent> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn u16_at(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Makes `chain`, whose links are set already, available in the descriptors from 0 on.
    fn offer_raw(&self, chain: &[Descriptor]) {
        for (at, descriptor) in (0..).zip(chain) {
            self.ring.desc_table().store(at, RawDescriptor::from(*descriptor)).unwrap();
        }
        self.offer_head(0);
    }

    /// Makes the chain from descriptor `head` on available.
    fn offer_head(&self, head: u16) {
        let idx = self.u16_at(u64::from(AVAIL) + 2);
        let entry = u64::from(AVAIL) + 4 + 2 * u64::from(idx % RING_SIZE);
        self.write(entry, &head.to_le_bytes());
        self.write(u64::from(AVAIL) + 2, &idx.wrapping_add(1).to_le_bytes());
    }

    /// Links `chain` up and makes it available.
    fn offer(&self, chain: &[Descriptor]) {
        let last = chain.len() as u16 - 1;
        let link = |(at, one): (u16, &Descriptor)| {
            let next = u16::from(at < last);
            Descriptor::new(one.addr().0, one.len(), one.flags() | next, at + 1)
        };
        let linked: Vec<_> = (0..).zip(chain).map(link).collect();
        self.offer_raw(&linked);
    }

    /// Serves what is there.
    fn kick(&mut self) {
        self.worker.as_mut().unwrap().queue_ready(0);
    }

    /// Number of answers so far.
    fn answered(&self) -> u16 {
        self.u16_at(u64::from(USED) + 2)
    }

    /// The head of the last chain answered and the bytes written to it.
    fn last_used(&self) -> (u32, u32) {
        let at = u64::from(self.answered().wrapping_sub(1) % RING_SIZE);
        let [head, len]: [u32; 2] =
            self.memory.read_obj(GuestAddress(u64::from(USED) + 4 + 8 * at)).unwrap();
        (head, len)
    }

    /// Offers `chain`, rings, and returns the used length: it is answered, and only once.
    fn send(&mut self, chain: &[Descriptor]) -> u32 {
        self.offer(chain);
        self.serve_one()
    }

    fn serve_one(&mut self) -> u32 {
        let before = self.answered();
        self.kick();
        assert_eq!(self.answered(), before.wrapping_add(1), "one answer for one chain");
        let (head, len) = self.last_used();
        assert_eq!(head, 0);
        len
    }

    /// Asks as Linux does, and returns the answer and the state.
    fn ask_raw(&mut self, request: &[u8; 24]) -> (u16, u16) {
        self.write(REQUEST, request);
        self.write(REPLY, &[0xee; 10]);
        assert_eq!(self.send(&[readable(REQUEST, 24), writable(REPLY, 10)]), 10);
        let mut reply = [0; 10];
        self.memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
        assert_eq!(reply[2..8], [0; 6], "padding");
        (u16::from_le_bytes([reply[0], reply[1]]), u16::from_le_bytes([reply[8], reply[9]]))
    }

    fn ask(&mut self, kind: u16, addr: u64, count: u16) -> u16 {
        self.ask_raw(&request(kind, addr, count)).0
    }

    fn plug(&mut self, first: u64, count: u16) -> u16 {
        self.ask(PLUG, BASE + first * BLOCK, count)
    }

    fn unplug(&mut self, first: u64, count: u16) -> u16 {
        self.ask(UNPLUG, BASE + first * BLOCK, count)
    }

    fn unplug_all(&mut self) -> u16 {
        self.ask(UNPLUG_ALL, 0, 0)
    }

    /// The answer to STATE, which must be an ACK.
    fn state(&mut self, first: u64, count: u16) -> u16 {
        let (answer, state) = self.ask_raw(&request(STATE, BASE + first * BLOCK, count));
        assert_eq!(answer, ACK);
        state
    }

    /// A field of the configuration space.
    fn config(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.device.config().read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A size in the configuration space, in blocks; it must be whole ones.
    fn config_blocks(&self, offset: usize) -> u64 {
        let bytes = self.config(offset);
        assert_eq!(bytes % BLOCK, 0);
        bytes / BLOCK
    }

    fn config_interrupts(&self) -> usize {
        self.interrupts.config.load(Ordering::Relaxed)
    }

    fn counter(&self, name: &str) -> u64 {
        let list = self.device.counters().list();
        list.into_iter().find(|(key, _)| *key == name).unwrap().1
    }

    /// The host, the configuration space and the guest see the same blocks plugged.
    fn assert_agreement(&mut self) {
        let open = self.host().open.clone();
        for (block, open) in (0..).zip(&open) {
            let plugged = self.handle.block_at(BASE + block * BLOCK).unwrap().plugged;
            assert_eq!(plugged, *open, "block {block}");
        }
        assert_eq!(self.config_blocks(PLUGGED), self.host().open_blocks());
    }
}

/// `struct virtio_mem_req`, with junk for padding.
fn request(kind: u16, addr: u64, count: u16) -> [u8; 24] {
    let mut bytes = [0xa5; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&addr.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}
