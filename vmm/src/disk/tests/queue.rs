//! A whole disk: driver's ring, device thread, engine, file.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use devices::hypervisor::{Hypervisor, MsiVectors, WorkerBody};
use devices::readers::Readers;
use devices::virtio::block::{Block, BlockOptions};
use devices::virtio::device::{Activation, VirtioDevice};
use devices::virtio::queue::{InterruptSink, VirtQueue};
use devices::virtio::worker::{Worker, WorkerSet};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

const RING: u16 = 64;
const AVAILABLE_INDEX: GuestAddress = GuestAddress(RING as u64 * 16 + 2);
const USED: u64 = 0x2000;
const USED_INDEX: GuestAddress = GuestAddress(USED + 2);
const HEADERS: u64 = 0x4000;
const STATUSES: u64 = 0x5000;
const DATA: u64 = 0x1_0000;

/// Requests in flight at a time: each takes three descriptors.
const SLOTS: u16 = 20;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct Host;

impl Hypervisor for Host {
    fn readers(&self) -> Arc<Readers> {
        Arc::default()
    }

    fn msi_vectors(&self, _count: u16) -> io::Result<Box<dyn MsiVectors>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn bind_doorbell(&self, _address: u64, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn unbind_doorbell(&self, _address: u64, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn spawn(&self, name: &str, body: WorkerBody) -> io::Result<JoinHandle<Box<dyn Worker>>> {
        thread::Builder::new().name(name.into()).spawn(body)
    }
}

struct NoInterrupt;

impl InterruptSink for NoInterrupt {
    fn queue_used(&self, _index: u16) {}
    fn config_changed(&self) {}
    fn needs_reset(&self) {
        panic!("the driver is well-behaved");
    }
}

/// A driver with [`SLOTS`] requests of eight sectors each.
struct Driver {
    memory: Arc<GuestMemory>,
    kick: EventFd,
    offered: u16,
    seen: u16,
}

impl Driver {
    fn offer(&mut self, slot: u16, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let at = |base, size| base + u64::from(slot) * size;
        let write = |bytes: &[u8], to| self.memory.write_slice(bytes, GuestAddress(to)).unwrap();
        write(&header, at(HEADERS, 16));
        write(&[0xff], at(STATUSES, 1));
        let head = slot * 3;
        let data_flags = if kind == 0 { NEXT | WRITE } else { NEXT };
        for (i, (address, len, flags)) in [
            (at(HEADERS, 16), 16, NEXT),
            (at(DATA, 4096), 4096, data_flags),
            (at(STATUSES, 1), 1, WRITE),
        ]
        .into_iter()
        .enumerate()
        {
            let index = head + i as u16;
            let descriptor = Descriptor::new(address, len, flags, index + 1);
            let place = GuestAddress(u64::from(index) * 16);
            self.memory.write_obj(descriptor, place).unwrap();
        }
        let entry = AVAILABLE_INDEX.0 + 2 + u64::from(self.offered % RING) * 2;
        write(&head.to_le_bytes(), entry);
        self.offered = self.offered.wrapping_add(1);
        let index = self.offered;
        self.memory.store(index, AVAILABLE_INDEX, std::sync::atomic::Ordering::Release).unwrap();
        self.kick.write(1).unwrap();
    }

    /// Waits for an answer; returns its slot.
    fn answer(&mut self) -> u16 {
        let start = Instant::now();
        let load = || {
            let order = std::sync::atomic::Ordering::Acquire;
            self.memory.load::<u16>(USED_INDEX, order).unwrap()
        };
        while load() == self.seen {
            assert!(start.elapsed() < Duration::from_secs(20), "no answer");
            thread::yield_now();
        }
        let entry = GuestAddress(USED + 4 + u64::from(self.seen % RING) * 8);
        self.seen = self.seen.wrapping_add(1);
        let slot = (self.memory.read_obj::<u32>(entry).unwrap() / 3) as u16;
        let status = GuestAddress(STATUSES + u64::from(slot));
        assert_eq!(self.memory.read_obj::<u8>(status).unwrap(), 0);
        slot
    }

    fn data(&self, slot: u16) -> GuestAddress {
        GuestAddress(DATA + u64::from(slot) * 4096)
    }
}

fn start(image: DiskImage) -> (Driver, WorkerSet) {
    let (memory, _) = memory();
    let ring = MockSplitQueue::create(memory.as_ref(), GuestAddress(0), RING);
    let mut queue: Queue = ring.create_queue().unwrap();
    queue.set_used_ring_address(Some(USED as u32), None);
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let bell = kick.try_clone().unwrap();
    let interrupt = Arc::new(NoInterrupt);
    let queue = VirtQueue::new(0, queue, bell, Arc::clone(&memory), Arc::clone(&interrupt) as _);
    let name = "disk".to_owned();
    let options = BlockOptions { name, queues: 1, queue_size: RING, serial: String::new() };
    let features = 1 << 9;
    let activation =
        Activation { features, memory: Arc::clone(&memory), queues: vec![Some(queue)], interrupt };
    let workers = Block::new(Box::new(image), options).activate(activation).unwrap();
    (Driver { memory, kick, offered: 0, seen: 0 }, WorkerSet::parked(workers))
}

/// Writes the image with its own blocks reversed, through pauses, and reads it back.
#[test]
fn a_busy_disk_keeps_its_data_through_pauses() {
    const CHUNKS: u16 = 64;
    for (uring, direct) in [(false, false), (true, false), (true, true)] {
        let file = image_file(None);
        let Ok(image) = open(file.path(), false, direct) else {
            eprintln!("not tested, no O_DIRECT here");
            continue;
        };
        let image = if uring { image } else { image.without_uring() };
        let (mut driver, mut workers) = start(image);
        let chunk = |number: u16| vec![number as u8 ^ 0x5a; 4096];
        workers.resume(&Host).unwrap();
        for kind in [1, 0] {
            let mut sent = 0..CHUNKS;
            let mut holds = [0; SLOTS as usize];
            let mut waiting = 0;
            for slot in (0..SLOTS).chain(std::iter::repeat_n(u16::MAX, CHUNKS as usize)) {
                let slot = if slot == u16::MAX {
                    let slot = driver.answer();
                    waiting -= 1;
                    if kind == 0 {
                        let mut bytes = vec![0; 4096];
                        driver.memory.read_slice(&mut bytes, driver.data(slot)).unwrap();
                        assert_eq!(bytes, chunk(holds[usize::from(slot)]));
                    }
                    slot
                } else {
                    slot
                };
                let Some(number) = sent.next() else { continue };
                holds[usize::from(slot)] = number;
                if kind == 1 {
                    driver.memory.write_slice(&chunk(number), driver.data(slot)).unwrap();
                }
                driver.offer(slot, kind, u64::from(CHUNKS - 1 - number) * 8);
                waiting += 1;
                if number % 16 == 5 {
                    workers.pause();
                    workers.resume(&Host).unwrap();
                }
            }
            assert_eq!(waiting, 0);
        }
        workers.pause();
        let expected: Vec<u8> = (0..CHUNKS).rev().flat_map(chunk).collect();
        assert_eq!(std::fs::read(file.path()).unwrap(), expected, "{uring} {direct}");
    }
}
