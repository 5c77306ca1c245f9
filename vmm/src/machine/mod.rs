//! The machine: what it consists of, and what becomes of it.
//!
//! [`Builder::build`] turns a [`Spec`](spec::Spec) into memory, buses, devices and vCPUs that are
//! paused at the kernel's first instruction. From then on the machine is only run, paused and
//! dropped; a reset makes a new one from the same specification, so there is one way to a fresh
//! state and not two.
//!
//! ```text
//!   build --> Paused <--------> Running --> drop
//!                     resume,
//!                     pause
//! ```

mod builder;
pub mod chardev;
pub mod refusals;
pub mod spec;
mod table;

use std::io;
use std::sync::Arc;

use devices::guest_memory::GuestMemory;
use devices::platform::power::{Event, Events};
use devices::virtio::console::{ConsoleHandle, WindowSize};
use devices::virtio::mem::{BlockView, MemHandle};
use kvm_bindings::kvm_clock_data;
use log::error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::boot;
use crate::kvm::Vm;
use crate::kvm::vcpu::{Fault, Vcpus};
use crate::{kvm, memory};

use refusals::{Refusal, Refusals};

pub use builder::{Builder, Characters, Surroundings};
pub use table::Attached;
use table::{SerialEvents, Table};

/// Why a machine could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM refused.
    #[error("the virtual machine could not be set up")]
    Kvm(#[from] kvm::Error),
    /// RAM could not be had.
    #[error("guest memory could not be set up")]
    Memory(#[from] memory::Error),
    /// Kernel, initramfs or command line.
    #[error("the payload could not be loaded")]
    Boot(#[from] boot::Error),
    /// A device could not be made.
    #[error("device {id} could not be set up")]
    Device {
        /// Its id.
        id: String,
        /// What was wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Two devices claim the same address: a mistake in the layout.
    #[error("the address map is inconsistent")]
    Overlap(#[from] devices::bus::Overlap),
    /// ACPI tables don't fit.
    #[error("the ACPI tables could not be written")]
    Acpi(#[source] vm_memory::GuestMemoryError),
    /// The host refused a descriptor or a thread.
    #[error("the host refused {what}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// What a machine tells the monitor. The descriptors outlive any one machine.
pub struct Signals {
    /// The guest powered itself off.
    pub power_off: EventFd,
    /// The guest asked for a reset.
    pub reset: EventFd,
    /// A vCPU can't go on.
    pub fault: EventFd,
    /// Someone reached for closed memory: [`Machine::refusals`] tells.
    pub refused: EventFd,
}

impl Signals {
    /// Fresh signals.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK);
        Ok(Self { power_off: event()?, reset: event()?, fault: event()?, refused: event()? })
    }

    /// Forgets what a machine said that is gone.
    pub fn drain(&self) {
        for signal in [&self.power_off, &self.reset, &self.fault, &self.refused] {
            // Fails where nothing was said.
            let _ = signal.read();
        }
    }
}

/// A virtual machine in memory. Owned by the monitor's thread. Fields are dropped in order: first
/// the vCPUs, so that nothing calls a device any more, then the devices, then memory.
pub struct Machine {
    vcpus: Vcpus,
    devices: Table,
    serial: Option<SerialEvents>,
    console: Option<ConsoleHandle>,
    refusals: Arc<Refusals>,
    power: Arc<Events>,
    vm: Arc<Vm>,
    memory: Arc<GuestMemory>,
    stopped_clock: Option<kvm_clock_data>,
    paused: bool,
}

impl Machine {
    /// Lets devices and vCPUs run. Harmless when they do.
    ///
    /// # Errors
    /// A device thread could not be started, or KVM refused; the machine stays paused.
    pub fn resume(&mut self) -> Result<(), Error> {
        if let Some(clock) = self.stopped_clock {
            self.vm.set_clock(clock)?;
        }
        self.devices.resume().map_err(|source| Error::Host { what: "a device thread", source })?;
        self.stopped_clock = None;
        self.vcpus.resume();
        self.paused = false;
        Ok(())
    }

    /// Stops vCPUs, then devices: when it returns, nothing changes guest memory. Harmless when
    /// paused.
    pub fn pause(&mut self) {
        self.vcpus.pause();
        if !self.paused {
            // Without it, time would pass for the guest while it stands still.
            self.stopped_clock = self.vm.clock().inspect_err(|error| error!("{error}")).ok();
        }
        self.devices.pause();
        self.paused = true;
    }

    /// Whether [`Machine::resume`] has not been called, or [`Machine::pause`] since.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Tells the guest that its power button was pressed.
    pub fn press_power_button(&self) {
        if let Err(error) = self.power.raise(Event::PowerButton) {
            error!("the power button's interrupt could not be raised: {error}");
        }
    }

    /// Sends every vCPU a non-maskable interrupt.
    pub fn nmi(&self) {
        self.vcpus.nmi();
    }

    /// Tells the guest the size of the terminal its console is on.
    pub fn resize_console(&self, size: WindowSize) {
        if let Some(console) = &self.console {
            console.resize(size);
        }
    }

    /// Serves whatever the serial port waits for on the host.
    pub fn serial_ready(&self) {
        if let Some(serial) = &self.serial {
            serial.ready();
        }
    }

    /// The devices, in the order they were attached.
    pub fn devices(&self) -> &[Attached] {
        self.devices.list()
    }

    /// Exits to the monitor by kind.
    pub fn exits(&self) -> Vec<(&'static str, u64)> {
        self.vcpus.counters().list()
    }

    /// What comes and goes through the memory device `id`.
    pub fn memory(&self, id: &str) -> Option<&MemHandle> {
        self.devices().iter().find(|device| device.id == id)?.memory.as_ref()
    }

    /// What is known of the closed memory at a guest-physical address; `None` where no memory comes
    /// and goes.
    pub fn block_at(&self, address: u64) -> Option<BlockView> {
        let mut devices = self.devices().iter().filter_map(|device| device.memory.as_ref());
        devices.find_map(|memory| memory.block_at(address))
    }

    /// Accesses to closed memory that were not reported yet.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.refusals.take()
    }

    /// Accesses to closed memory by kind.
    pub fn refused(&self) -> Vec<(&'static str, u64)> {
        self.refusals.list()
    }

    /// Ends the vCPUs; returns why one of them could not go on.
    pub fn stop(&mut self) -> Option<Fault> {
        let (vm, memory, devices) = (&self.vm, &self.memory, &self.devices);
        self.vcpus.stop(|| {
            // So that no block opens or closes meanwhile.
            devices.pause();
            let mapped = vm.map_open_blocks(memory);
            mapped.inspect_err(|error| error!("{error}")).is_ok()
        })
    }
}
