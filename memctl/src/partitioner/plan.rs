//! Plans: what was checked, waiting for the host's part.
//!
//! Dropping a plan leaves the partitioner as it was. Committing it is infallible, allocates nothing
//! (but for the extent that a shrink may split), and costs O(words of the range + extents in it).

use std::time::Duration;

use crate::blocks::{BlockIndex, BlockRange, Blocks};
use crate::map::BlockMap;
use crate::partition::{Account, Partition, PartitionId, Watch};

use super::Partitioner;

#[derive(Clone, Copy, Debug)]
pub(super) enum PlugTarget {
    /// Blocks that the guest named, whoever owns them.
    Range(BlockRange),
    /// What a partition misses.
    Partition(PartitionId),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum UnplugTarget {
    /// Blocks that the guest named, whoever owns them.
    Range(BlockRange),
    /// A whole partition, which is gone afterwards.
    Release(PartitionId),
    /// Blocks of a partition, which lives on without them.
    Shrink(PartitionId, BlockRange),
    /// Everything; the range is the region.
    All(BlockRange),
}

/// A checked PLUG or PART_PLUG. The host opens [`Plug::runs`], and populates them where that is
/// asked for; then [`Plug::commit`].
#[derive(Debug)]
#[must_use = "nothing is plugged until the plan is committed"]
pub struct Plug<'a> {
    pub(super) partitioner: &'a mut Partitioner,
    pub(super) target: PlugTarget,
    pub(super) blocks: Blocks,
}

/// A checked UNPLUG, PART_RELEASE, PART_SHRINK or UNPLUG_ALL. The host closes and frees
/// [`Unplug::runs`]; then [`Unplug::commit`].
#[derive(Debug)]
#[must_use = "nothing is unplugged until the plan is committed"]
pub struct Unplug<'a> {
    partitioner: &'a mut Partitioner,
    target: UnplugTarget,
    blocks: Blocks,
    took: Option<Duration>,
}

impl Plug<'_> {
    /// How many blocks are to be plugged.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// The runs to open, ascending; at least one. May be asked for again, to undo.
    pub fn runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let extents = match &self.target {
            PlugTarget::Range(range) => std::slice::from_ref(range),
            PlugTarget::Partition(id) => self.partitioner.extents(*id),
        };
        self.cursor().over(&self.partitioner.map, extents)
    }

    /// The host has done its part: books the blocks to their owners. ACK.
    pub fn commit(self, watch: &mut Watch<'_>) {
        let mut cursor = self.cursor();
        let Self { partitioner, target, blocks } = self;
        partitioner.plugged += blocks;
        match target {
            PlugTarget::Range(range) => {
                partitioner.map.set(&range);
                partitioner.by_address = true;
                partitioner.book(range, Account::plug, watch);
            }
            PlugTarget::Partition(id) => {
                partitioner.plug_partition(id, &mut cursor);
                partitioner.update(id, watch, |partition| {
                    partition.account.plug(blocks);
                    partition.resized = false;
                });
            }
        }
        partitioner.debug_check();
    }

    /// The unplugged runs of the target. Of a range every block is unplugged, or there was no plan.
    fn cursor(&self) -> Cursor {
        let uniform = match &self.target {
            PlugTarget::Range(_) => true,
            PlugTarget::Partition(id) => {
                let account = self.partitioner.partition(*id).map(Partition::account);
                account.is_some_and(|account| account.plugged == Blocks::ZERO)
            }
        };
        Cursor { at: BlockIndex::FIRST, left: self.blocks, value: false, uniform }
    }
}

impl<'a> Unplug<'a> {
    pub(super) fn new(
        partitioner: &'a mut Partitioner,
        target: UnplugTarget,
        blocks: Blocks,
    ) -> Self {
        Self { partitioner, target, blocks, took: None }
    }

    /// The host took this long to close and free the runs, which the owners keep in
    /// [`Account::last_release`].
    pub fn took(self, time: Duration) -> Self {
        Self { took: Some(time), ..self }
    }

