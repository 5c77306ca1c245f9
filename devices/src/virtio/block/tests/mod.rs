//! The device from the driver's side, over a disk that is a vector.

mod config;
mod flow;
mod requests;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Block, BlockOptions, Buffers, Completion, Engine, Geometry, Image, Operation};
use super::{Counters, Sectors};
use crate::guest_memory::GuestMemory;
use crate::virtio::device::{Activation, VirtioDevice};
use crate::virtio::queue::{Interrupt, VirtQueue};
use crate::virtio::testing::{self, Interrupts, RING_SIZE, Ring};
use crate::virtio::testing::{readable, writable};
use crate::virtio::worker::Worker;

const DISK_SECTORS: u64 = 64;

/// Where the tests put headers, data and status bytes.
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x3_0000;

/// Where the used ring is: the mock driver's own overlaps its available ring from entry 8 on.
const USED: u32 = 0x8000;

/// What a status byte holds before the device writes it.
const UNTOUCHED: u8 = 0xee;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const ALL: u64 = F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

/// What the test and the mock share.
struct State {
    disk: Vec<u8>,
    /// Operations carried out, in order.
    log: Vec<Operation>,
    /// Submitted and not yet finished; only filled while `hold`.
    held: Vec<(u16, Operation)>,
    hold: bool,
    fail: bool,
    done: Vec<Completion>,
    /// How long the engine takes over each operation it is given.
    push_takes: Duration,
    on_submit: Option<Box<dyn FnMut() + Send>>,
}

#[derive(Clone)]
struct Mock {
    state: Arc<Mutex<State>>,
    geometry: Geometry,
}

impl Mock {
    fn new() -> Self {
        let disk = (0..DISK_SECTORS * 512).map(|at| (at / 512 + at) as u8).collect();
        let (log, held, done) = (Vec::new(), Vec::new(), Vec::new());
        let state = State {
            disk,
            log,
            held,
            hold: false,
            fail: false,
            done,
            push_takes: Duration::ZERO,
            on_submit: None,
        };
        let geometry = Geometry {
            capacity: Sectors(DISK_SECTORS),
            readonly: false,
            logical_block: 1024,
            physical_block: 4096,
            transfer_alignment: 512,
        };
        Self { state: Arc::new(Mutex::new(state)), geometry }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Image for Mock {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn engine(&self, memory: &Arc<GuestMemory>, _depth: u16) -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(MockEngine { mock: self.clone(), memory: memory.clone(), new: Vec::new() }))
    }
}

struct MockEngine {
    mock: Mock,
    memory: Arc<GuestMemory>,
    new: Vec<(u16, Operation)>,
}

impl MockEngine {
    fn run(&self, state: &mut State, operation: &Operation) -> io::Result<()> {
        state.log.push(operation.clone());
        if state.fail {
            return Err(io::ErrorKind::Other.into());
        }
        let slices = |buffers: &Buffers| -> io::Result<Vec<(u64, usize)>> {
            let mut at = 0;
            let mut list = Vec::new();
            for slice in buffers.slices(&self.memory) {
                let len = slice.map_err(io::Error::other)?.len();
                list.push((at, len));
                at += len as u64;
            }
            Ok(list)
        };
        match operation {
            Operation::Read { range, into } => {
                slices(into)?;
                let start = range.start() as usize;
                let bytes = state.disk[start..start + range.len() as usize].to_vec();
                into.write(&self.memory, &bytes).unwrap();
            }
            Operation::Write { range, from } => {
                slices(from)?;
                let mut at = range.start() as usize;
                for slice in from.slices(&self.memory) {
                    let slice = slice.unwrap();
                    slice.copy_to(&mut state.disk[at..at + slice.len()]);
                    at += slice.len();
                }
            }
            Operation::WriteZeroes { range, .. } => {
                let start = range.start() as usize;
                state.disk[start..start + range.len() as usize].fill(0);
            }
            Operation::Flush | Operation::Discard(_) => {}
        }
        Ok(())
    }
}

impl Engine for MockEngine {
    fn push(&mut self, token: u16, operation: Operation) {
        thread::sleep(self.mock.state().push_takes);
        self.new.push((token, operation));
    }

