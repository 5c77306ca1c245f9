//! What a guest's request costs the virtio-mem device: from the doorbell to the used ring, over a
//! host that does nothing. The region has 1 TiB in 2 MiB blocks.
//!
//! Beside the partitioner's part (`memctl`'s `accounting`) this has the queue, the descriptors, the
//! configuration space and the observer. Not in it are the wake-up of the device's thread and the
//! host's calls.

use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use devices::guest_memory::{GuestMemory, Region};
use devices::virtio::device::{Activation, VirtioDevice};
use devices::virtio::mem::{HostBlocks, Mem, MemHandle};
use devices::virtio::queue::{InterruptSink, VirtQueue};
use devices::virtio::worker::Worker;
use memctl::{Blocks, Bytes as Size, Cookie, Geometry, Layout, PartitionId, Policy};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BASE: u64 = 1 << 40;
const BLOCK: u64 = 2 << 20;

/// Where the guest has its rings and buffers.
const TABLE: u32 = 0;
const AVAIL: u32 = 0x1000;
const USED: u32 = 0x2000;
const REQUEST: u64 = 0x3000;
const REPLY: u64 = 0x4000;

const QUEUE_SIZE: u16 = 64;
const RECORD_ROOM: u32 = 4152;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const STATE: u16 = 3;
const PART_PLUG: u16 = 0x100;
const PART_RELEASE: u16 = 0x101;
const PART_QUERY: u16 = 0x103;
const PART_NOTIFY: u16 = 0x104;

const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
const F_PARTITION: u64 = 1 << 56;

/// A host whose part costs nothing.
struct NoHost;

impl HostBlocks for NoHost {
    fn open(&mut self, range: Range<u64>) -> io::Result<()> {
        black_box(range);
        Ok(())
    }

    fn release(&mut self, range: Range<u64>) -> io::Result<()> {
        black_box(range);
        Ok(())
    }
}

struct NoInterrupt;

impl InterruptSink for NoInterrupt {
    fn queue_used(&self, index: u16) {
        black_box(index);
    }

    fn config_changed(&self) {}

    fn needs_reset(&self) {
        panic!("the queue is sound");
    }
}

/// A device and the driver's half of its queue, with one request under way at a time.
struct Guest {
    handle: MemHandle,
    memory: Arc<GuestMemory>,
    worker: Box<dyn Worker>,
    /// The available index.
    sent: u16,
}

impl Guest {
    fn new(layout: Layout, features: u64) -> Self {
        let mapping = MmapRegion::new(1 << 20).expect("room for a little RAM");
        let ram = Region::open(mapping, GuestAddress(0)).expect("RAM at 0");
        let memory = GuestMemory::from_regions(vec![ram]).expect("one region");
        let memory = Arc::new(memory);
        let mut device = Mem::new(
            layout,
            None,
            Box::new(NoHost),
            Box::new(|event| {
                black_box(event);
            }),
        );
        let handle = device.handle();
        let queue = queue(&memory);
        let (memory_of_device, interrupt) = (Arc::clone(&memory), Arc::new(NoInterrupt) as _);
        let activation =
            Activation { features, memory: memory_of_device, queues: vec![Some(queue)], interrupt };
        let mut workers = device.activate(activation).expect("features that will do");
        let worker = workers.pop().expect("a worker for the queue");
        let mut made = Self { handle, memory, worker, sent: 0 };
        made.describe();
        made
    }

    /// A device of shared memory, all of it wanted.
    fn plain() -> Self {
        let geometry = geometry();
        let made = Self::new(Layout::shared_only(geometry), F_UNPLUGGED_INACCESSIBLE);
        made.handle.resize_shared(geometry.size(), None).expect("the region is its shared area");
        made
    }

    /// A device of partitions with `others` that are plugged, of one block each.
    fn channel(others: u32) -> Self {
        let layout =
            Layout { geometry: geometry(), shared_area: Blocks::ZERO, max_partitions: others + 1 };
        let mut made = Self::new(layout, F_UNPLUGGED_INACCESSIBLE | F_PARTITION);
        for other in 0..others {
            let id = made.add(&format!("fn-{other}"), 1);
            made.part(PART_PLUG, id);
        }
        made
    }

    /// Request and answer have the same two descriptors each time.
    fn describe(&mut self) {
        let chain = [Descriptor::new(REQUEST, 24, 1, 1), Descriptor::new(REPLY, RECORD_ROOM, 2, 0)];
        for (at, descriptor) in (0..).zip(chain) {
            let place = GuestAddress(u64::from(TABLE) + 16 * at);
            self.memory.write_obj(RawDescriptor::from(descriptor), place).expect("in RAM");
        }
    }

