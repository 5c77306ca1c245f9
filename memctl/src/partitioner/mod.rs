//! The truth on who owns which block of one virtio-mem region, and what may happen next.
//!
//! One [`Partitioner`] stands behind each virtio-mem device. It does no I/O: the device asks it,
//! does the host's part, and commits.
//!
//! ```text
//! guest's numbers -> BlockRange::checked -> plan_*() -> host opens or frees plan.runs() -> commit()
//!                         | RangeError         | Refusal            | failed: drop the plan
//!                         +----- answer() -----+                    +-> Answer::Busy
//! ```
//!
//! A plan borrows the partitioner exclusively, so nothing changes between the check and the commit,
//! and dropping it leaves everything as it was.
//!
//! # Layout of a region
//! The first blocks are the *shared area*; the rest is for partitions, which get contiguous blocks by
//! best fit. The monitor makes devices with one of the two: shared memory only, or partitions only.
//!
//! A guest without the channel plugs either by address: any unplugged block below the usable size,
//! lowest first on Linux, and every block is booked to whom it belongs: the partition whose extent
//! it is in, or else shared memory. It is not refused for a block that nobody asked for as long as the
//! sum fits: the Linux driver would ask for the same block again, for ever or after a minute. What keeps
//! shared blocks out of the partition area is the usable size, which ends after the last partition.
//! Blocks that stray into a gap between partitions are booked as shared and avoided by placement,
//! until the guest unplugs them.
//!
//! # Invariants
//! Checked by [`Partitioner::check_invariants`]: after each change in debug builds.
//! 1. The owners' plugged blocks add up to the bits set in the map, each partition's in its extents.
//! 2. Extents are inside the partition area, disjoint, as the partitions say, and at most
//!    [`Partition::MAX_EXTENTS`] for one partition.
//! 3. A partition owns at least what is requested for it. Slack, owned but neither wanted nor
//!    plugged, is given up before anything is placed.
//! 4. A partition's state is what its account says: `Requested` until all of it was plugged, gone
//!    when neither plugged nor wanted.
//! 5. `requested size <= usable size <= region`, every plugged block is below the usable size, and
//!    the usable size shrinks only when everything is unplugged.
//! 6. The requested sizes add up.
//! 7. `plugged <= peak` for each owner.
//! 8. While a guest has what it plugged by address, no request takes it over the requested size: a
//!    block it took in one partition's name and place may stand for another partition's.

mod check;
mod guest;
mod host;
mod place;
mod plan;

use std::collections::BTreeMap;

pub use check::Broken;
pub use guest::{Answer, PlugState, Refusal};
pub use host::{HostError, Resize};
pub use plan::{Plug, Unplug};

use crate::Bytes;
use crate::blocks::{BlockIndex, BlockRange, Blocks, Geometry};
use crate::map::BlockMap;
use crate::owners::Owners;
use crate::partition::{Account, Change, Partition, PartitionId, PartitionState, Watch};
use plan::Cursor;

/// Who owns a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// No partition: the block is, or would be, shared memory of the VM.
    Shared,
    /// A partition, plugged or not.
    Partition(PartitionId),
}

/// How the guest's driver talks to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By address, as virtio-mem is specified; also before the driver has negotiated anything.
    #[default]
    Plain,
    /// By partition, through the partition channel.
    Channel,
}

/// How a region is to be used. Fixed while the VM lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the region is.
    pub geometry: Geometry,
    /// The blocks at its start that no partition gets. All of it for a device without partitions.
    pub shared_area: Blocks,
    /// The most partitions at one time (`part_max`).
    pub max_partitions: u32,
}

impl Layout {
    /// A region that serves shared memory only, as a stock guest's does.
    pub fn shared_only(geometry: Geometry) -> Self {
        Self { geometry, shared_area: geometry.blocks(), max_partitions: 0 }
    }

    /// How many blocks are for partitions.
    fn partition_blocks(&self) -> Blocks {
        self.geometry.blocks() - self.shared_area
    }

    /// The blocks that partitions get; `None` when the shared area is all there is.
    fn partition_area(&self) -> Option<BlockRange> {
        self.geometry.all().tail(self.partition_blocks())
    }
}

/// Who owns which block of one region. See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partitioner {
    layout: Layout,
    mode: Mode,
    map: BlockMap,
    shared: Account,
    partitions: BTreeMap<PartitionId, Partition>,
    owners: Owners,
    /// Sums over all owners, kept so that a guest's request costs no loop over partitions.
    requested: Blocks,
    plugged: Blocks,
    /// Whether some of it was plugged by address.
    by_address: bool,
    usable: Blocks,
    prepare: Blocks,
    generation: u32,
    /// The partition that was removed last, which may be gone by now.
    removed: Option<PartitionId>,
    next_id: u32,
}

