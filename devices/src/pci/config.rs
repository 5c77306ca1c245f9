//! Configuration space of a type-0 function (PCI 3.0, 6.1 and 6.2), as data.
//!
//! 256 bytes, and for each bit whether a guest may change it. Everything a guest can do to the
//! registers follows from these two: sizing a BAR, for one, is "write ones, read the mask".

use std::ops::Range;

use super::bar::{Bar, BarKind};

const SIZE: usize = 256;

// Offsets of PCI 3.0, figure 6-1.
const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE_SIZE: usize = 0x0c;
const BARS: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const HEADER_END: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// What kind of function it is (PCI 3.0, appendix D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Base class.
    pub base: u8,
    /// Sub-class.
    pub sub: u8,
}

/// Who made a function and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code; the programming interface is 0.
    pub class: Class,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A function's configuration registers.
///
/// Built once with [`Configuration::new`], [`Configuration::add_bar`] and
/// [`Configuration::add_capability`]; from then on the guest reads and writes it.
pub struct Configuration {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: Vec<Bar>,
    /// Where the next capability goes.
    free: usize,
    /// The register that shall point at it.
    link: usize,
}

impl Configuration {
    /// Registers of a function without BARs or capabilities, memory decode off.
    pub fn new(identity: Identity) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: Vec::new(),
            free: HEADER_END,
            link: CAPABILITIES,
        };
        config.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        config.set(DEVICE_ID, &identity.device.to_le_bytes());
        config.set(REVISION, &[identity.revision]);
        config.set(CLASS, &[0, identity.class.sub, identity.class.base]);
        config.set(SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        config.set(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX;
        config.allow(COMMAND, &command.to_le_bytes());
        config.allow(CACHE_LINE_SIZE, &[0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Adds `bar`, at address 0 until [`Configuration::place`].
    ///
    /// # Panics
    /// The BAR's size or index is not one a function can have, or its registers are taken: both
    /// are fixed in the device's code.
    pub fn add_bar(&mut self, bar: Bar) {
        let index = usize::from(bar.index);
        let taken = |other: &Bar| {
            let at = usize::from(other.index);
            at < index + bar.registers() && index < at + other.registers()
        };
        assert!(bar.is_valid() && !self.bars.iter().any(taken), "a BAR that can't be: {bar:?}");
        let at = Self::bar_offset(bar);
        self.allow(at, &bar.address_mask().to_le_bytes()[..4 * bar.registers()]);
        self.set(at, &[bar.type_bits()]);
        self.bars.push(bar);
    }

    /// Appends a capability to the list (PCI 3.0, 6.7): `body` follows its id and link bytes, and
    /// the bits of `writable` are the guest's to change. Returns where the capability starts.
    ///
    /// # Panics
    /// The list outgrows the configuration space: its length is fixed in the device's code.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.free;
        let end = at + 2 + body.len();
        assert!(end <= SIZE && writable.len() <= body.len(), "capability {id} does not fit");
        self.set(self.link, &[at as u8]);
        self.set(at, &[id]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.link = at + 1;
        self.free = end.next_multiple_of(4);
        at
    }

    /// Puts `bar` at `address`. Called by the root when it attaches the function.
    pub fn place(&mut self, bar: Bar, address: u64) {
        let address = address & bar.address_mask() | u64::from(bar.type_bits());
        self.set(Self::bar_offset(bar), &address.to_le_bytes()[..4 * bar.registers()]);
    }

    /// The BARs, in the order they were added.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Which BARs answer, and where: none while the guest has memory decode off.
    pub fn decoded(&self) -> Vec<(u8, Range<u64>)> {
        if self.u16_at(COMMAND) & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let range = |&bar: &Bar| {
            let low = u64::from(self.u32_at(Self::bar_offset(bar)));
            let high = match bar.kind {
                BarKind::Memory32 => 0,
                BarKind::Memory64 => u64::from(self.u32_at(Self::bar_offset(bar) + 4)) << 32,
            };
            let start = (high | low) & bar.address_mask();
            Some((bar.index, start..start.checked_add(bar.size)?))
        };
        self.bars.iter().filter_map(range).collect()
    }

    /// The guest reads `data.len()` bytes at `offset`; there is nothing past 256 bytes, and what
    /// lies there leaves `data` as it is.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let from = self.bytes.get(offset..).unwrap_or_default();
        let len = from.len().min(data.len());
        data[..len].copy_from_slice(&from[..len]);
    }

    /// The guest writes `data` at `offset`; only writable bits change.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
    }

    /// The function itself stores `data` at `offset`, writable or not.
    ///
    /// # Panics
    /// The range leaves the configuration space.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// The 16-bit register at `offset`.
    ///
    /// # Panics
    /// The register leaves the configuration space.
    pub fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The 32-bit register at `offset`.
    ///
    /// # Panics
    /// The register leaves the configuration space.
    pub fn u32_at(&self, offset: usize) -> u32 {
        u32::from(self.u16_at(offset)) | u32::from(self.u16_at(offset + 2)) << 16
    }

    fn bar_offset(bar: Bar) -> usize {
        BARS + 4 * usize::from(bar.index)
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: Bar = Bar { index: 0, size: 0x1000, kind: BarKind::Memory32 };
    const WIDE: Bar = Bar { index: 2, size: 0x8000, kind: BarKind::Memory64 };

    fn config() -> Configuration {
        let mut config = Configuration::new(Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: Class { base: 0xff, sub: 3 },
            subsystem_vendor: 0x1af4,
            subsystem: 0x1044,
        });
        config.add_bar(SMALL);
        config.add_bar(WIDE);
        config
    }

    fn write_u32(config: &mut Configuration, offset: usize, value: u32) {
        config.write(offset, &value.to_le_bytes());
    }

    #[test]
    fn identity_is_where_a_guest_looks_and_read_only() {
        let mut config = config();
        for offset in [0, 8, 0x2c] {
            write_u32(&mut config, offset, 0);
        }
        assert_eq!(config.u32_at(0), 0x1044_1af4);
        assert_eq!(config.u32_at(8), 0xff03_0001);
        assert_eq!(config.u32_at(0x2c), 0x1044_1af4);
    }

    #[test]
    fn writing_ones_to_a_bar_shows_its_size() {
        let mut config = config();
        for offset in (0x10..0x28).step_by(4) {
            write_u32(&mut config, offset, u32::MAX);
        }
        assert_eq!(config.u32_at(0x10), 0xffff_f000);
        assert_eq!(config.u32_at(0x14), 0);
        assert_eq!(config.u32_at(0x18), 0xffff_8004);
        assert_eq!(config.u32_at(0x1c), 0xffff_ffff);
        assert_eq!(config.u32_at(0x20), 0);
    }

    #[test]
    fn bars_answer_only_while_memory_decode_is_on() {
        let mut config = config();
        config.place(SMALL, 0xe000_0000);
        config.place(WIDE, 0x12_3456_8000);
        assert!(config.decoded().is_empty());
        config.write(COMMAND, &[2]);
        let expected = [(0, 0xe000_0000..0xe000_1000), (2, 0x12_3456_8000..0x12_3457_0000)];
        assert_eq!(config.decoded(), expected);
    }

    #[test]
    fn a_bar_at_the_very_top_is_never_decoded() {
        let mut config = config();
        config.write(COMMAND, &[2]);
        write_u32(&mut config, 0x18, u32::MAX);
        write_u32(&mut config, 0x1c, u32::MAX);
        assert_eq!(config.decoded(), [(0, 0..0x1000)]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut config = config();
        assert_eq!(config.u16_at(STATUS), 0);
        let first = config.add_capability(9, &[5, 0xaa, 0xbb], &[0, 0xf0]);
        let second = config.add_capability(0x11, &[0; 10], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(config.u16_at(STATUS), STATUS_CAPABILITIES);
        assert_eq!(config.u32_at(CAPABILITIES) & 0xff, 0x40);
        assert_eq!(config.u16_at(first), 0x4809);
        assert_eq!(config.u16_at(second), 0x0011);
        write_u32(&mut config, first, u32::MAX);
        assert_eq!(config.u32_at(first), 0xfa05_4809);
    }

    #[test]
    #[should_panic(expected = "a BAR that can't be")]
    fn overlapping_bars_are_a_bug() {
        config().add_bar(Bar { index: 3, size: 0x1000, kind: BarKind::Memory32 });
    }

    proptest! {
        #[test]
        fn no_access_panics_or_changes_a_fixed_bit(
            writes in proptest::collection::vec(
                (0usize..5000, proptest::collection::vec(any::<u8>(), 0..9)), 1..40),
        ) {
            let mut config = config();
            config.add_capability(9, &[1, 2, 3, 4], &[0xff]);
            let before = config.bytes;
            for (offset, data) in writes {
                config.write(offset, &data);
                let mut back = data.clone();
                config.read(offset, &mut back);
                config.decoded();
            }
            for ((now, was), mask) in config.bytes.iter().zip(before).zip(config.writable) {
                prop_assert_eq!((now ^ was) & !mask, 0);
            }
        }
    }
}
