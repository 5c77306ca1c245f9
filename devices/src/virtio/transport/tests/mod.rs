//! The transport as a driver sees it: through configuration space and the BAR, and nothing else.

mod bring_up;
mod hostile;
mod registers;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{GuestAddress, MmapRegion};

use crate::bus::Bus;
use crate::guest_memory::{GuestMemory, Region};
use crate::pci::mock::{HostLog, MockHost};
use crate::pci::root::ECAM_SIZE;
use crate::pci::{Apertures, Bdf, PciFunction, PciRoot};
use crate::virtio::device::{Activation, ConfigSpace, VirtioDevice};
use crate::virtio::queue::{Interrupt, VirtQueue};
use crate::virtio::transport::VirtioPci;
use crate::virtio::worker::Worker;

const FEATURE: u64 = 1 << 5;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const WRITTEN: u32 = 7;
const QUEUE_SIZE: u16 = 16;

/// What a test can see and change of its device.
#[derive(Default)]
struct Shared {
    config: Arc<ConfigSpace>,
    /// Activations that succeeded.
    activations: Mutex<Vec<(u64, Vec<bool>)>>,
    refuses: AtomicBool,
    workers: AtomicUsize,
    interrupt: Mutex<Option<Interrupt>>,
}

/// Answers each chain with [`WRITTEN`]; has two queues.
struct Echo(Arc<Shared>);

impl VirtioDevice for Echo {
    fn device_id(&self) -> u16 {
        4
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, 2 * QUEUE_SIZE]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.0.config)
    }

    fn activate(&mut self, activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        if self.0.refuses.load(Ordering::Relaxed) {
            return Err(io::Error::other("no such backend"));
        }
        let enabled = activation.queues.iter().map(Option::is_some).collect();
        self.0.activations.lock().unwrap().push((activation.features, enabled));
        *self.0.interrupt.lock().unwrap() = Some(activation.interrupt);
        let worker = |queue| {
            self.0.workers.fetch_add(1, Ordering::Relaxed);
            Box::new(EchoWorker { queue, shared: Arc::clone(&self.0) }) as Box<dyn Worker>
        };
        Ok(activation.queues.into_iter().flatten().map(worker).collect())
    }
}

struct EchoWorker {
    queue: VirtQueue,
    shared: Arc<Shared>,
}

impl Worker for EchoWorker {
    fn name(&self) -> String {
        format!("echo{}", self.queue.index())
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        vec![&self.queue]
    }

    fn queue_ready(&mut self, _position: usize) {
        self.queue.drain(|| true, |_| Some(WRITTEN));
    }
}

impl Drop for EchoWorker {
    fn drop(&mut self) {
        self.shared.workers.fetch_sub(1, Ordering::Relaxed);
    }
}

fn memory() -> Arc<GuestMemory> {
    let region = Region::open(MmapRegion::new(1 << 20).unwrap(), GuestAddress(0)).unwrap();
    Arc::new(GuestMemory::from_regions(vec![region]).unwrap())
}

/// An empty queue in guest RAM. `at` is not 0.
fn ring(memory: &GuestMemory, at: u64) -> MockSplitQueue<'_, GuestMemory> {
    MockSplitQueue::create(memory, GuestAddress(at), QUEUE_SIZE)
}

/// Its descriptor table, available ring and used ring.
fn addresses(ring: &MockSplitQueue<'_, GuestMemory>) -> [u64; 3] {
    [ring.desc_table_addr().0, ring.avail_addr().0, ring.used_addr().0]
}

/// Makes a buffer available.
fn offer(ring: &MockSplitQueue<'_, GuestMemory>) {
    let buffer = RawDescriptor::from(Descriptor::new(0x8000, 0x100, 2, 0));
    ring.add_desc_chains(&[buffer], ring.avail().idx().load()).unwrap();
}

/// Waits until `reached`, which a device thread brings about.
fn wait_until(reached: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < deadline, "not reached in 10 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const ECAM: u64 = 0xd000_0000;
const LOW: u64 = 0xe000_0000;
const HIGH: u64 = 0x10_0000_0000;

/// Where a capability points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    offset: u64,
    length: u64,
}

/// A machine with one [`Echo`], and a driver's way to use it.
struct Driver {
    bus: Bus,
    root: Arc<PciRoot>,
    function: Arc<VirtioPci>,
    shared: Arc<Shared>,
    host: Arc<HostLog>,
    memory: Arc<GuestMemory>,
    bdf: Bdf,
}

