//! Which partition owns which block: the extents of all partitions by address.
//!
//! **Invariant:** the table's extents are exactly the partitions' extents, and no two overlap.
//! Both sides change only in this module.

use std::collections::BTreeMap;

use crate::blocks::{BlockIndex, BlockRange};
use crate::partition::{Partition, PartitionId};

/// The extents of all partitions, found by block in O(log extents).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owners {
    by_first: BTreeMap<BlockIndex, (BlockRange, PartitionId)>,
}

impl Owners {
    /// The partition that owns a block.
    pub(crate) fn of(&self, block: BlockIndex) -> Option<PartitionId> {
        let (_, (extent, id)) = self.by_first.range(..=block).next_back()?;
        (block < extent.end()).then_some(*id)
    }

    /// The first extent that touches a range, cut to the range.
    pub(crate) fn first_in(&self, range: &BlockRange) -> Option<(BlockRange, PartitionId)> {
        let before = self.by_first.range(..=range.first()).next_back();
        let after = self.by_first.range(range.first()..).next();
        let found = |(_, (extent, id)): (&BlockIndex, &(BlockRange, PartitionId))| {
            extent.intersection(range).map(|common| (common, *id))
        };
        before.and_then(found).or_else(|| after.and_then(found))
    }

    /// The index after the last owned block.
    pub(crate) fn end(&self) -> BlockIndex {
        self.by_first.last_key_value().map_or(BlockIndex::FIRST, |(_, (extent, _))| extent.end())
    }

    /// The runs of an area that no partition owns.
    pub(crate) fn gaps(&self, area: BlockRange) -> impl Iterator<Item = BlockRange> + '_ {
        let mut rest = Some(area);
        std::iter::from_fn(move || {
            loop {
                let here = rest?;
                let Some((extent, _)) = self.first_in(&here) else { return rest.take() };
                rest = BlockRange::span(extent.end(), here.end());
                let gap = BlockRange::span(here.first(), extent.first());
                if gap.is_some() {
                    return gap;
                }
            }
        })
    }

    /// Gives blocks that nobody owns to a partition. Extents that touch become one.
    pub(crate) fn give(&mut self, partition: &mut Partition, range: BlockRange) {
        let extents = &mut partition.extents;
        let at = extents.partition_point(|extent| extent.end() < range.first());
        let (mut first, mut end) = (range.first(), range.end());
        while let Some(next) = extents.get(at).filter(|next| next.first() <= end) {
            (first, end) = (first.min(next.first()), end.max(next.end()));
            self.by_first.remove(&next.first());
            extents.remove(at);
        }
        if let Some(merged) = BlockRange::span(first, end) {
            extents.insert(at, merged);
            self.by_first.insert(merged.first(), (merged, partition.id));
        }
    }

    /// Takes blocks away from a partition; they lie in one of its extents.
    pub(crate) fn take(&mut self, partition: &mut Partition, range: &BlockRange) {
        let extents = &mut partition.extents;
        let at = extents.partition_point(|extent| extent.end() <= range.first());
        let Some(extent) = extents.get(at).copied().filter(|extent| extent.contains(range)) else {
            return;
        };
        extents.remove(at);
        self.by_first.remove(&extent.first());
        let before = BlockRange::span(extent.first(), range.first());
        let after = BlockRange::span(range.end(), extent.end());
        for (at, rest) in (at..).zip(before.into_iter().chain(after)) {
            extents.insert(at, rest);
            self.by_first.insert(rest.first(), (rest, partition.id));
        }
    }

    /// Forgets the extents of a partition that is gone. Allocates nothing.
    pub(crate) fn forget(&mut self, partition: &Partition) {
        for extent in &partition.extents {
            self.by_first.remove(&extent.first());
        }
    }

    /// All extents in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (BlockRange, PartitionId)> + '_ {
        self.by_first.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::Blocks;
    use crate::partition::Cookie;

    fn range(first: u64, count: u64) -> BlockRange {
        BlockRange::span(BlockIndex::new(first), BlockIndex::new(first + count)).unwrap()
    }

    fn partition(id: u32) -> Partition {
        let name = format!("fn-{id}").parse().unwrap();
        Partition::new(PartitionId(id), name, Cookie(0), Blocks::new(1))
    }

    #[test]
    fn extents_that_touch_become_one() {
        let (mut owners, mut one) = (Owners::default(), partition(1));
        for given in [range(0, 2), range(8, 2), range(4, 2)] {
            owners.give(&mut one, given);
        }
        assert_eq!(one.extents, [range(0, 2), range(4, 2), range(8, 2)]);
        owners.give(&mut one, range(2, 2));
        assert_eq!(one.extents, [range(0, 6), range(8, 2)]);
        owners.give(&mut one, range(6, 2));
        assert_eq!(one.extents, [range(0, 10)]);
        assert_eq!(owners.iter().collect::<Vec<_>>(), [(range(0, 10), PartitionId(1))]);
    }

    #[test]
    fn touching_extents_of_two_partitions_stay_two() {
        let (mut owners, mut one, mut two) = (Owners::default(), partition(1), partition(2));
        owners.give(&mut one, range(0, 4));
        owners.give(&mut two, range(4, 4));
        assert_eq!(owners.of(BlockIndex::new(3)), Some(PartitionId(1)));
        assert_eq!(owners.of(BlockIndex::new(4)), Some(PartitionId(2)));
        assert_eq!(owners.of(BlockIndex::new(8)), None);
        assert_eq!(owners.first_in(&range(2, 9)), Some((range(2, 2), PartitionId(1))));
        assert_eq!(owners.first_in(&range(8, 9)), None);
        owners.forget(&one);
        assert_eq!(owners.of(BlockIndex::new(3)), None);
        assert_eq!(owners.end(), BlockIndex::new(8));
    }

    #[test]
    fn taking_from_the_middle_leaves_two_extents() {
        let (mut owners, mut one) = (Owners::default(), partition(1));
        owners.give(&mut one, range(0, 10));
        owners.take(&mut one, &range(4, 2));
        assert_eq!(one.extents, [range(0, 4), range(6, 4)]);
        owners.take(&mut one, &range(0, 4));
        owners.take(&mut one, &range(8, 2));
        assert_eq!(one.extents, [range(6, 2)]);
        owners.take(&mut one, &range(7, 2));
        assert_eq!(one.extents, [range(6, 2)], "a range that leaves the extent takes nothing");
    }

    #[test]
    fn gaps_are_what_nobody_owns() {
        let (mut owners, mut one) = (Owners::default(), partition(1));
        owners.give(&mut one, range(2, 2));
        owners.give(&mut one, range(6, 2));
        let gaps = |area| owners.gaps(area).collect::<Vec<_>>();
        assert_eq!(gaps(range(0, 10)), [range(0, 2), range(4, 2), range(8, 2)]);
        assert_eq!(gaps(range(3, 4)), [range(4, 2)]);
        assert_eq!(gaps(range(2, 2)), []);
    }
}
