//! Block arithmetic: what the guest can plug and unplug, and the one way from its numbers to a
//! range.
//!
//! **Invariant:** a [`BlockRange`] is never empty and lies inside the region it was checked
//! against. What takes a range checks no bounds again.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use crate::Bytes;

/// A number of blocks. Arithmetic saturates: it neither wraps nor panics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blocks(u64);

impl Blocks {
    /// No block.
    pub const ZERO: Self = Self(0);

    /// Exactly `count` blocks.
    pub const fn new(count: u64) -> Self {
        Self(count)
    }

    /// The number of blocks.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl Add for Blocks {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Blocks {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Blocks {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl SubAssign for Blocks {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Blocks {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 block"),
            count => write!(f, "{count} blocks"),
        }
    }
}

/// The position of a block in its region; the first block is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(u64);

impl BlockIndex {
    /// The region's first block.
    pub const FIRST: Self = Self(0);

    /// The block with `index` blocks before it.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// How many blocks come before it.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// Why three numbers describe no region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The block size is no power of two, or under [`Geometry::MIN_BLOCK`].
    #[error("a block of {0} is not a power of two of at least {min}", min = Geometry::MIN_BLOCK)]
    BlockSize(Bytes),
    /// The region's address is no multiple of the block size.
    #[error("the region's address {0:#x} is not a multiple of the block size")]
    Address(u64),
    /// The region's size is zero or no multiple of the block size.
    #[error("a region of {0} is not a whole number of blocks")]
    Size(Bytes),
    /// More blocks than [`Geometry::MAX_BLOCKS`].
    #[error("{0} are more than a region can have; use larger blocks")]
    TooManyBlocks(Blocks),
    /// The region ends after the last guest-physical address.
    #[error("the region leaves the address space")]
    PastAddressSpace,
}

/// Where a region lies and how it is cut into blocks. Fixed while the VM lives (virtio 1.3,
/// 5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    addr: u64,
    block_size: Bytes,
    blocks: Blocks,
}

impl Geometry {
    /// The smallest block: a huge page, so that no free splits one.
    pub const MIN_BLOCK: Bytes = Bytes::mib(2);

    /// The most blocks of a region, 32 TiB of 2 MiB blocks: it bounds the bitmap to 2 MiB.
    pub const MAX_BLOCKS: Blocks = Blocks(1 << 24);

    /// A region of `size` bytes at the guest-physical address `addr`.
    ///
    /// # Errors
    /// Any combination in which a block could be misaligned, partial or unreachable.
    pub fn new(addr: u64, block_size: Bytes, size: Bytes) -> Result<Self, GeometryError> {
        if !block_size.is_power_of_two() || block_size < Self::MIN_BLOCK {
            return Err(GeometryError::BlockSize(block_size));
        }
        if !Bytes::new(addr).is_multiple_of(block_size) {
            return Err(GeometryError::Address(addr));
        }
        if size == Bytes::ZERO || !size.is_multiple_of(block_size) {
            return Err(GeometryError::Size(size));
        }
        if Bytes::new(addr).checked_add(size).is_none() {
            return Err(GeometryError::PastAddressSpace);
        }
        let blocks = Blocks(size.as_u64() / block_size.as_u64());
        if blocks > Self::MAX_BLOCKS {
            return Err(GeometryError::TooManyBlocks(blocks));
        }
        Ok(Self { addr, block_size, blocks })
    }

    /// The guest-physical address of the first block.
    pub const fn addr(&self) -> u64 {
        self.addr
    }

    /// The size of one block.
    pub const fn block_size(&self) -> Bytes {
        self.block_size
    }

    /// How many blocks the region has.
    pub const fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// The size of the region.
    pub const fn size(&self) -> Bytes {
        self.bytes(self.blocks)
    }

    /// All blocks of the region.
    pub const fn all(&self) -> BlockRange {
        BlockRange { first: BlockIndex::FIRST, count: self.blocks }
    }

    /// The size of `count` blocks. Exact for up to a region's worth, else saturating.
    pub const fn bytes(&self, count: Blocks) -> Bytes {
        Bytes::new(self.block_size.as_u64().saturating_mul(count.0))
    }

    /// How many blocks `size` is, or `None` when it is not a whole number of them.
    pub fn whole_blocks(&self, size: Bytes) -> Option<Blocks> {
        let whole = size.is_multiple_of(self.block_size);
        whole.then_some(Blocks(size.as_u64() / self.block_size.as_u64()))
    }

    /// The guest-physical address of a block of the region.
    pub const fn address_of(&self, block: BlockIndex) -> u64 {
        self.addr.saturating_add(self.bytes(Blocks(block.0)).as_u64())
    }

