//! The one place that talks to KVM.
//!
//! - [`Vm`]: the virtual machine: memory slots, interrupt lines, doorbells.
//! - [`vcpu`]: the virtual CPUs and their threads.
//! - [`cpuid`]: what a guest is told of its CPU. Pure.

pub mod cpuid;
pub mod exits;
mod fault;
mod irq;
mod locate;
pub mod vcpu;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use devices::guest_memory::{GuestMemory, Region};
use devices::hypervisor::{Hypervisor, MsiVectors, WorkerBody};
use devices::readers::Readers;
use devices::virtio::worker::Worker;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_clock_data, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use irq::{MsiBlock, Routes};

/// Three pages below 4 GiB that KVM on Intel hosts needs for real mode; not RAM, not a device.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// The largest device thread needs far less; the default of 8 MiB would only blur the map.
const DEVICE_STACK: usize = 256 << 10;

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable KVM here.
    #[error("cannot open /dev/kvm; load kvm_intel or kvm_amd and check its permissions")]
    Open(#[source] kvm_ioctls::Error),
    /// The host's KVM is too old.
    #[error("the host's KVM lacks {0:?}")]
    Missing(Cap),
    /// A call failed.
    #[error("KVM refused: {what}")]
    Call {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: kvm_ioctls::Error,
    },
    /// A region of guest memory has no host address.
    #[error("guest memory at {0:#x} has no host address")]
    Memory(u64),
    /// The host gave no thread.
    #[error("cannot start a vCPU thread")]
    Thread(#[source] io::Error),
}

/// Turns a failed call into an [`Error`] that says what was asked.
fn call(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Call { what, source }
}

/// A virtual machine with its in-kernel interrupt controllers. Shared by all threads: every call
/// is one KVM serialises itself, except routing, which has a lock.
pub struct Vm {
    fd: VmFd,
    supported: CpuId,
    routes: Mutex<Routes>,
    readers: Arc<Readers>,
}

impl Vm {
    /// Makes an empty machine: no memory, no vCPU.
    ///
    /// # Errors
    /// No KVM, or one without what Tessera needs.
    pub fn new() -> Result<Arc<Self>, Error> {
        let kvm = Kvm::new().map_err(Error::Open)?;
        let required =
            [Cap::Irqchip, Cap::Ioeventfd, Cap::Irqfd, Cap::UserMemory, Cap::TscDeadlineTimer];
        if let Some(missing) = required.into_iter().find(|&cap| !kvm.check_extension(cap)) {
            return Err(Error::Missing(missing));
        }
        let fd = kvm.create_vm().map_err(call("create a VM"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(call("set the identity map"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(call("set the TSS address"))?;
        fd.create_irq_chip().map_err(call("create the interrupt controllers"))?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(call("list the CPU features"))?;
        Ok(Arc::new(Self { fd, supported, routes: Mutex::default(), readers: Arc::default() }))
    }

    /// The threads of this machine that touch guest memory.
    pub fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// The CPUID leaves that host and KVM support.
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.supported
    }

    /// Gives the guest its RAM: one slot per region, for the life of the machine.
    ///
    /// # Errors
    /// The host refused a slot.
    pub fn map_memory(&self, memory: &GuestMemory) -> Result<(), Error> {
        let mut regions = memory.iter().enumerate();
        regions.try_for_each(|(slot, region)| self.map_part(slot, region, 0..region.len()))
    }

    /// Leaves the guest only the open blocks of `memory`, for a machine at its end whose vCPUs have
    /// ended: KVM then tells where a vCPU reaches for the others. Costs the guest all page tables.
    ///
    /// # Errors
    /// The host refused a slot; some may be gone.
    pub fn map_open_blocks(&self, memory: &GuestMemory) -> Result<(), Error> {
        let mut free = memory.iter().count();
        for (slot, region) in memory.iter().enumerate().filter(|(_, region)| region.is_gated()) {
            self.map_part(slot, region, 0..0)?;
            for run in region.open_runs() {
                self.map_part(free, region, run)?;
                free += 1;
            }
        }
        Ok(())
    }

    /// Makes `part` of `region` (bytes from its start) a memory slot. An empty one deletes the slot.
    fn map_part(&self, slot: usize, region: &Region, part: Range<u64>) -> Result<(), Error> {
        let start = region.start_addr().0;
        let host = region
            .get_host_address(MemoryRegionAddress(part.start))
            .map_err(|_| Error::Memory(start))?;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: start + part.start,
            memory_size: part.end - part.start,
            userspace_addr: host as u64,
        };
        // SAFETY: the range is a mapping that the region owns, and `Machine` drops its vCPUs and
        // this `Vm` before the memory; nothing in the monitor holds Rust references into it, only
        // volatile slices.
        unsafe { self.fd.set_user_memory_region(slot) }.map_err(call("set a memory slot"))
    }

    /// The guest's clock (kvmclock) now.
    ///
    /// # Errors
    /// KVM refused.
    pub fn clock(&self) -> Result<kvm_clock_data, Error> {
        self.fd.get_clock().map_err(call("read the guest's clock"))
    }

    /// Sets the guest's clock to what [`Vm::clock`] said, as if no time had passed since.
    ///
    /// # Errors
    /// KVM refused.
    pub fn set_clock(&self, clock: kvm_clock_data) -> Result<(), Error> {
        // With its flags KVM would add the time that has passed.
        let clock = kvm_clock_data { clock: clock.clock, ..Default::default() };
        self.fd.set_clock(&clock).map_err(call("set the guest's clock"))
    }

    /// Raises interrupt line `gsi` of the I/O APIC whenever `event` is signalled, as an edge.
    ///
    /// # Errors
    /// The line does not exist.
    pub fn connect_line(&self, event: &EventFd, gsi: u32) -> Result<(), Error> {
        self.fd.register_irqfd(event, gsi).map_err(call("connect an interrupt line"))
    }
}

/// The `Vm` as devices see it; a handle that they may keep.
#[derive(Clone)]
pub struct VmHandle(pub Arc<Vm>);

impl Hypervisor for VmHandle {
    fn msi_vectors(&self, count: u16) -> io::Result<Box<dyn MsiVectors>> {
        Ok(Box::new(MsiBlock::new(Arc::clone(&self.0), count)?))
    }

    fn bind_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.fd.register_ioevent(event, &address, NoDatamatch)?)
    }

    fn unbind_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.fd.unregister_ioevent(event, &address, NoDatamatch)?)
    }

    fn readers(&self) -> Arc<Readers> {
        Arc::clone(self.0.readers())
    }

    fn spawn(&self, name: &str, body: WorkerBody) -> io::Result<JoinHandle<Box<dyn Worker>>> {
        thread::Builder::new().name(name.to_owned()).stack_size(DEVICE_STACK).spawn(body)
    }
}
