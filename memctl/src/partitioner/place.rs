//! Where partitions go: contiguous by best fit, scattered only when nothing else is left.
//!
//! Free space is not kept: it is what no partition owns and nobody has plugged, so what is given
//! back joins its neighbours without any work. Looking for it is O(extents + words of the region),
//! which the host pays when it adds or grows a partition and the guest never does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::blocks::{BlockIndex, BlockRange, Blocks};
use crate::partition::{Partition, PartitionId};

use super::Partitioner;
use super::plan::Cursor;

/// The most pieces that new blocks are made of. More would make each release slow.
const MAX_PIECES: usize = 16;

impl Partitioner {
    /// Free blocks for a new partition, or `None` when there are too few in few enough pieces.
    ///
    /// One run by best fit, the first of equals: blocks that were used before come first, and the
    /// guest has their memory map still. Else the largest runs there are.
    pub(super) fn place(&self, wanted: Blocks) -> Option<Vec<BlockRange>> {
        let mut best: Option<BlockRange> = None;
        let mut largest = BinaryHeap::with_capacity(MAX_PIECES + 1);
        for run in self.free_runs() {
            if run.count() >= wanted && best.is_none_or(|best| run.count() < best.count()) {
                best = Some(run);
            }
            largest.push((Reverse(run.count()), run.first()));
            if largest.len() > MAX_PIECES {
                largest.pop();
            }
        }
        match best.and_then(|best| best.head(wanted)) {
            Some(run) => Some(vec![run]),
            None => gather(wanted, largest),
        }
    }

    /// Free blocks by which a partition can grow: right after one of its extents if possible.
    pub(super) fn place_growth(
        &self,
        partition: &Partition,
        wanted: Blocks,
    ) -> Option<Vec<BlockRange>> {
        let next = partition.extents.iter().find_map(|extent| {
            let rest = BlockRange::span(extent.end(), self.geometry().all().end())?;
            let gap = self.owners.gaps(rest).next().filter(|gap| gap.first() == rest.first())?;
            let run = self.map.next_run(&gap, false).filter(|run| run.first() == gap.first())?;
            run.head(wanted).filter(|run| run.count() == wanted)
        });
        let pieces = next.map(|run| vec![run]).or_else(|| self.place(wanted))?;
        let room = Partition::MAX_EXTENTS - partition.extents.len().min(Partition::MAX_EXTENTS);
        (next.is_some() || pieces.len() <= room).then_some(pieces)
    }

    /// How many blocks a partition could still get.
    pub(super) fn free(&self) -> Blocks {
        self.free_runs().map(|run| run.count()).sum()
    }

    fn free_runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let area = self.layout.partition_area();
        let gaps = area.into_iter().flat_map(|area| self.owners.gaps(area));
        gaps.flat_map(|gap| self.map.runs(gap, false))
    }

    /// Makes every partition give up what it owns without wanting or having it.
    pub(super) fn give_up_all_slack(&mut self) {
        let ids: Vec<PartitionId> = self.partitions.keys().copied().collect();
        ids.into_iter().for_each(|id| self.give_up_slack(id));
    }

    /// The same for one partition, as far as the limit on its extents allows.
    pub(super) fn give_up_slack(&mut self, id: PartitionId) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let left = partition.slack();
        let mut cursor = Cursor { at: BlockIndex::FIRST, left, value: false, uniform: false };
        loop {
            // The cursor cuts a run to what is left, at its start; giving up its end instead keeps
            // the partition in one piece.
            let left = cursor.left;
            let Some(run) = cursor.next(&self.map, &partition.extents) else { return };
            let Some(extent) = partition.extent_of(&run).copied() else { return };
            let whole = BlockRange::span(run.first(), extent.end())
                .and_then(|rest| self.map.next_run(&rest, false))
                .unwrap_or(run);
            let Some(given) = whole.tail(left) else { return };
            let splits = extent.first() < given.first() && given.end() < extent.end();
            if !(splits && partition.extents.len() >= Partition::MAX_EXTENTS) {
                self.owners.take(partition, &given);
            }
        }
    }
}

/// The largest runs until there is enough, the last one cut.
fn gather(
    wanted: Blocks,
    largest: BinaryHeap<(Reverse<Blocks>, BlockIndex)>,
) -> Option<Vec<BlockRange>> {
    let mut left = wanted;
    let mut pieces = Vec::new();
    for (Reverse(count), first) in largest.into_sorted_vec() {
        let end = BlockIndex::new(first.as_u64() + count.min(left).as_u64());
        pieces.extend(BlockRange::span(first, end));
        left -= count;
    }
    (left == Blocks::ZERO).then_some(pieces)
}
