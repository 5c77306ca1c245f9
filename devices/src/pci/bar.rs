//! Base address registers (PCI 3.0, 6.2.5.1) and where their addresses come from.

use std::ops::Range;

/// How far up a memory BAR can be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB; takes one register.
    Memory32,
    /// Anywhere; takes two registers.
    Memory64,
}

/// A memory BAR. Not prefetchable: reading a device register may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its first register, 0 to 5.
    pub index: u8,
    /// Bytes it decodes: a power of two, at least 16.
    pub size: u64,
    /// Its width.
    pub kind: BarKind,
}

impl Bar {
    /// Number of registers it takes.
    pub fn registers(self) -> usize {
        match self.kind {
            BarKind::Memory32 => 1,
            BarKind::Memory64 => 2,
        }
    }

    /// The address bits a guest can change. Writing all ones and reading back shows them, which is
    /// how a guest learns the size.
    pub fn address_mask(self) -> u64 {
        let reach = match self.kind {
            BarKind::Memory32 => u64::from(u32::MAX),
            BarKind::Memory64 => u64::MAX,
        };
        reach & !(self.size - 1)
    }

    /// The read-only type bits at the bottom of the register.
    pub fn type_bits(self) -> u8 {
        match self.kind {
            BarKind::Memory32 => 0b000,
            BarKind::Memory64 => 0b100,
        }
    }

    /// Whether the BAR is one that a function can have.
    pub(super) fn is_valid(self) -> bool {
        let most = match self.kind {
            BarKind::Memory32 => 1 << 31,
            BarKind::Memory64 => 1 << 63,
        };
        self.size.is_power_of_two()
            && (16..=most).contains(&self.size)
            && usize::from(self.index) + self.registers() <= 6
    }
}

/// A range of guest-physical addresses that BARs are placed in, first fit, by size and alignment.
///
/// **Invariant:** `taken` is sorted, disjoint and inside `range`.
#[derive(Clone, Debug)]
pub(super) struct Aperture {
    range: Range<u64>,
    taken: Vec<Range<u64>>,
}

impl Aperture {
    pub(super) fn new(range: Range<u64>) -> Self {
        Self { range, taken: Vec::new() }
    }

    /// Takes `size` bytes (a power of two), aligned to their size; `None` when nothing is left.
    pub(super) fn allocate(&mut self, size: u64) -> Option<u64> {
        let mut start = self.range.start.checked_next_multiple_of(size)?;
        let mut at = 0;
        for taken in &self.taken {
            if start.checked_add(size)? <= taken.start {
                break;
            }
            start = start.max(taken.end).checked_next_multiple_of(size)?;
            at += 1;
        }
        let end = start.checked_add(size).filter(|&end| end <= self.range.end)?;
        self.taken.insert(at, start..end);
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_left_by_alignment_is_filled_first() {
        let mut aperture = Aperture::new(0x1000..0x10000);
        assert_eq!(aperture.allocate(0x4000), Some(0x4000));
        assert_eq!(aperture.allocate(0x1000), Some(0x1000));
        assert_eq!(aperture.allocate(0x2000), Some(0x2000));
        assert_eq!(aperture.allocate(0x1000), Some(0x8000));
    }

    #[test]
    fn a_full_aperture_gives_nothing() {
        let mut aperture = Aperture::new(0..0x2000);
        assert!(aperture.allocate(0x4000).is_none());
        assert!(aperture.allocate(0x2000).is_some());
        assert!(aperture.allocate(16).is_none());
        assert!(Aperture::new(u64::MAX - 5..u64::MAX).allocate(1 << 40).is_none());
    }

    proptest! {
        #[test]
        fn allocations_are_aligned_disjoint_and_inside(
            shifts in proptest::collection::vec(4u32..16, 1..40),
        ) {
            let mut aperture = Aperture::new(0x1234..0x4_0000);
            let mut given: Vec<Range<u64>> = Vec::new();
            for size in shifts.into_iter().map(|shift| 1 << shift) {
                let Some(start) = aperture.allocate(size) else { continue };
                prop_assert_eq!(start % size, 0);
                prop_assert!(start >= 0x1234 && start + size <= 0x4_0000);
                prop_assert!(given.iter().all(|g| g.end <= start || start + size <= g.start));
                given.push(start..start + size);
            }
        }
    }
}
