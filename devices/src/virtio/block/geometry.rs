//! The size and grain of a disk, and ranges that are known to lie on it.

/// The unit in which virtio-blk counts, in bytes, whatever the disk's own blocks are.
pub const SECTOR: u64 = 512;

/// A number of 512-byte sectors, or the place of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sectors(pub u64);

/// What a disk is like. Fixed while the device exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk.
    pub capacity: Sectors,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Logical block size in bytes, a power of two, at least [`SECTOR`]. Discarded and zeroed
    /// ranges must be whole blocks.
    pub logical_block: u32,
    /// Size in bytes of what the disk writes at once, a power of two, at least `logical_block`.
    pub physical_block: u32,
    /// What every transfer must start and end on, in bytes: a power of two, at least [`SECTOR`].
    /// More than that only where the host's page cache is bypassed.
    pub transfer_alignment: u32,
}

/// Bytes of a disk that exist.
///
/// **Invariant:** whole aligned units, inside the capacity of the [`Geometry`] that checked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRange {
    start: u64,
    len: u64,
}

impl DiskRange {
    /// `len` bytes from sector `first` on, as a driver claims. `None` when they leave the disk,
    /// or do not start and end on a multiple of `alignment` bytes.
    pub fn checked(disk: &Geometry, first: Sectors, len: u64, alignment: u32) -> Option<Self> {
        let start = first.0.checked_mul(SECTOR)?;
        let end = start.checked_add(len)?;
        let aligned = (start | len).is_multiple_of(u64::from(alignment));
        let inside = end / SECTOR <= disk.capacity.0;
        (aligned && inside).then_some(Self { start, len })
    }

    /// Offset of the first byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Number of bytes.
    pub fn len(self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Geometry = Geometry {
        capacity: Sectors(16),
        readonly: false,
        logical_block: 4096,
        physical_block: 4096,
        transfer_alignment: 512,
    };

    #[test]
    fn only_aligned_ranges_inside_the_disk_exist() {
        let range = |first, len, alignment| {
            DiskRange::checked(&DISK, Sectors(first), len, alignment)
                .map(|range| (range.start(), range.len()))
        };
        assert_eq!(range(0, 16 * 512, 512), Some((0, 8192)));
        assert_eq!(range(15, 512, 512), Some((15 * 512, 512)));
        assert_eq!(range(16, 0, 512), Some((8192, 0)));
        assert_eq!(range(8, 4096, 4096), Some((4096, 4096)));
        for (first, len, alignment) in [
            (15, 1024, 512),
            (17, 0, 512),
            (0, 100, 512),
            (0, 513, 512),
            (1, 4096, 4096),
            (0, 512, 4096),
            (u64::MAX, 512, 512),
            (u64::MAX / 512, 512, 512),
            (0, u64::MAX - 511, 512),
        ] {
            assert_eq!(range(first, len, alignment), None, "{first} {len} {alignment}");
        }
    }
}