impl Partitioner {
    /// A region with nothing plugged and nothing asked for. A shared area over the region's size
    /// means the whole region.
    pub fn new(layout: Layout) -> Self {
        let blocks = layout.geometry.blocks();
        let layout = Layout { shared_area: layout.shared_area.min(blocks), ..layout };
        let mut made = Self {
            layout,
            mode: Mode::Plain,
            map: BlockMap::new(blocks),
            shared: Account::default(),
            partitions: BTreeMap::new(),
            owners: Owners::default(),
            requested: Blocks::ZERO,
            plugged: Blocks::ZERO,
            by_address: false,
            usable: Blocks::ZERO,
            prepare: Blocks::ZERO,
            generation: 0,
            removed: None,
            next_id: 1,
        };
        made.usable = made.least_usable();
        made
    }

    /// Where the region is.
    pub fn geometry(&self) -> &Geometry {
        &self.layout.geometry
    }

    /// How the region is used.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How the driver talks to the device.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The device's `requested_size`: what the host wants all owners to have.
    pub fn requested_size(&self) -> Bytes {
        self.geometry().bytes(self.requested)
    }

    /// The device's `plugged_size`.
    pub fn plugged_size(&self) -> Bytes {
        self.geometry().bytes(self.plugged)
    }

    /// The device's `usable_region_size`: in plain mode it ends after the shared area and the last
    /// partition, in channel mode it is the region. It shrinks only when everything is unplugged.
    pub fn usable_size(&self) -> Bytes {
        self.geometry().bytes(self.usable)
    }

    /// The device's `part_prepare`: what the driver should have its bookkeeping ready for, from the
    /// start of the region.
    pub fn prepared_size(&self) -> Bytes {
        self.geometry().bytes(self.prepare)
    }

    /// The device's `part_gen`: one more (wrapping) with each change of what the host wants. A
    /// configuration interrupt is due when a call has changed this.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The device's `part_back`: of the partitions that the host wants back, the one that it asked
    /// for last. O(log partitions).
    pub fn wanted_back(&self) -> Option<PartitionId> {
        self.removed.filter(|id| self.partition(*id).is_some_and(|one| !one.wanted()))
    }

    /// The account of the shared memory.
    pub fn shared(&self) -> &Account {
        &self.shared
    }

    /// All partitions, by ascending number.
    pub fn partitions(&self) -> impl ExactSizeIterator<Item = &Partition> {
        self.partitions.values()
    }

    /// The partition with a number.
    pub fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(&id)
    }

    /// The first partition with this number or a higher one.
    fn next_partition(&self, from: PartitionId) -> Option<&Partition> {
        self.partitions.range(from..).next().map(|(_, partition)| partition)
    }

    /// The plugged runs of one of the partitions, ascending. O(runs) for one that is plugged whole,
    /// else O(words of its extents).
    pub fn runs_of<'a>(
        &'a self,
        partition: &'a Partition,
    ) -> impl Iterator<Item = BlockRange> + 'a {
        let uniform = partition.owned() == partition.account.plugged;
        let (at, left) = (BlockIndex::FIRST, partition.account.plugged);
        Cursor { at, left, value: true, uniform }.over(&self.map, &partition.extents)
    }

    /// The partition with a name. O(partitions): for the API, not for guests' requests.
    pub fn find(&self, name: &str) -> Option<&Partition> {
        self.partitions().find(|partition| partition.name.as_str() == name)
    }

    /// Who owns a block. O(log extents).
    pub fn owner_of(&self, block: BlockIndex) -> Owner {
        self.owners.of(block).map_or(Owner::Shared, Owner::Partition)
    }

    /// The driver has finished negotiating, or was reset (`Plain`). Changes no block (virtio 1.3,
    /// 5.15.6). Configuration space changes when the usable size does.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.usable = self.usable.max(self.least_usable());
        self.debug_check();
    }

    /// What the usable size is when nothing is plugged.
    fn least_usable(&self) -> Blocks {
        match self.mode {
            Mode::Plain => self.layout.shared_area.max(Blocks::new(self.owners.end().as_u64())),
            Mode::Channel => self.geometry().blocks(),
        }
    }

    /// Changes a partition through `change`, settles its state, tells the watcher, and drops it
    /// when it is gone. Allocates nothing.
    fn update(
        &mut self,
        id: PartitionId,
        watch: &mut Watch<'_>,
        change: impl FnOnce(&mut Partition),
    ) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let (from, wanted) = (partition.state, partition.account.requested);
        change(partition);
        if partition.account.requested != wanted {
            self.requested = self.requested - wanted + partition.account.requested;
            self.generation = self.generation.wrapping_add(1);
        }
        partition.settle(self.layout.geometry.bytes(partition.account.plugged));
        let gone = partition.state == PartitionState::Absent;
        if partition.state != from {
            watch(Change { partition, from });
        }
        if gone && let Some(partition) = self.partitions.remove(&id) {
            self.owners.forget(&partition);
        }
    }
}

#[cfg(test)]
mod tests;
