//! The common configuration structure (virtio 1.3, 4.1.4.3) as a register map: [`Register::at`] is
//! the map, [`Common::read`] and [`Common::write`] are what the registers do.

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;

use super::interrupts::Interrupts;
use super::queue_setup::{Part, QueueError, QueueSetup, Ring};
use super::status::{DRIVER_OK, FEATURES_OK, NEEDS_RESET, Status};
use crate::guest_memory::GuestMemory;
use crate::virtio::device::ConfigSpace;

/// Bytes of the structure, without the fields of features that are not offered.
pub(super) const LENGTH: u32 = 0x38;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// What the transport adds to every device's features.
const TRANSPORT_FEATURES: u64 = VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A register of the structure. The queue registers are those of the selected queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    QueueCount,
    Status,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    QueueRing(Ring, Part),
}

impl Register {
    /// The register that an access of `len` bytes at `offset` means. An access that is not of a
    /// register's own width, or of half a 64-bit one, means none.
    pub(super) fn at(offset: u64, len: usize) -> Option<Self> {
        Some(match (offset, len) {
            (0x00, 4) => Self::DeviceFeatureSelect,
            (0x04, 4) => Self::DeviceFeature,
            (0x08, 4) => Self::DriverFeatureSelect,
            (0x0c, 4) => Self::DriverFeature,
            (0x10, 2) => Self::ConfigVector,
            (0x12, 2) => Self::QueueCount,
            (0x14, 1) => Self::Status,
            (0x15, 1) => Self::ConfigGeneration,
            (0x16, 2) => Self::QueueSelect,
            (0x18, 2) => Self::QueueSize,
            (0x1a, 2) => Self::QueueVector,
            (0x1c, 2) => Self::QueueEnable,
            (0x1e, 2) => Self::QueueNotifyOffset,
            (0x20, _) => Self::QueueRing(Ring::Descriptors, Part::first(len)?),
            (0x24, 4) => Self::QueueRing(Ring::Descriptors, Part::High),
            (0x28, _) => Self::QueueRing(Ring::Available, Part::first(len)?),
            (0x2c, 4) => Self::QueueRing(Ring::Available, Part::High),
            (0x30, _) => Self::QueueRing(Ring::Used, Part::first(len)?),
            (0x34, 4) => Self::QueueRing(Ring::Used, Part::High),
            _ => return None,
        })
    }
}

/// What a write asks of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Stop everything, then call [`Common::reset`].
    Reset,
    /// The driver has just set DRIVER_OK.
    Activate,
}

/// The registers of one device. Called on vCPU threads with the transport locked.
pub(super) struct Common {
    offered: u64,
    /// What the driver wrote, offered or not, until FEATURES_OK freezes it.
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: Status,
    queue_select: u16,
    queues: Vec<QueueSetup>,
    interrupts: Arc<Interrupts>,
    config: Arc<ConfigSpace>,
}

impl Common {
    /// A device that offers `features` on top of the transport's own and has a queue for each of
    /// `queue_sizes`.
    pub(super) fn new(
        features: u64,
        queue_sizes: &[u16],
        interrupts: Arc<Interrupts>,
        config: Arc<ConfigSpace>,
    ) -> Self {
        Self {
            offered: features | TRANSPORT_FEATURES,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: Status::default(),
            queue_select: 0,
            queues: queue_sizes.iter().copied().map(QueueSetup::new).collect(),
            interrupts,
            config,
        }
    }

    /// Feature bits both sides agreed on.
    pub(super) fn features(&self) -> u64 {
        self.accepted & self.offered
    }

    /// The queues as the driver has set them up, `None` where it left one disabled.
    ///
    /// # Errors
    /// An enabled queue can't be used.
    pub(super) fn queues(&self, memory: &GuestMemory) -> Result<Vec<Option<Queue>>, QueueError> {
        let event_idx = self.features() & EVENT_IDX != 0;
        let queues = self.queues.iter().enumerate();
        queues.map(|(index, queue)| queue.build(index, event_idx, memory)).collect()
    }