impl Driver {
    /// The device is attached and its memory decoded.
    fn new() -> Self {
        let (host, memory) = (MockHost::default(), memory());
        let log = Arc::clone(&host.log);
        let config = Arc::new(ConfigSpace::new([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
        let shared = Arc::new(Shared { config, ..Shared::default() });
        let echo = Box::new(Echo(Arc::clone(&shared)));
        let function = VirtioPci::new(echo, Arc::clone(&memory), Arc::new(host)).unwrap();
        let function = Arc::new(function);
        let root =
            PciRoot::new(Apertures { low: LOW..LOW + (1 << 20), high: HIGH..HIGH + (1 << 20) });
        let bdf = root.attach(Arc::clone(&function) as Arc<dyn PciFunction>).unwrap();
        let mut bus = Bus::default();
        bus.insert(ECAM..ECAM + ECAM_SIZE, root.ecam()).unwrap();
        for (range, device) in root.windows() {
            bus.insert(range, device).unwrap();
        }
        let driver = Self { bus, root, function, shared, host: log, memory, bdf };
        driver.set_config(4, 2, 2);
        driver
    }

    fn read(&self, address: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.bus.read(address, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn write(&self, address: u64, len: usize, value: u64) {
        self.bus.write(address, &value.to_le_bytes()[..len]);
    }

    fn config_address(&self, register: u64) -> u64 {
        ECAM + (u64::from(self.bdf.slot()) << 15) + register
    }

    fn config(&self, register: u64, len: usize) -> u64 {
        self.read(self.config_address(register), len)
    }

    fn set_config(&self, register: u64, len: usize, value: u64) {
        self.write(self.config_address(register), len, value);
    }

    /// Registers of the capabilities, in list order.
    fn capabilities(&self) -> Vec<u64> {
        let next = |&at: &u64| Some(self.config(at + 1, 1)).filter(|&next| next != 0);
        std::iter::successors(Some(self.config(0x34, 1)), next).collect()
    }

    /// The virtio capability of type `kind`.
    fn capability(&self, kind: u64) -> u64 {
        let is = |&at: &u64| self.config(at, 1) == 9 && self.config(at + 3, 1) == kind;
        self.capabilities().into_iter().find(is).unwrap()
    }

    fn msix_capability(&self) -> u64 {
        self.capabilities().into_iter().find(|&at| self.config(at, 1) == 0x11).unwrap()
    }

    fn bar(&self) -> u64 {
        self.config(0x10, 8) & !0xf
    }

    fn area(&self, kind: u64) -> Area {
        let at = self.capability(kind);
        Area { offset: self.config(at + 8, 4), length: self.config(at + 12, 4) }
    }

    fn common(&self, register: u64, len: usize) -> u64 {
        self.read(self.bar() + self.area(1).offset + register, len)
    }

    fn set_common(&self, register: u64, len: usize, value: u64) {
        self.write(self.bar() + self.area(1).offset + register, len, value);
    }

    fn status(&self) -> u64 {
        self.common(0x14, 1)
    }

    fn set_status(&self, status: u64) {
        self.set_common(0x14, 1, status);
    }

    fn offered(&self) -> u64 {
        let half = |select| {
            self.set_common(0, 4, select);
            self.common(4, 4)
        };
        half(0) | half(1) << 32
    }

    fn accept(&self, features: u64) {
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.set_common(8, 4, select);
            self.set_common(0xc, 4, half);
        }
    }

    /// Up to FEATURES_OK.
    fn negotiate(&self, features: u64) {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        self.accept(features);
        self.set_status(11);
    }

    fn set_up(&self, index: u64, rings: [u64; 3], vector: u64) {
        self.set_common(0x16, 2, index);
        self.set_common(0x18, 2, QUEUE_SIZE.into());
        self.set_common(0x1a, 2, vector);
        for (register, address) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            self.set_common(register, 8, address);
        }
        self.set_common(0x1c, 2, 1);
    }

    /// Address of the doorbell of queue `index`.
    fn doorbell(&self, index: u64) -> u64 {
        self.set_common(0x16, 2, index);
        let multiplier = self.config(self.capability(2) + 16, 4);
        self.bar() + self.area(2).offset + self.common(0x1e, 2) * multiplier
    }

    fn kick(&self, index: u64) {
        self.write(self.doorbell(index), 2, index);
    }

    /// Turns MSI-X on with every vector open.
    fn enable_msix(&self) {
        let at = self.msix_capability();
        let table = self.bar() + (self.config(at + 4, 4) & !7);
        for vector in 0..=self.config(at + 2, 2) & 0x7ff {
            self.write(table + vector * 16, 4, 0xfee0_0000);
            self.write(table + vector * 16 + 8, 4, 0x40 + vector);
            self.write(table + vector * 16 + 12, 4, 0);
        }
        self.set_config(at + 2, 2, 1 << 15);
    }

    /// A device with queue 0 at `ring` on vector 1, and configuration changes on vector 0.
    fn bring_up(&self, ring: &MockSplitQueue<'_, GuestMemory>) {
        self.enable_msix();
        self.negotiate(VERSION_1 | FEATURE);
        self.set_common(0x10, 2, 0);
        self.set_up(0, addresses(ring), 1);
        self.set_status(15);
    }

    fn counter(&self, name: &str) -> u64 {
        use crate::lifecycle::Lifecycle;
        self.function.counters().into_iter().find(|(n, _)| *n == name).unwrap().1
    }

    fn workers(&self) -> usize {
        self.shared.workers.load(Ordering::Relaxed)
    }
}