    /// How many blocks are to be unplugged. Zero only for UNPLUG_ALL with nothing plugged.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// The runs to close and free, ascending. May be asked for again, to undo. For UNPLUG_ALL this
    /// walks the region's bitmap once.
    pub fn runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let (extents, uniform) = match &self.target {
            UnplugTarget::Range(range) | UnplugTarget::Shrink(_, range) => {
                (std::slice::from_ref(range), true)
            }
            UnplugTarget::All(region) => (std::slice::from_ref(region), false),
            UnplugTarget::Release(id) => {
                let extents = self.partitioner.extents(*id);
                let owned: Blocks = extents.iter().map(BlockRange::count).sum();
                (extents, owned == self.blocks)
            }
        };
        Cursor { at: BlockIndex::FIRST, left: self.blocks, value: true, uniform }
            .over(&self.partitioner.map, extents)
    }

    /// The host has closed and freed the runs: takes the blocks off their owners. ACK.
    pub fn commit(self, watch: &mut Watch<'_>) {
        let Self { partitioner, target, blocks, took } = self;
        partitioner.plugged -= blocks;
        partitioner.by_address &= partitioner.plugged > Blocks::ZERO;
        let entry = |account: &mut Account, count| account.unplug(count, took);
        match target {
            UnplugTarget::Range(range) => {
                partitioner.map.clear(&range);
                partitioner.book(range, entry, watch);
            }
            UnplugTarget::Release(id) => partitioner.release(id, entry, watch),
            UnplugTarget::Shrink(id, range) => partitioner.shrink(id, &range, entry, watch),
            UnplugTarget::All(region) => partitioner.unplug_all(&region, entry, watch),
        }
        partitioner.debug_check();
    }
}

/// The next run of blocks of one plug state in some extents, up to a number of blocks.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    pub(super) at: BlockIndex,
    pub(super) left: Blocks,
    pub(super) value: bool,
    /// Every block of the extents is known to be in that state: no need to look.
    pub(super) uniform: bool,
}

impl Cursor {
    pub(super) fn next(&mut self, map: &BlockMap, extents: &[BlockRange]) -> Option<BlockRange> {
        let at = extents.partition_point(|extent| extent.end() <= self.at);
        let run = extents[at..].iter().find_map(|extent| {
            let rest = BlockRange::span(extent.first().max(self.at), extent.end())?;
            if self.uniform { Some(rest) } else { map.next_run(&rest, self.value) }
        })?;
        let run = run.head(self.left)?;
        self.at = run.end();
        self.left -= run.count();
        Some(run)
    }

    pub(super) fn over<'a>(
        mut self,
        map: &'a BlockMap,
        extents: &'a [BlockRange],
    ) -> impl Iterator<Item = BlockRange> + 'a {
        std::iter::from_fn(move || self.next(map, extents))
    }
}

impl Partitioner {
    fn extents(&self, id: PartitionId) -> &[BlockRange] {
        self.partition(id).map_or(&[], Partition::extents)
    }

    /// Books a range to whoever owns its blocks.
    fn book(
        &mut self,
        range: BlockRange,
        entry: impl Fn(&mut Account, Blocks),
        watch: &mut Watch<'_>,
    ) {
        let mut shared = range.count();
        let mut rest = Some(range);
        while let Some((part, id)) = rest.and_then(|rest| self.owners.first_in(&rest)) {
            rest = BlockRange::span(part.end(), range.end());
            shared -= part.count();
            self.update(id, watch, |partition| entry(&mut partition.account, part.count()));
        }
        if shared > Blocks::ZERO {
            entry(&mut self.shared, shared);
        }
    }

    fn plug_partition(&mut self, id: PartitionId, cursor: &mut Cursor) {
        let Some(partition) = self.partitions.get(&id) else { return };
        while let Some(run) = cursor.next(&self.map, &partition.extents) {
            self.map.set(&run);
        }
    }

    fn release(
        &mut self,
        id: PartitionId,
        entry: impl Fn(&mut Account, Blocks),
        watch: &mut Watch<'_>,
    ) {
        let Some(partition) = self.partitions.get(&id) else { return };
        partition.extents.iter().for_each(|extent| self.map.clear(extent));
        self.update(id, watch, |partition| {
            let plugged = partition.account.plugged;
            entry(&mut partition.account, plugged);
            partition.account.requested = Blocks::ZERO;
        });
    }

    fn shrink(
        &mut self,
        id: PartitionId,
        range: &BlockRange,
        entry: impl Fn(&mut Account, Blocks),
        watch: &mut Watch<'_>,
    ) {
        self.map.clear(range);
        if let Some(partition) = self.partitions.get_mut(&id) {
            self.owners.take(partition, range);
        }
        self.update(id, watch, |partition| entry(&mut partition.account, range.count()));
    }

    fn unplug_all(
        &mut self,
        region: &BlockRange,
        entry: impl Fn(&mut Account, Blocks),
        watch: &mut Watch<'_>,
    ) {
        let unplug = |account: &mut Account| {
            let plugged = account.plugged;
            if plugged > Blocks::ZERO {
                entry(account, plugged);
            }
        };
        self.map.clear(region);
        unplug(&mut self.shared);
        let mut next = self.next_partition(PartitionId(0)).map(Partition::id);
        while let Some(id) = next {
            self.update(id, watch, |partition| unplug(&mut partition.account));
            let above = id.0.checked_add(1);
            next = above.and_then(|id| self.next_partition(PartitionId(id))).map(Partition::id);
        }
        self.usable = self.least_usable();
    }
}
