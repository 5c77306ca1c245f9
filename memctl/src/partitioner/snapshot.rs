//! The form in which a partitioner is kept: ranges instead of the bitmap, and nothing that can be
//! computed again.

use serde::{Deserialize, Serialize};

use crate::Bytes;
use crate::blocks::{BlockRange, Blocks, Geometry, RangeError};
use crate::partition::{
    Account, Cookie, Hints, NameError, Partition, PartitionId, PartitionName, PartitionState,
    Policy,
};

use super::{Broken, Layout, Mode, Partitioner};

/// A run of blocks, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeRecord {
    /// The index of its first block.
    pub first: u64,
    /// The number of its blocks.
    pub count: u64,
}

impl From<BlockRange> for RangeRecord {
    fn from(range: BlockRange) -> Self {
        Self { first: range.first().as_u64(), count: range.count().as_u64() }
    }
}

/// One partition, unchecked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionRecord {
    /// The guest's number for it.
    pub id: PartitionId,
    /// The host's name for it.
    pub name: String,
    /// The host's number for it.
    pub cookie: Cookie,
    /// Where it is in its life.
    pub state: PartitionState,
    /// Its sizes and counters.
    pub account: Account,
    /// The blocks it owns.
    pub extents: Vec<RangeRecord>,
    /// What the host wants done with it.
    pub policy: Policy,
    /// Whether it is to be evacuated.
    pub evacuate: bool,
    /// What the guest says is in use, in bytes.
    pub used: Option<u64>,
    /// The most that the guest has said is in use, in bytes.
    pub used_peak: u64,
    /// What the guest says went to shared memory, in bytes.
    pub spilled: u64,
    /// What the guest says could not be moved, in bytes.
    pub stuck: u64,
}

/// A whole partitioner, unchecked: as it comes from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// The region's guest-physical address.
    pub addr: u64,
    /// The size of a block in bytes.
    pub block_size: u64,
    /// The size of the region.
    pub blocks: Blocks,
    /// The blocks that no partition gets.
    pub shared_area: Blocks,
    /// How the driver talks to the device.
    pub mode: Mode,
    /// Whether some of what is plugged was plugged by address.
    pub by_address: bool,
    /// The usable size.
    pub usable: Blocks,
    /// What the driver is to have its bookkeeping ready for.
    pub prepare: Blocks,
    /// The generation that the guest has seen.
    pub generation: u32,
    /// The number after the last one handed out.
    pub next_id: u32,
    /// The account of the shared memory.
    pub shared: Account,
    /// The plugged blocks: ascending runs that do not touch.
    pub plugged: Vec<RangeRecord>,
    /// The partitions.
    pub partitions: Vec<PartitionRecord>,
}

