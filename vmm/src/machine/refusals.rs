//! Accesses to closed memory: to blocks of a region for which the guest has no memory.
//!
//! ```text
//!  vCPU:   KVM_RUN ends with an error           kvm::vcpu::Fault ------------------+
//!          KVM emulates the instruction, and    Bus -> ClosedMemory --+            |
//!          passes it on as memory-mapped I/O                          v            v
//!  device: Region::get_slice refuses            RefusalWatch ----> Refusals --> monitor
//! ```
//! What becomes of the VM is the monitor's to decide, on its own thread: whoever meets the access may
//! hold a device's lock. A guest can make millions of them, so the first, second, fourth, and so on
//! is passed on and all are counted.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use devices::bus::{Bus, BusDevice, Overlap};
use devices::guest_memory::{GuestMemory, Region};
use devices::sync::lock;
use log::debug;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryRegion;
use vmm_sys_util::eventfd::EventFd;

/// Who made an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accessor {
    /// The guest's own instructions.
    Vcpu,
    /// A device, which the guest had sent there.
    Device,
}

impl fmt::Display for Accessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vcpu => "vcpu",
            Self::Device => "device",
        })
    }
}

/// An access that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Guest-physical address.
    pub address: u64,
    /// Who made it.
    pub by: Accessor,
    /// How many there have been of this kind.
    pub count: u64,
}

/// The refused accesses of a machine. Any thread adds, the monitor takes.
pub struct Refusals {
    by_vcpus: AtomicU64,
    by_devices: AtomicU64,
    /// Passed on and not taken yet: at most one for each power of two.
    recent: Mutex<Vec<Refusal>>,
    signal: EventFd,
}

impl Refusals {
    /// None yet; `signal` is raised when there are some to take.
    pub(super) fn new(signal: EventFd) -> Arc<Self> {
        let (by_vcpus, by_devices) = Default::default();
        Arc::new(Self { by_vcpus, by_devices, recent: Mutex::default(), signal })
    }

    /// Hears of devices that are sent to closed blocks of `memory`.
    pub(super) fn watch(self: &Arc<Self>, memory: &GuestMemory) {
        for region in gated(memory) {
            let refusals = Arc::clone(self);
            region.watch(Arc::new(move |address| refusals.add(address.0, Accessor::Device)));
        }
    }

    /// Stands on `bus` where `memory` can be closed: KVM passes on what it emulates there.
    ///
    /// # Errors
    /// Something else is there.
    pub(super) fn stand_in(
        self: &Arc<Self>,
        memory: &GuestMemory,
        bus: &mut Bus,
    ) -> Result<(), Overlap> {
        gated(memory).try_for_each(|region| {
            let start = region.start_addr().0;
            let closed = ClosedMemory { start, refusals: Arc::clone(self) };
            bus.insert(start..start + region.len(), Arc::new(closed))
        })
    }

    /// One more access.
    pub(super) fn add(&self, address: u64, by: Accessor) {
        let counter = match by {
            Accessor::Vcpu => &self.by_vcpus,
            Accessor::Device => &self.by_devices,
        };
        let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
        if !count.is_power_of_two() {
            return;
        }
        self.recent().push(Refusal { address, by, count });
        if let Err(error) = self.signal.write(1) {
            debug!("signalling a refused access: {error}");
        }
    }

    /// Those to be reported, oldest first; each is returned once.
    pub fn take(&self) -> Vec<Refusal> {
        std::mem::take(&mut self.recent())
    }

    /// Names and values, for `vm.counters`.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("refused_vcpu", self.by_vcpus.load(Ordering::Relaxed)),
            ("refused_device", self.by_devices.load(Ordering::Relaxed)),
        ]
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Vec<Refusal>> {
        lock(&self.recent)
    }
}

fn gated(memory: &GuestMemory) -> impl Iterator<Item = &Region> {
    memory.iter().filter(|region| region.is_gated())
}

/// A region as the bus sees it: reads as all ones, takes no write.
struct ClosedMemory {
    start: u64,
    refusals: Arc<Refusals>,
}

impl BusDevice for ClosedMemory {
    fn read(&self, offset: u64, _data: &mut [u8]) {
        self.refusals.add(self.start + offset, Accessor::Vcpu);
    }

    fn write(&self, offset: u64, _data: &[u8]) {
        self.refusals.add(self.start + offset, Accessor::Vcpu);
    }
}

#[cfg(test)]
mod tests {
    use devices::guest_memory::Gate;
    use vm_memory::{Bytes, GuestAddress, MmapRegion};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const START: u64 = 4 << 30;

    fn memory() -> GuestMemory {
        let gate = Arc::new(Gate::closed(12, 4));
        gate.set(1, 1, true);
        let mapping = || MmapRegion::new(0x4000).unwrap();
        let regions = vec![
            Region::open(mapping(), GuestAddress(0)).unwrap(),
            Region::new(mapping(), GuestAddress(START), Some(gate), Box::new(())).unwrap(),
        ];
        GuestMemory::from_regions(regions).unwrap()
    }

    fn refusals(memory: &GuestMemory) -> Arc<Refusals> {
        let refusals = Refusals::new(EventFd::new(EFD_NONBLOCK).unwrap());
        refusals.watch(memory);
        refusals
    }

    #[test]
    fn a_device_in_closed_memory_is_told_with_its_address() {
        let memory = memory();
        let refusals = refusals(&memory);
        memory.write_obj(1u64, GuestAddress(START + 0x1000)).unwrap();
        memory.write_obj(1u64, GuestAddress(0x5000)).unwrap_err();
        assert_eq!(refusals.take(), []);
        memory.write_obj(1u64, GuestAddress(START + 0x2008)).unwrap_err();
        let refusal = Refusal { address: START + 0x2008, by: Accessor::Device, count: 1 };
        assert_eq!(refusals.take(), [refusal]);
        assert_eq!(refusals.take(), []);
        refusals.signal.read().unwrap();
    }

    #[test]
    fn a_vcpu_reads_all_ones_and_its_writes_are_dropped() {
        let memory = memory();
        let refusals = refusals(&memory);
        let mut bus = Bus::default();
        refusals.stand_in(&memory, &mut bus).unwrap();
        let mut data = [0; 4];
        assert!(bus.read(START + 8, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(bus.write(START + 0x3ffc, &data));
        assert!(!bus.read(0x1000, &mut data), "ordinary memory is not stood in for");
        let told: Vec<_> = refusals.take().iter().map(|one| (one.address, one.by)).collect();
        assert_eq!(told, [(START + 8, Accessor::Vcpu), (START + 0x3ffc, Accessor::Vcpu)]);
    }

    #[test]
    fn a_million_accesses_are_counted_and_twenty_told() {
        let refusals = refusals(&memory());
        (0..1_000_000).for_each(|address| refusals.add(address, Accessor::Vcpu));
        assert_eq!(refusals.take().len(), 20);
        assert_eq!(refusals.list(), [("refused_vcpu", 1_000_000), ("refused_device", 0)]);
    }
}
