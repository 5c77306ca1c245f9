//! Address-decoded buses: port I/O and memory-mapped I/O.
//!
//! A [`Bus`] is built before the first vCPU runs and never changes after, so a lookup takes no
//! lock. What can move at run time (a PCI BAR) moves inside the device that owns the window.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// A device behind a range of addresses. Called on vCPU threads, several at a time.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` from the start of the range. A register that
    /// does not exist leaves `data` as it is: all ones.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` from the start of the range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device whose registers need exclusive access: put it in a [`Mutex`] to make it a
/// [`BusDevice`].
pub trait Registers: Send {
    /// See [`BusDevice::read`].
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// See [`BusDevice::write`].
    fn write(&mut self, offset: u64, data: &[u8]);
}

impl<T: Registers> BusDevice for Mutex<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(self).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        lock(self).write(offset, data);
    }
}

/// Two devices claim the same address.
#[derive(Debug, thiserror::Error)]
#[error("addresses {new:#x?} overlap the device at {existing:#x?}")]
pub struct Overlap {
    /// The range that was refused.
    pub new: Range<u64>,
    /// The range that is in its way.
    pub existing: Range<u64>,
}

/// Devices by address.
///
/// **Invariant:** ranges are sorted and disjoint.
#[derive(Default)]
pub struct Bus {
    slots: Vec<(Range<u64>, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Puts `device` at `range`; an empty range is ignored.
    ///
    /// # Errors
    /// [`Overlap`] when the range meets one already taken.
    pub fn insert(&mut self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        if range.is_empty() {
            return Ok(());
        }
        let at = self.slots.partition_point(|(taken, _)| taken.start < range.start);
        let before = at.checked_sub(1).map(|i| &self.slots[i].0).filter(|r| r.end > range.start);
        let after = self.slots.get(at).map(|(r, _)| r).filter(|r| r.start < range.end);
        if let Some(existing) = before.or(after) {
            return Err(Overlap { new: range, existing: existing.clone() });
        }
        self.slots.insert(at, (range, device));
        Ok(())
    }

    /// Serves a guest read. An address without a device reads as all ones, as on real hardware.
    /// Returns whether a device answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.read(offset, data);
                true
            }
            None => false,
        }
    }

    /// Serves a guest write; one that meets no device is dropped. Returns whether a device took it.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &dyn BusDevice)> {
        let at = self.slots.partition_point(|(range, _)| range.start <= address).checked_sub(1)?;
        let (range, device) = &self.slots[at];
        let end = address.checked_add(len as u64)?;
        (end <= range.end).then(|| (address - range.start, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Echo(Vec<u8>);

    impl Registers for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0.extend_from_slice(data);
        }
    }

    fn bus(ranges: &[Range<u64>]) -> Bus {
        let mut bus = Bus::default();
        for range in ranges {
            bus.insert(range.clone(), Arc::new(Mutex::new(Echo::default()))).unwrap();
        }
        bus
    }

    #[test]
    fn reads_reach_the_device_with_the_offset() {
        let bus = bus(&[0x20..0x28, 0x10..0x18]);
        let mut data = [0u8; 2];
        assert!(bus.read(0x13, &mut data));
        assert_eq!(data, [3, 3]);
        assert!(bus.read(0x26, &mut data));
        assert_eq!(data, [6, 6]);
    }

    #[test]
    fn nothing_there_reads_all_ones() {
        let bus = bus(std::slice::from_ref(&(0x10..0x18)));
        let mut data = [0u8; 4];
        for address in [0, 0xf, 0x16, 0x18, u64::MAX, u64::MAX - 2] {
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(address, &data));
        }
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = bus(std::slice::from_ref(&(0x10..0x18)));
        for range in [0x0..0x11, 0x10..0x18, 0x12..0x13, 0x17..0x30] {
            let echo = Arc::new(Mutex::new(Echo::default()));
            assert!(bus.insert(range, echo).is_err());
        }
        let echo = Arc::new(Mutex::new(Echo::default()));
        bus.insert(0x18..0x19, echo).unwrap();
    }
}