    /// The block that holds a guest-physical address, or `None` outside the region. For a fault:
    /// any alignment will do.
    pub fn block_at(&self, addr: u64) -> Option<BlockIndex> {
        let index = addr.checked_sub(self.addr)? / self.block_size.as_u64();
        (index < self.blocks.0).then_some(BlockIndex(index))
    }
}

/// Why a guest's two numbers describe no range. All of them are ERROR (virtio 1.3, 5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// It starts before the region.
    #[error("the range starts below the region")]
    BelowRegion,
    /// It starts inside a block.
    #[error("the range does not start on a block")]
    Misaligned,
    /// It has no block.
    #[error("the range is empty")]
    Empty,
    /// It ends after the region; where its end wraps round 2^64, too.
    #[error("the range ends after the region")]
    PastEnd,
}

/// One or more neighbouring blocks of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRange {
    first: BlockIndex,
    count: Blocks,
}

impl BlockRange {
    /// The range that a guest names by guest-physical address and number of blocks.
    ///
    /// # Errors
    /// Any range that is not a positive number of whole blocks inside the region.
    pub fn checked(geometry: &Geometry, addr: u64, nb_blocks: u64) -> Result<Self, RangeError> {
        let offset = addr.checked_sub(geometry.addr).ok_or(RangeError::BelowRegion)?;
        if !Bytes::new(offset).is_multiple_of(geometry.block_size) {
            return Err(RangeError::Misaligned);
        }
        Self::within(geometry, offset / geometry.block_size.as_u64(), nb_blocks)
    }

    /// The range that a guest names by its first block's index in the region.
    ///
    /// # Errors
    /// A range that is empty or leaves the region.
    pub fn within(geometry: &Geometry, first: u64, nb_blocks: u64) -> Result<Self, RangeError> {
        if nb_blocks == 0 {
            return Err(RangeError::Empty);
        }
        let room = geometry.blocks.0.checked_sub(first).ok_or(RangeError::PastEnd)?;
        if nb_blocks > room {
            return Err(RangeError::PastEnd);
        }
        Ok(Self { first: BlockIndex(first), count: Blocks(nb_blocks) })
    }

    /// From `first` to just before `end`, or `None` when that is nothing. Both come from ranges
    /// of the region already.
    pub(crate) fn span(first: BlockIndex, end: BlockIndex) -> Option<Self> {
        (first < end).then(|| Self { first, count: Blocks(end.0 - first.0) })
    }

    /// The first block.
    pub const fn first(&self) -> BlockIndex {
        self.first
    }

    /// The number of blocks; never zero.
    pub const fn count(&self) -> Blocks {
        self.count
    }

    /// The index after the last block.
    pub const fn end(&self) -> BlockIndex {
        BlockIndex(self.first.0 + self.count.0)
    }

    /// Whether all of `other` is inside.
    pub fn contains(&self, other: &Self) -> bool {
        self.first <= other.first && other.end() <= self.end()
    }

