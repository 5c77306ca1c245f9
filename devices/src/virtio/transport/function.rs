//! A virtio device as a PCI function: where register accesses, the device model, its workers and
//! the host come together.

use std::io;
use std::sync::{Arc, Mutex};

use log::{Level, log};

use super::common::{Common, Register, Request};
use super::doorbells::Doorbells;
use super::interrupts::Interrupts;
use super::layout::{Area, BAR, ConfigWindow, Layout, MAX_QUEUES};
use super::queue_setup::QueueError;
use crate::guest_memory::GuestMemory;
use crate::hypervisor::Hypervisor;
use crate::lifecycle::Lifecycle;
use crate::pci::{Configuration, Msix, PciFunction};
use crate::sync::lock;
use crate::virtio::device::{Activation, ConfigSpace, VirtioDevice};
use crate::virtio::queue::{Interrupt, InterruptSink, VirtQueue};
use crate::virtio::worker::WorkerSet;

/// A virtio device can't be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// It has more queues than the BAR has doorbells and vectors.
    #[error("a virtio device has at most {MAX_QUEUES} queues, not {count}")]
    TooManyQueues {
        /// How many it wants.
        count: usize,
    },
    /// The host refused interrupt vectors or file descriptors.
    #[error("virtio device {device_id}: resources of the host")]
    Host {
        /// Device id of virtio 1.3, section 5.
        device_id: u16,
        /// What the host said.
        source: io::Error,
    },
}

/// A device did not come to life at DRIVER_OK.
#[derive(Debug, thiserror::Error)]
enum ActivateError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// A virtio device on the PCI bus: attach it to a [`PciRoot`](crate::pci::PciRoot), and put it in
/// the machine's table of [`Lifecycle`].
///
/// The device model, the common registers and the workers are under one lock, which vCPU threads
/// and the machine's thread take. What else the guest reaches (doorbells, MSI-X, ISR, device
/// configuration) does not wait for it. Lock order: `core`, then one of the others.
pub struct VirtioPci {
    device_id: u16,
    config: Mutex<Configuration>,
    msix_control: usize,
    window: ConfigWindow,
    device_config: Arc<ConfigSpace>,
    interrupts: Arc<Interrupts>,
    doorbells: Doorbells,
    memory: Arc<GuestMemory>,
    host: Arc<dyn Hypervisor>,
    core: Mutex<Core>,
}

struct Core {
    device: Box<dyn VirtioDevice>,
    common: Common,
    workers: WorkerSet,
    paused: bool,
    /// Whether a failed activation has been logged.
    warned: bool,
}