    fn submit(&mut self) {
        let mock = self.mock.clone();
        let mut state = mock.state();
        for (token, operation) in std::mem::take(&mut self.new) {
            assert!(state.held.iter().all(|(other, _)| *other != token), "token used twice");
            if state.hold {
                state.held.push((token, operation));
            } else {
                let result = self.run(&mut state, &operation);
                state.done.push(Completion { token, result });
            }
        }
        if let Some(hook) = &mut state.on_submit {
            hook();
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.mock.state().done);
    }

    fn wait(&mut self) {
        let mock = self.mock.clone();
        let mut state = mock.state();
        for (token, operation) in std::mem::take(&mut state.held) {
            let result = self.run(&mut state, &operation);
            state.done.push(Completion { token, result });
        }
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A disk with one queue, and its driver.
struct Rig {
    mock: Mock,
    memory: &'static Arc<GuestMemory>,
    ring: Ring<'static>,
    interrupts: Arc<Interrupts>,
    worker: Box<dyn Worker>,
    counters: Arc<Counters>,
    next: u16,
}

impl Rig {
    fn new() -> Self {
        Self::with(Mock::new(), ALL)
    }

    fn with(mock: Mock, features: u64) -> Self {
        // Leaked, because the ring borrows it.
        let memory: &'static Arc<GuestMemory> = Box::leak(Box::new(testing::memory()));
        let ring = testing::ring(memory, 0);
        let interrupts = Arc::new(Interrupts::default());
        let mut queue: Queue = ring.create_queue().unwrap();
        queue.set_used_ring_address(Some(USED), None);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt: Interrupt = Arc::clone(&interrupts) as _;
        let mut block = Block::new(Box::new(mock.clone()), options());
        let activation = Activation {
            features,
            memory: Arc::clone(memory),
            queues: vec![Some(VirtQueue::new(
                0,
                queue,
                kick,
                Arc::clone(memory),
                Arc::clone(&interrupt),
            ))],
            interrupt,
        };
        let worker = block.activate(activation).unwrap().remove(0);
        memory.write_obj(UNTOUCHED, GuestAddress(STATUS)).unwrap();
        let counters = block.counters();
        Self { mock, memory, ring, interrupts, worker, counters, next: 0 }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn header(&self, kind: u32, sector: u64) {
        self.write(HEADER, &header(kind, sector));
    }

    /// Makes `chain` available; returns its head.
    fn offer(&mut self, chain: &[Descriptor]) -> u32 {
        let head = self.next;
        testing::offer(&self.ring, head, chain);
        self.next += chain.len() as u16;
        u32::from(head)
    }

    /// Offers `chain`, rings the doorbell, and returns the status byte and the used length.
    fn ask(&mut self, chain: &[Descriptor]) -> (u8, u32) {
        self.write(STATUS, &[UNTOUCHED]);
        let head = self.offer(chain);
        self.worker.queue_ready(0);
        let (answered, used) = *self.answers().last().unwrap();
        assert_eq!(answered, head);
        (self.bytes(STATUS, 1)[0], used)
    }

    /// Number of answers so far.
    fn answered(&self) -> u16 {
        self.memory.read_obj(GuestAddress(u64::from(USED) + 2)).unwrap()
    }

    /// The answers so far, up to one round of the ring: heads and used lengths.
    fn answers(&self) -> Vec<(u32, u32)> {
        let entry = |i: u16| GuestAddress(u64::from(USED) + 4 + 8 * u64::from(i));
        (0..self.answered())
            .map(|i| self.memory.read_obj::<[u32; 2]>(entry(i)).unwrap())
            .map(|[head, used]| (head, used))
            .collect()
    }

    fn interrupts(&self) -> usize {
        self.interrupts.used.load(Ordering::Relaxed)
    }

    fn counter(&self, name: &str) -> u64 {
        self.counters.list().into_iter().find(|(key, _)| *key == name).unwrap().1
    }

    fn log(&self) -> Vec<Operation> {
        self.mock.state().log.clone()
    }
}

fn options() -> BlockOptions {
    BlockOptions { name: "_disk0".into(), queues: 1, queue_size: RING_SIZE, serial: "T1".into() }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// The payload of a discard or write-zeroes request.
fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// A request as Linux frames it: header, what the device reads, what it writes, status.
fn chain(reads: u32, writes: u32) -> Vec<Descriptor> {
    let mut chain = vec![readable(HEADER, 16)];
    chain.extend((reads > 0).then(|| readable(DATA, reads)));
    chain.extend((writes > 0).then(|| writable(DATA, writes)));
    chain.push(writable(STATUS, 1));
    chain
}
