//! The guest-physical address space.
//!
//! ```text
//! 0            640K  1M                3G         3.5G       3.625G   4G
//! |  low RAM   |tables|     RAM        | PCI BARs | ECAM     | APICs  |  RAM  | hotplug | PCI BARs |
//! ```
//! RAM that does not fit below 3 GiB continues at 4 GiB. What follows it is aligned to 1 GiB.

use std::ops::Range;

use devices::platform::power;
use memctl::Bytes;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The global descriptor table that a 64-bit entry needs.
pub const GDT: u64 = 0x500;
/// PVH start information, or the Linux boot protocol's zero page.
pub const BOOT_INFO: u64 = 0x6000;
/// PVH module list and memory map, after the start information.
pub const PVH_TABLES: u64 = 0x7000;
/// Identity page tables of a 64-bit entry: six pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x20000;
/// Longest command line, its terminating zero included: what Linux keeps.
pub const CMDLINE_MAX: usize = 2048;
/// Where low RAM ends for the guest: what a BIOS calls its extended data area begins here.
pub const LOW_RAM_END: u64 = 0x9fc00;
/// ACPI tables. The BIOS area, so that a guest without a boot protocol's pointer finds them.
pub const ACPI: Range<u64> = 0xe0000..RESET_VECTOR;
/// Where a BIOS is entered after a reset.
pub const RESET_VECTOR: u64 = 0xffff0;
/// Where kernels are loaded from on.
pub const HIGH_RAM: u64 = MIB;

/// 32-bit PCI memory aperture. RAM below 4 GiB ends where it begins.
pub const PCI_MEMORY_32: Range<u64> = 3 * GIB..0xe000_0000;
/// PCI configuration space of bus 0, 4 KiB per function (ECAM).
pub const ECAM: Range<u64> = 0xe800_0000..0xe810_0000;
/// The I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The local APICs.
pub const LAPIC: u64 = 0xfee0_0000;

/// COM1.
pub const SERIAL_PORTS: Range<u64> = 0x3f8..0x400;
/// COM1's line.
pub const SERIAL_LINE: u32 = 4;
/// Real-time clock.
pub const RTC_PORTS: Range<u64> = 0x70..0x72;
/// PCI configuration mechanism 1.
pub const PCI_PORTS: Range<u64> = 0xcf8..0xd00;
/// Sleep, reset and event registers.
pub const POWER_PORTS: Range<u64> = power::BASE..power::BASE + power::SIZE;
/// The line of the generic event device.
pub const EVENT_LINE: u32 = 5;

/// Where RAM of `size` lies, ascending.
pub fn ram(size: Bytes) -> Vec<Range<u64>> {
    let low = size.as_u64().min(PCI_MEMORY_32.start);
    let high = size.as_u64() - low;
    let ranges = [0..low, 4 * GIB..4 * GIB + high];
    ranges.into_iter().filter(|range| !range.is_empty()).collect()
}

/// Where zones of RAM of `sizes` lie, one after another: each piece with the zone's index. Their
/// sum is what [`ram`] was given.
pub fn zones(sizes: impl IntoIterator<Item = Bytes>) -> Vec<(usize, Range<u64>)> {
    let mut pieces = Vec::new();
    let mut before = 0;
    for (zone, size) in sizes.into_iter().enumerate() {
        let after = before + size.as_u64();
        // What of all RAM lies below this zone's end, and above its start.
        let low = before.min(PCI_MEMORY_32.start)..after.min(PCI_MEMORY_32.start);
        let high = before.max(PCI_MEMORY_32.start)..after.max(PCI_MEMORY_32.start);
        let hole = 4 * GIB - PCI_MEMORY_32.start;
        let ranges = [low, high.start + hole..high.end + hole];
        pieces.extend(ranges.into_iter().filter(|range| !range.is_empty()).map(|r| (zone, r)));
        before = after;
    }
    pieces
}

/// Where memory that is plugged at run time has its rooms of `sizes`, behind all of `ram`. `None`
/// when they or RAM itself leave what `physical_bits` can address.
pub fn hotplug(
    ram: &[Range<u64>],
    sizes: impl IntoIterator<Item = Bytes>,
    physical_bits: u8,
) -> Option<Vec<Range<u64>>> {
    let limit = 1 << physical_bits.min(52);
    let mut end = ram.last().map_or(0, |range| range.end);
    let rooms = sizes.into_iter().map(|size| {
        let start = end.max(4 * GIB).checked_next_multiple_of(GIB)?;
        end = start.checked_add(size.as_u64())?;
        (end <= limit).then_some(start..end)
    });
    let rooms = rooms.collect::<Option<Vec<_>>>()?;
    (end <= limit).then_some(rooms)
}