impl VirtioPci {
    /// Puts the registers round `device`, which is then as after a reset. Takes one interrupt
    /// vector per queue and one for configuration changes, and one eventfd per queue.
    ///
    /// # Errors
    /// Too many queues, or the host has no more vectors or descriptors.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        host: Arc<dyn Hypervisor>,
    ) -> Result<Self, TransportError> {
        let (device_id, count) = (device.device_id(), device.queue_sizes().len());
        if count > MAX_QUEUES {
            return Err(TransportError::TooManyQueues { count });
        }
        let refused = |source| TransportError::Host { device_id, source };
        let vectors = count as u16 + 1;
        let msix = Msix::new(host.msi_vectors(vectors).map_err(refused)?, vectors);
        let doorbells = Doorbells::new(Arc::clone(&host), count).map_err(refused)?;
        let Layout { config, msix_control, window } = Layout::new(device_id, count, &msix);
        let interrupts = Arc::new(Interrupts::new(msix, count));
        let device_config = device.config();
        let common = Common::new(
            device.features(),
            device.queue_sizes(),
            Arc::clone(&interrupts),
            Arc::clone(&device_config),
        );
        let workers = WorkerSet::default();
        Ok(Self {
            device_id,
            config: Mutex::new(config),
            msix_control,
            window,
            device_config,
            interrupts,
            doorbells,
            memory,
            host,
            core: Mutex::new(Core { device, common, workers, paused: false, warned: false }),
        })
    }

    /// The device's interrupts, for who changes its configuration space from outside.
    pub fn interrupt(&self) -> Interrupt {
        Arc::clone(&self.interrupts) as Interrupt
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        if let Some(register) = Register::at(offset, data.len()) {
            let value = lock(&self.core).common.read(register).to_le_bytes();
            data.copy_from_slice(&value[..data.len()]);
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let Some(register) = Register::at(offset, data.len()) else { return };
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let mut core = lock(&self.core);
        match core.common.write(register, u64::from_le_bytes(value)) {
            Some(Request::Reset) => self.stop(&mut core),
            Some(Request::Activate) => self.start(&mut core),
            None => {}
        }
    }

    /// Ends the workers, then forgets all that the driver has set.
    fn stop(&self, core: &mut Core) {
        self.doorbells.serve_none();
        core.workers = WorkerSet::default();
        core.common.reset();
    }

    /// Brings the device to life, or tells the driver that it needs a reset.
    fn start(&self, core: &mut Core) {
        let Err(error) = self.activate(core) else { return };
        self.doorbells.serve_none();
        core.workers = WorkerSet::default();
        self.interrupts.needs_reset();
        // A guest can fail as often as it likes; the log hears of it once.
        let level = if core.warned { Level::Debug } else { Level::Warn };
        core.warned = true;
        log!(level, "virtio device {} needs a reset: {error}", self.device_id);
    }

    fn activate(&self, core: &mut Core) -> Result<(), ActivateError> {
        let queues = core.common.queues(&self.memory)?;
        let served: Vec<bool> = queues.iter().map(Option::is_some).collect();
        let with_doorbell = |(index, queue): (usize, Option<_>)| {
            let with = |queue| {
                let (memory, interrupt) = (Arc::clone(&self.memory), self.interrupt());
                let kick = self.doorbells.event(index)?;
                Ok(VirtQueue::new(index as u16, queue, kick, memory, interrupt))
            };
            queue.map(with).transpose()
        };
        let activation = Activation {
            features: core.common.features(),
            memory: Arc::clone(&self.memory),
            queues: queues.into_iter().enumerate().map(with_doorbell).collect::<io::Result<_>>()?,
            interrupt: self.interrupt(),
        };
        core.workers = WorkerSet::parked(core.device.activate(activation)?);
        self.doorbells.serve(served);
        if !core.paused {
            core.workers.resume(self.host.as_ref())?;
        }
        Ok(())
    }

    /// The part of the BAR behind the configuration window's data register.
    fn window_target(&self) -> Option<(u64, usize)> {
        self.window.target(&lock(&self.config))
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &Mutex<Configuration> {
        &self.config
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        if self.window.is_touched(offset, data.len())
            && let Some((target, len)) = self.window_target()
        {
            let mut value = [0; 4];
            self.bar_read(BAR.index, target, &mut value[..len]);
            lock(&self.config).set(self.window.data(), &value);
        }
        lock(&self.config).read(offset, data);
    }

    fn config_write(&self, offset: usize, data: &[u8]) {
        let mut config = lock(&self.config);
        config.write(offset, data);
        // Under the lock, so that MSI-X hears of two vCPUs' writes in their order.
        self.interrupts.msix().set_control(config.u16_at(self.msix_control));
        let value = config.u32_at(self.window.data()).to_le_bytes();
        drop(config);
        if self.window.is_touched(offset, data.len())
            && let Some((target, len)) = self.window_target()
        {
            self.bar_write(BAR.index, target, &value[..len]);
        }
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Area::find(offset) {
            (Area::Common, offset) => self.read_common(offset, data),
            (Area::Isr, 0) => {
                if let Some(isr) = data.first_mut() {
                    *isr = self.interrupts.take_isr();
                }
            }
            (Area::Device, offset) => self.device_config.read(offset as usize, data),
            (Area::MsixTable, offset) => self.interrupts.msix().read_table(offset, data),
            (Area::MsixPending, offset) => self.interrupts.msix().read_pending(offset, data),
            (Area::Isr | Area::Notify, _) => {}
        }
    }

    /// Writes to the device configuration are dropped: no device here has a writable field.
    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) {
        match Area::find(offset) {
            (Area::Common, offset) => self.write_common(offset, data),
            (Area::Notify, offset) => self.doorbells.ring(offset),
            (Area::MsixTable, offset) => self.interrupts.msix().write_table(offset, data),
            (Area::Isr | Area::Device | Area::MsixPending, _) => {}
        }
    }

    fn bar_moved(&self, _bar: u8, address: Option<u64>) {
        self.doorbells.bar_moved(address);
    }
}

impl Lifecycle for VirtioPci {
    fn pause(&self) {
        let mut core = lock(&self.core);
        core.paused = true;
        core.workers.pause();
    }

    /// On an error the device is left waiting for a reset.
    fn resume(&self) -> io::Result<()> {
        let mut core = lock(&self.core);
        core.paused = false;
        core.workers.resume(self.host.as_ref()).inspect_err(|_| self.interrupts.needs_reset())
    }

    /// `interrupts`: raised, delivered or pending. `kick_exits`: doorbells rung by an exit.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("interrupts", self.interrupts.sent()), ("kick_exits", self.doorbells.rung())]
    }
}
