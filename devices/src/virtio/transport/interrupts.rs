//! Which MSI-X vector each cause of interrupt has, and the ISR status for a driver without MSI-X
//! (virtio 1.3, 4.1.5.1.2 and 4.1.4.5).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::pci::Msix;
use crate::virtio::queue::InterruptSink;

/// No vector: the cause raises nothing.
pub(super) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// A device's interrupts. Vectors are set on vCPU threads; causes come from any thread. No lock.
pub(super) struct Interrupts {
    msix: Msix,
    isr: AtomicU8,
    needs_reset: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    sent: AtomicU64,
}

impl Interrupts {
    /// For `queues` queues, none of which has a vector yet.
    pub(super) fn new(msix: Msix, queues: usize) -> Self {
        Self {
            msix,
            isr: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            sent: AtomicU64::new(0),
        }
    }

    pub(super) fn msix(&self) -> &Msix {
        &self.msix
    }

    /// Whether the device waits for a reset.
    pub(super) fn is_broken(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Interrupts raised so far, delivered or pending.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    /// A vector that does not exist is taken as [`NO_VECTOR`], which is what the driver reads back.
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Relaxed);
    }

    /// The vector of `queue`; a queue that does not exist has none.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    /// See [`Interrupts::set_config_vector`].
    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.existing(vector), Ordering::Relaxed);
        }
    }

    /// ISR status, which reading clears.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// The device is reset; MSI-X is the PCI function's and stays as it is. Called when no worker
    /// is left that could raise anything.
    pub(super) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Relaxed));
        self.isr.store(0, Ordering::Relaxed);
        self.needs_reset.store(false, Ordering::Release);
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.count() { vector } else { NO_VECTOR }
    }

    fn raise(&self, vector: u16, cause: u8) {
        if !self.msix.is_enabled() {
            self.isr.fetch_or(cause, Ordering::AcqRel);
        } else if vector != NO_VECTOR {
            self.msix.trigger(vector);
            self.sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl InterruptSink for Interrupts {
    fn queue_used(&self, index: u16) {
        self.raise(self.queue_vector(index), ISR_QUEUE);
    }

    fn config_changed(&self) {
        self.raise(self.config_vector(), ISR_CONFIG);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.config_changed();
    }
}