/// The 64-bit PCI memory aperture of a machine whose memory ends at `memory_end`, or `None` when
/// `physical_bits` of address leave less than 1 GiB above it.
pub fn pci_memory_64(memory_end: u64, physical_bits: u8) -> Option<Range<u64>> {
    let start = memory_end.max(4 * GIB).next_multiple_of(GIB);
    let end = 1u64 << physical_bits.min(52);
    (start + GIB <= end).then_some(start..end)
}

/// What lies in an entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Usable memory.
    Ram = 1,
    /// Neither RAM nor free for devices.
    Reserved = 2,
}

/// The memory map handed to the kernel (what a BIOS calls e820).
pub fn memory_map(ram: &[Range<u64>]) -> Vec<(Range<u64>, MapKind)> {
    let mut map = vec![(0..LOW_RAM_END, MapKind::Ram), (ACPI.start..HIGH_RAM, MapKind::Reserved)];
    let above_hole = ram.iter().map(|range| range.start.max(HIGH_RAM)..range.end);
    map.extend(above_hole.map(|range| (range, MapKind::Ram)));
    map.push((ECAM, MapKind::Reserved));
    map.sort_by_key(|(range, _)| range.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_round_the_hole() {
        for size in [128 * MIB, 3 * GIB] {
            assert_eq!(ram(Bytes::new(size)), std::slice::from_ref(&(0..size)));
        }
        assert_eq!(ram(Bytes::new(6 * GIB)), [0..3 * GIB, 4 * GIB..7 * GIB]);
    }

    #[test]
    fn zones_follow_each_other_round_the_hole() {
        let sizes = [1, 3, 2].map(Bytes::gib);
        let pieces = [(0, 0..GIB), (1, GIB..3 * GIB), (1, 4 * GIB..5 * GIB), (2, 5 * GIB..7 * GIB)];
        assert_eq!(zones(sizes), pieces);
        for size in [Bytes::mib(128), Bytes::gib(3), Bytes::gib(6)] {
            let whole: Vec<_> = zones([size]).into_iter().map(|(_, range)| range).collect();
            assert_eq!(whole, ram(size));
        }
    }

    #[test]
    fn the_map_is_sorted_and_disjoint() {
        let map = memory_map(&ram(Bytes::new(6 * GIB)));
        assert!(map.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start), "{map:x?}");
        let usable: u64 = map
            .iter()
            .filter(|(_, kind)| *kind == MapKind::Ram)
            .map(|(range, _)| range.end - range.start)
            .sum();
        assert_eq!(usable, 6 * GIB - (HIGH_RAM - LOW_RAM_END));
    }

    #[test]
    fn hotplug_lies_above_4_gib_whatever_the_ram() {
        for (size, start) in [(128 * MIB, 4 * GIB), (3 * GIB, 4 * GIB), (6 * GIB + 1, 8 * GIB)] {
            let rooms = hotplug(&ram(Bytes::new(size)), [Bytes::gib(2), Bytes::mib(2)], 40);
            let second = start + 2 * GIB;
            assert_eq!(rooms.unwrap(), [start..second, second..second + 2 * MIB]);
        }
    }

    #[test]
    fn hotplug_stays_within_the_addresses() {
        let ram = ram(Bytes::gib(5));
        let fits = |sizes: &[Bytes]| hotplug(&ram, sizes.iter().copied(), 36).is_some();
        assert!(fits(&[]));
        assert!(fits(&[Bytes::gib(50), Bytes::gib(8)]));
        assert!(!fits(&[Bytes::gib(50), Bytes::new(8 * GIB + 1)]));
        assert!(!fits(&[Bytes::new(1), Bytes::gib(58)]), "each room is aligned");
        assert!(!fits(&[Bytes::new(u64::MAX)]));
        assert!(hotplug(&ram, [], 32).is_none(), "RAM itself does not fit");
    }

    #[test]
    fn the_64_bit_aperture_needs_room() {
        assert_eq!(pci_memory_64(GIB, 40), Some(4 * GIB..1 << 40));
        assert_eq!(pci_memory_64(5 * GIB + 1, 36), Some(6 * GIB..64 * GIB));
        assert_eq!(pci_memory_64(64 * GIB, 36), None);
    }
}