    /// Every register takes its initial value. Called when no worker is left.
    pub(super) fn reset(&mut self) {
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.status = Status::default();
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueSetup::reset);
        self.interrupts.reset();
    }

    /// What the driver reads from `register`.
    pub(super) fn read(&self, register: Register) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |get: fn(&QueueSetup) -> u64| queue.map_or(0, get);
        match register {
            Register::DeviceFeatureSelect => self.device_feature_select.into(),
            Register::DeviceFeature => half(self.offered, self.device_feature_select),
            Register::DriverFeatureSelect => self.driver_feature_select.into(),
            Register::DriverFeature => half(self.accepted, self.driver_feature_select),
            Register::ConfigVector => self.interrupts.config_vector().into(),
            Register::QueueCount => self.queues.len() as u64,
            Register::Status => self.status().into(),
            Register::ConfigGeneration => self.config.generation().into(),
            Register::QueueSelect => self.queue_select.into(),
            Register::QueueSize => of_queue(|queue| queue.size().into()),
            Register::QueueVector => self.interrupts.queue_vector(self.queue_select).into(),
            Register::QueueEnable => of_queue(|queue| queue.is_enabled().into()),
            Register::QueueNotifyOffset => queue.map_or(0, |_| self.queue_select.into()),
            Register::QueueRing(ring, part) => queue.map_or(0, |queue| part.of(queue.ring(ring))),
        }
    }

    /// The driver writes `value` to `register`; returns what that asks for. A write that the status
    /// does not allow changes nothing.
    pub(super) fn write(&mut self, register: Register, value: u64) -> Option<Request> {
        match register {
            Register::DeviceFeatureSelect => self.device_feature_select = value as u32,
            Register::DriverFeatureSelect => self.driver_feature_select = value as u32,
            Register::DriverFeature => self.accept(value),
            Register::ConfigVector => self.interrupts.set_config_vector(value as u16),
            Register::Status => return self.set_status(value as u8),
            Register::QueueSelect => self.queue_select = value as u16,
            Register::QueueVector => {
                self.interrupts.set_queue_vector(self.queue_select, value as u16);
            }
            Register::QueueSize | Register::QueueEnable | Register::QueueRing(..) => {
                if let Some(queue) = self.queue_in_setup() {
                    set_up(queue, register, value);
                }
            }
            Register::DeviceFeature
            | Register::QueueCount
            | Register::ConfigGeneration
            | Register::QueueNotifyOffset => {}
        }
        None
    }

    fn status(&self) -> u8 {
        let broken = if self.interrupts.is_broken() { NEEDS_RESET } else { 0 };
        self.status.bits() | broken
    }

    fn set_status(&mut self, written: u8) -> Option<Request> {
        if written == 0 {
            return Some(Request::Reset);
        }
        let was = self.status;
        let acceptable = self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0;
        self.status = was.after(written, acceptable);
        let activated = !was.has(DRIVER_OK) && self.status.has(DRIVER_OK);
        activated.then_some(Request::Activate)
    }

    /// The driver accepts 32 features. There are none past bit 63, so a driver can't accept them.
    fn accept(&mut self, value: u64) {
        if self.status.has(FEATURES_OK) {
            return;
        }
        match self.driver_feature_select {
            0 => self.accepted = Part::Low.replace(self.accepted, value),
            1 => self.accepted = Part::High.replace(self.accepted, value),
            _ => {}
        }
    }

    /// The selected queue, between FEATURES_OK and its being enabled or DRIVER_OK.
    fn queue_in_setup(&mut self) -> Option<&mut QueueSetup> {
        let allowed = self.status.has(FEATURES_OK) && !self.status.has(DRIVER_OK);
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (allowed && !queue.is_enabled()).then_some(queue)
    }
}

/// 32 of `features`, as `select` says; there are none past the second.
fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => Part::Low.of(features),
        1 => Part::High.of(features),
        _ => 0,
    }
}

fn set_up(queue: &mut QueueSetup, register: Register, value: u64) {
    match register {
        Register::QueueSize => queue.set_size(value as u16),
        Register::QueueEnable if value == 1 => queue.enable(),
        Register::QueueRing(ring, part) => queue.set_ring(ring, part, value),
        _ => {}
    }
}