    /// What both have.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::span(self.first.max(other.first), self.end().min(other.end()))
    }

    /// Its first `count` blocks, all of it when it has no more; `None` for zero.
    pub(crate) fn head(&self, count: Blocks) -> Option<Self> {
        let count = count.min(self.count);
        (count > Blocks::ZERO).then_some(Self { first: self.first, count })
    }

    /// Its last `count` blocks, all of it when it has no more; `None` for zero.
    pub(crate) fn tail(&self, count: Blocks) -> Option<Self> {
        let count = count.min(self.count);
        Self::span(BlockIndex(self.end().0 - count.0), self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 4 << 30;
    const BLOCK: u64 = 2 << 20;

    fn geometry() -> Geometry {
        Geometry::new(BASE, Bytes::mib(2), Bytes::mib(128)).unwrap()
    }

    #[test]
    fn a_region_is_cut_into_whole_blocks() {
        let geometry = geometry();
        assert_eq!(geometry.blocks(), Blocks::new(64));
        assert_eq!(geometry.size(), Bytes::mib(128));
        assert_eq!((geometry.addr(), geometry.block_size()), (BASE, Bytes::mib(2)));
        assert_eq!(geometry.whole_blocks(Bytes::mib(6)), Some(Blocks::new(3)));
        assert_eq!(geometry.whole_blocks(Bytes::mib(7)), None);
        assert_eq!(geometry.all().count(), Blocks::new(64));
        assert_eq!(geometry.bytes(Blocks::new(u64::MAX)), Bytes::new(u64::MAX));
    }

    #[test]
    fn a_region_that_cannot_be_is_refused() {
        let made = |addr, block: Bytes, size: Bytes| Geometry::new(addr, block, size).unwrap_err();
        let (two, three) = (Bytes::mib(2), Bytes::mib(3));
        assert_eq!(made(0, Bytes::mib(1), two), GeometryError::BlockSize(Bytes::mib(1)));
        assert_eq!(made(0, three, three), GeometryError::BlockSize(three));
        assert_eq!(made(0, Bytes::ZERO, two), GeometryError::BlockSize(Bytes::ZERO));
        assert_eq!(made(4096, two, two), GeometryError::Address(4096));
        assert_eq!(made(0, two, three), GeometryError::Size(three));
        assert_eq!(made(0, two, Bytes::ZERO), GeometryError::Size(Bytes::ZERO));
        assert_eq!(made(u64::MAX - BLOCK + 1, two, two), GeometryError::PastAddressSpace);
        let huge = Bytes::new(33 << 40);
        assert!(matches!(made(0, two, huge), GeometryError::TooManyBlocks(_)));
        assert!(made(0, two, huge).to_string().contains("17301504 blocks"));
    }

    #[test]
    fn any_address_inside_finds_its_block() {
        let geometry = geometry();
        assert_eq!(geometry.block_at(BASE + BLOCK - 1), Some(BlockIndex::FIRST));
        assert_eq!(geometry.block_at(BASE + BLOCK), Some(BlockIndex::new(1)));
        assert_eq!(geometry.block_at(BASE + 64 * BLOCK - 1), Some(BlockIndex::new(63)));
        assert_eq!(geometry.block_at(BASE + 64 * BLOCK), None);
        assert_eq!(geometry.block_at(BASE - 1), None);
        assert_eq!(geometry.address_of(BlockIndex::new(3)), BASE + 3 * BLOCK);
    }

    #[test]
    fn whole_blocks_inside_the_region_are_a_range() {
        let geometry = geometry();
        let range = BlockRange::checked(&geometry, BASE + 62 * BLOCK, 2).unwrap();
        assert_eq!((range.first().as_u64(), range.count().as_u64()), (62, 2));
        assert_eq!(range.end(), BlockIndex::new(64));
        assert!(BlockRange::checked(&geometry, BASE, 64).is_ok());
    }

    #[test]
    fn every_other_allegation_is_refused() {
        let geometry = geometry();
        let refused = |addr, count| BlockRange::checked(&geometry, addr, count).unwrap_err();
        assert_eq!(refused(BASE - BLOCK, 1), RangeError::BelowRegion);
        assert_eq!(refused(0, 1), RangeError::BelowRegion);
        assert_eq!(refused(BASE + 4096, 1), RangeError::Misaligned);
        assert_eq!(refused(BASE, 0), RangeError::Empty);
        assert_eq!(refused(BASE, 65), RangeError::PastEnd);
        assert_eq!(refused(BASE + 63 * BLOCK, 2), RangeError::PastEnd);
        assert_eq!(refused(BASE + 64 * BLOCK, 1), RangeError::PastEnd);
        assert_eq!(refused(BASE + 65 * BLOCK, 65535), RangeError::PastEnd);
        assert_eq!(refused(0u64.wrapping_sub(BLOCK), 2), RangeError::PastEnd);
        assert_eq!(refused(BASE + BLOCK, u64::MAX), RangeError::PastEnd);
    }

    #[test]
    fn ranges_meet_and_part() {
        let geometry = geometry();
        let range = |first, count| BlockRange::within(&geometry, first, count).unwrap();
        assert_eq!(range(0, 8).intersection(&range(4, 8)), Some(range(4, 4)));
        assert_eq!(range(0, 4).intersection(&range(4, 4)), None);
        assert!(range(0, 8).contains(&range(7, 1)) && !range(0, 8).contains(&range(7, 2)));
        assert_eq!(range(4, 4).head(Blocks::new(2)), Some(range(4, 2)));
        assert_eq!(range(4, 4).tail(Blocks::new(2)), Some(range(6, 2)));
        assert_eq!(range(4, 4).tail(Blocks::new(9)), Some(range(4, 4)));
        assert_eq!(range(4, 4).head(Blocks::ZERO), None);
        assert_eq!(range(4, 4).tail(Blocks::ZERO), None);
    }

    #[test]
    fn counts_saturate_and_read_well() {
        let (one, max) = (Blocks::new(1), Blocks::new(u64::MAX));
        assert_eq!(max + one, max);
        assert_eq!(one - max, Blocks::ZERO);
        assert_eq!([one, one].into_iter().sum::<Blocks>(), Blocks::new(2));
        assert_eq!(one.to_string(), "1 block");
        assert_eq!(Blocks::new(2).to_string(), "2 blocks");
    }
}