/// Why a snapshot is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It was taken of another region than the configuration describes.
    #[error("the snapshot is of another region than the configuration's")]
    OtherRegion,
    /// It has a range that is not inside the region.
    #[error("a range of the snapshot is impossible")]
    Range(#[from] RangeError),
    /// Its ranges are not ascending or not apart.
    #[error("the snapshot's ranges overlap or are out of order")]
    Order,
    /// Two partitions own the same block.
    #[error("{0} owns blocks of another partition")]
    Overlap(PartitionId),
    /// Two partitions have the same number.
    #[error("{0} is there twice")]
    Twice(PartitionId),
    /// A partition's name is not one.
    #[error("{0} has an impossible name")]
    Name(PartitionId, #[source] NameError),
    /// Two partitions have the same name.
    #[error("two partitions are called {0}")]
    NameTaken(PartitionName),
    /// Its parts contradict each other.
    #[error("the snapshot contradicts itself")]
    Broken(#[from] Broken),
}

impl Partitioner {
    /// Everything that [`Partitioner::restore`] needs. The caller has stopped the device.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            addr: self.geometry().addr(),
            block_size: self.geometry().block_size().as_u64(),
            blocks: self.geometry().blocks(),
            shared_area: self.layout.shared_area,
            mode: self.mode,
            by_address: self.by_address,
            usable: self.usable,
            prepare: self.prepare,
            generation: self.generation,
            next_id: self.next_id,
            shared: self.shared,
            plugged: self.plugged_runs().map(RangeRecord::from).collect(),
            partitions: self.partitions().map(PartitionRecord::from).collect(),
        }
    }

    /// A partitioner as it was. `layout` is the configuration's, so that no number of the file
    /// decides how much is allocated.
    ///
    /// # Errors
    /// [`RestoreError`] for a file that does not fit the configuration or is not one that
    /// [`Partitioner::snapshot`] makes.
    pub fn restore(layout: Layout, snapshot: &Snapshot) -> Result<Self, RestoreError> {
        let mut made = Self::new(layout);
        if !snapshot.is_of(&made.layout) {
            return Err(RestoreError::OtherRegion);
        }
        made.mode = snapshot.mode;
        made.by_address = snapshot.by_address;
        made.usable = snapshot.usable;
        made.prepare = snapshot.prepare.min(made.geometry().blocks());
        made.generation = snapshot.generation;
        made.next_id = snapshot.next_id;
        made.shared = snapshot.shared;
        for run in ascending(&layout.geometry, &snapshot.plugged) {
            made.map.set(&run?);
        }
        for record in &snapshot.partitions {
            made.restore_partition(record)?;
        }
        let partitions = || made.partitions.values().map(|partition| &partition.account);
        made.plugged =
            made.shared.plugged + partitions().map(|account| account.plugged).sum::<Blocks>();
        made.requested =
            made.shared.requested + partitions().map(|account| account.requested).sum::<Blocks>();
        made.check_invariants()?;
        Ok(made)
    }

    fn restore_partition(&mut self, record: &PartitionRecord) -> Result<(), RestoreError> {
        let id = record.id;
        let name: PartitionName =
            record.name.parse().map_err(|error| RestoreError::Name(id, error))?;
        if self.partitions.contains_key(&id) {
            return Err(RestoreError::Twice(id));
        }
        if self.find(name.as_str()).is_some() {
            return Err(RestoreError::NameTaken(name));
        }
        let mut partition = Partition::new(id, name, record.cookie, record.account.requested);
        for extent in ascending(&self.layout.geometry, &record.extents) {
            let extent = extent?;
            if self.owners.first_in(&extent).is_some() {
                return Err(RestoreError::Overlap(id));
            }
            self.owners.give(&mut partition, extent);
        }
        partition.state = record.state;
        partition.account = record.account;
        partition.policy = record.policy;
        partition.evacuate = record.evacuate;
        let [plugged, peak] = [record.account.plugged, record.account.peak]
            .map(|blocks| self.geometry().bytes(blocks));
        partition.hints = Hints {
            used: record.used.map(|used| Bytes::new(used).min(plugged)),
            used_peak: Bytes::new(record.used_peak).min(peak),
            spilled: Bytes::new(record.spilled),
            stuck: Bytes::new(record.stuck),
        };
        self.partitions.insert(id, partition);
        Ok(())
    }
}

impl Snapshot {
    fn is_of(&self, layout: &Layout) -> bool {
        let geometry = &layout.geometry;
        self.addr == geometry.addr()
            && self.block_size == geometry.block_size().as_u64()
            && self.blocks == geometry.blocks()
            && self.shared_area == layout.shared_area
    }
}

impl From<&Partition> for PartitionRecord {
    fn from(partition: &Partition) -> Self {
        Self {
            id: partition.id,
            name: partition.name.to_string(),
            cookie: partition.cookie,
            state: partition.state,
            account: partition.account,
            extents: partition.extents.iter().copied().map(RangeRecord::from).collect(),
            policy: partition.policy,
            evacuate: partition.evacuate,
            used: partition.hints.used.map(Bytes::as_u64),
            used_peak: partition.hints.used_peak.as_u64(),
            spilled: partition.hints.spilled.as_u64(),
            stuck: partition.hints.stuck.as_u64(),
        }
    }
}

/// The records as ranges, as long as each lies apart from and after the one before.
fn ascending(
    geometry: &Geometry,
    records: &[RangeRecord],
) -> impl Iterator<Item = Result<BlockRange, RestoreError>> {
    let mut least = 0;
    records.iter().map(move |record| {
        let range = BlockRange::within(geometry, record.first, record.count)?;
        if record.first < least {
            return Err(RestoreError::Order);
        }
        least = range.end().as_u64() + 1;
        Ok(range)
    })
}