    fn add(&self, name: &str, blocks: u64) -> PartitionId {
        let (name, policy) = (name.parse().expect("a plain name"), Policy::default());
        let size = Size::new(blocks * BLOCK);
        let added = self.handle.add_partition(name, Cookie(0), size, policy, None);
        added.expect("the region has room").id
    }

    /// Sends a request, which must be ACKed.
    fn ask(&mut self, request: &[u8; 24]) {
        self.memory.write_slice(request, GuestAddress(REQUEST)).expect("in RAM");
        let entry = u64::from(AVAIL) + 4 + 2 * u64::from(self.sent % QUEUE_SIZE);
        self.memory.write_obj(0u16, GuestAddress(entry)).expect("in RAM");
        self.sent = self.sent.wrapping_add(1);
        self.memory.write_obj(self.sent, GuestAddress(u64::from(AVAIL) + 2)).expect("in RAM");
        self.worker.queue_ready(0);
        let answer: u16 = self.memory.read_obj(GuestAddress(REPLY)).expect("in RAM");
        assert_eq!(answer, 0, "ACK");
    }

    fn by_address(&mut self, kind: u16, first: u64, count: u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&(BASE + first * BLOCK).to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        self.ask(&request);
    }

    fn part(&mut self, kind: u16, id: PartitionId) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..12].copy_from_slice(&id.0.to_le_bytes());
        // PART_NOTIFY: so much is in use.
        request[14] = 6;
        self.ask(&request);
    }
}

fn geometry() -> Geometry {
    Geometry::new(BASE, Size::new(BLOCK), Size::gib(1024)).expect("whole blocks")
}

/// The device's half of the queue.
fn queue(memory: &Arc<GuestMemory>) -> VirtQueue {
    let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
    queue.set_desc_table_address(Some(TABLE), Some(0));
    queue.set_avail_ring_address(Some(AVAIL), Some(0));
    queue.set_used_ring_address(Some(USED), Some(0));
    queue.set_ready(true);
    let kick = EventFd::new(EFD_NONBLOCK).expect("a file descriptor");
    VirtQueue::new(0, queue, kick, Arc::clone(memory), Arc::new(NoInterrupt))
}

/// One PLUG and one UNPLUG of the same blocks: half of it is a request.
fn by_address(c: &mut Criterion) {
    let mut group = c.benchmark_group("device/1TiB");
    let mut guest = Guest::plain();
    for count in [1, 64, 4096, 65535] {
        group.bench_function(BenchmarkId::new("plug+unplug", count), |b| {
            b.iter(|| {
                guest.by_address(PLUG, 100_001, black_box(count));
                guest.by_address(UNPLUG, 100_001, black_box(count));
            });
        });
    }
    group.bench_function("state/64", |b| b.iter(|| guest.by_address(STATE, 101, black_box(64))));
    group.finish();
}

/// PART_PLUG and PART_RELEASE among many partitions; the host's wish in between is not measured.
fn by_partition(c: &mut Criterion) {
    let mut group = c.benchmark_group("device/1TiB/4095-partitions");
    let mut guest = Guest::channel(4095);
    for blocks in [64, 512, 65536] {
        for (name, kind) in [("part_plug", PART_PLUG), ("part_release", PART_RELEASE)] {
            group.bench_function(BenchmarkId::new(name, blocks), |b| {
                b.iter_custom(|iterations| {
                    (0..iterations).map(|_| life(&mut guest, blocks, kind)).sum()
                });
            });
        }
    }
    let id = PartitionId(2000);
    group.bench_function("part_query", |b| b.iter(|| guest.part(PART_QUERY, black_box(id))));
    group.bench_function("part_notify", |b| b.iter(|| guest.part(PART_NOTIFY, black_box(id))));
    group.finish();
}

/// A partition comes and goes. Returns what the request `measured` took.
fn life(guest: &mut Guest, blocks: u64, measured: u16) -> Duration {
    let id = guest.add("measured", blocks);
    let mut spent = Duration::ZERO;
    for kind in [PART_PLUG, PART_RELEASE] {
        let start = Instant::now();
        guest.part(kind, black_box(id));
        if kind == measured {
            spent = start.elapsed();
        }
    }
    spent
}

criterion_group!(requests, by_address, by_partition);
criterion_main!(requests);
