//! What every virtio device model implements.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use super::queue::{Interrupt, VirtQueue};
use super::worker::Worker;
use crate::guest_memory::GuestMemory;
use crate::sync::lock;

/// A virtio device model: its identity and how it comes to life.
///
/// The transport owns it and calls it on vCPU threads, one at a time, with the transport locked: no
/// method may wait for a vCPU or for an API call.
pub trait VirtioDevice: Send {
    /// Device id of virtio 1.3, section 5 (2 = block, 3 = console, 4 = entropy, 24 = memory).
    fn device_id(&self) -> u16;

    /// Device-specific feature bits. The transport adds VERSION_1, RING_INDIRECT_DESC and
    /// RING_EVENT_IDX.
    fn features(&self) -> u64;

    /// The largest size of each queue, powers of two. The number of queues is its length.
    fn queue_sizes(&self) -> &[u16];

    /// The device-specific configuration, shared with whoever changes it.
    fn config(&self) -> Arc<ConfigSpace>;

    /// The driver has set DRIVER_OK. Returns the workers that serve the queues, one per thread; the
    /// transport starts them, parks them on pause and drops them on reset. May be called again
    /// after a reset.
    ///
    /// # Errors
    /// The host refused a resource: the transport answers with DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> io::Result<Vec<Box<dyn Worker>>>;
}

/// What the driver negotiated, handed to [`VirtioDevice::activate`].
pub struct Activation {
    /// Feature bits both sides agreed on.
    pub features: u64,
    /// Guest RAM.
    pub memory: Arc<GuestMemory>,
    /// One per entry of [`VirtioDevice::queue_sizes`], in order; `None` where the driver left the
    /// queue disabled.
    pub queues: Vec<Option<VirtQueue>>,
    /// For configuration changes.
    pub interrupt: Interrupt,
}

/// Device-specific configuration space (virtio 1.3, 2.5): bytes, little-endian, and their
/// generation.
///
/// All fields of the devices here are read-only for the driver; its writes are dropped by the
/// transport.
#[derive(Default)]
pub struct ConfigSpace {
    bytes: Mutex<Vec<u8>>,
    generation: AtomicU8,
}

impl ConfigSpace {
    /// A configuration space that starts as `bytes`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: Mutex::new(bytes.into()), generation: AtomicU8::new(0) }
    }

    /// Copies out bytes from `offset` on; what lies past the end reads as zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let bytes = lock(&self.bytes);
        let from = bytes.get(offset..).unwrap_or_default();
        let len = from.len().min(data.len());
        data[..len].copy_from_slice(&from[..len]);
        data[len..].fill(0);
    }

    /// Writes `value` at `offset` and moves to the next generation; the caller then raises the
    /// configuration interrupt where the field calls for one. Bytes past the end are dropped.
    pub fn write(&self, offset: usize, value: &[u8]) {
        let mut bytes = lock(&self.bytes);
        if let Some(to) = bytes.get_mut(offset..) {
            let len = to.len().min(value.len());
            to[..len].copy_from_slice(&value[..len]);
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The generation of virtio 1.3, 4.1.4.3: differs between two reads when a write fell between.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_past_the_end_are_zero_and_writes_dropped() {
        let config = ConfigSpace::new([1, 2, 3]);
        let mut data = [9; 4];
        config.read(1, &mut data);
        assert_eq!(data, [2, 3, 0, 0]);
        config.read(usize::MAX, &mut data);
        assert_eq!(data, [0; 4]);
        config.write(2, &[7, 8]);
        config.write(100, &[1]);
        config.read(0, &mut data);
        assert_eq!(data, [1, 2, 7, 0]);
        assert_eq!(config.generation(), 2);
    }
}
