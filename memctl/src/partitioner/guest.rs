//! What the guest may ask for, and the answers.

use crate::blocks::{BlockRange, Blocks, RangeError};
use crate::partition::{Hint, Partition, PartitionId, Watch};

use super::plan::{PlugTarget, UnplugTarget};
use super::{Mode, Partitioner, Plug, Unplug};

/// The answer to a guest's request. What each makes the Linux driver do is in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Done.
    Ack,
    /// Not wanted any more (reads the configuration and tries again at once).
    Nack,
    /// Not possible now, as when the host's part failed (tries again after 50 s and more).
    Busy,
    /// A request that no correct driver makes (gives the device up until reboot).
    Error,
}

/// Why a guest's request is refused. A guest's mistake, or a race with the host; never a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The numbers name no range of the region.
    #[error("no such blocks")]
    Range(#[from] RangeError),
    /// The range leaves the usable part of the region.
    #[error("blocks beyond the usable size")]
    BeyondUsable,
    /// A block to plug is plugged, or a partition is plugged twice.
    #[error("already plugged")]
    AlreadyPlugged,
    /// A block to unplug is not plugged, or a partition that a request is about is not.
    #[error("not plugged")]
    NotPlugged,
    /// The guest would have more than the host wants it to have.
    #[error("more than the requested size")]
    OverRequested,
    /// A request by address after the channel was negotiated.
    #[error("a request by address, but the driver has negotiated partitions")]
    ByAddress,
    /// A request by partition without the channel.
    #[error("a request by partition, but the driver has not negotiated partitions")]
    ByPartition,
    /// There is no such partition to give back or speak of.
    #[error("no such partition")]
    UnknownPartition,
    /// The partition to plug is not, or no longer, wanted.
    #[error("the partition is not wanted")]
    Unwanted,
    /// A partition is to give back blocks that it does not own.
    #[error("blocks of another owner")]
    NotItsBlocks,
    /// A partition is to give back more than the host has asked for.
    #[error("more than was asked back")]
    NotAskedBack,
    /// A partition would consist of more than [`Partition::MAX_EXTENTS`] extents.
    #[error("the partition would be too scattered")]
    TooScattered,
}

impl Refusal {
    /// What the guest is told. A race with the host is never ERROR, which would end all resizing.
    pub const fn answer(&self) -> Answer {
        match self {
            Self::OverRequested | Self::Unwanted | Self::NotAskedBack => Answer::Nack,
            Self::TooScattered => Answer::Busy,
            Self::Range(_)
            | Self::BeyondUsable
            | Self::AlreadyPlugged
            | Self::NotPlugged
            | Self::ByAddress
            | Self::ByPartition
            | Self::UnknownPartition
            | Self::NotItsBlocks => Answer::Error,
        }
    }
}

/// The answer to STATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlugState {
    /// Every block of the range is plugged.
    Plugged,
    /// None is.
    Unplugged,
    /// Some are.
    Mixed,
}

impl Partitioner {
    /// PLUG (virtio 1.3, 5.15.6): plain mode only. O(words of the range).
    ///
    /// # Errors
    /// NACK when the guest would have more than the requested size; ERROR for what is not usable or
    /// plugged already. The size comes first: a host's shrink that crosses a PLUG must be a NACK.
    pub fn plan_plug(&mut self, range: BlockRange) -> Result<Plug<'_>, Refusal> {
        self.require(Mode::Plain)?;
        self.require_usable(&range)?;
        if self.plugged + range.count() > self.requested {
            return Err(Refusal::OverRequested);
        }
        if !self.map.all_clear(&range) {
            return Err(Refusal::AlreadyPlugged);
        }
        let (target, blocks) = (PlugTarget::Range(range), range.count());
        Ok(Plug { partitioner: self, target, blocks })
    }

    /// UNPLUG (virtio 1.3, 5.15.6): plain mode only. O(words of the range).
    ///
    /// # Errors
    /// ERROR for what is not usable or not plugged.
    pub fn plan_unplug(&mut self, range: BlockRange) -> Result<Unplug<'_>, Refusal> {
        self.require(Mode::Plain)?;
        self.require_usable(&range)?;
        if !self.map.all_set(&range) {
            return Err(Refusal::NotPlugged);
        }
        let (target, blocks) = (UnplugTarget::Range(range), range.count());
        Ok(Unplug::new(self, target, blocks))
    }

    /// UNPLUG_ALL (virtio 1.3, 5.15.6), in both modes. The usable size may shrink at the commit.
    pub fn plan_unplug_all(&mut self) -> Unplug<'_> {
        let (region, blocks) = (self.geometry().all(), self.plugged);
        Unplug::new(self, UnplugTarget::All(region), blocks)
    }

    /// STATE (virtio 1.3, 5.15.6), in both modes. O(words of the range).
    ///
    /// # Errors
    /// ERROR for what is not usable.
    pub fn state(&self, range: &BlockRange) -> Result<PlugState, Refusal> {
        self.require_usable(range)?;
        Ok(if self.map.all_set(range) {
            PlugState::Plugged
        } else if self.map.all_clear(range) {
            PlugState::Unplugged
        } else {
            PlugState::Mixed
        })
    }

    /// PART_PLUG (docs/partition-channel.md): the guest takes what a partition misses, all of it.
    ///
    /// # Errors
    /// NACK for a partition that is not wanted any more, or was resized since it was plugged and
    /// misses nothing, and when a guest that has plugged by address would have more than the
    /// requested size; ERROR when it is plugged twice.
    pub fn plan_plug_partition(&mut self, id: PartitionId) -> Result<Plug<'_>, Refusal> {
        self.require(Mode::Channel)?;
        let partition = self.partition(id).filter(|partition| partition.wanted());
        let partition = partition.ok_or(Refusal::Unwanted)?;
        let blocks = partition.missing();
        if blocks == Blocks::ZERO {
            let raced = partition.resized;
            return Err(if raced { Refusal::OverRequested } else { Refusal::AlreadyPlugged });
        }
        // Otherwise what exceeds the requested size is what the host wants back and has not got yet,
        // which is no reason to keep a new partition waiting.
        if self.by_address && self.plugged + blocks > self.requested {
            return Err(Refusal::OverRequested);
        }
        Ok(Plug { partitioner: self, target: PlugTarget::Partition(id), blocks })
    }

    /// PART_RELEASE (docs/partition-channel.md): the guest gives a partition back, whether or not
    /// the host has asked for it. At the commit the partition is gone and its blocks are free.
    ///
    /// # Errors
    /// ERROR for a partition that is not there or has nothing plugged.
    pub fn plan_release(&mut self, id: PartitionId) -> Result<Unplug<'_>, Refusal> {
        self.require(Mode::Channel)?;
        let partition = self.partition(id).ok_or(Refusal::UnknownPartition)?;
        let blocks = partition.account.plugged;
        if blocks == Blocks::ZERO {
            return Err(Refusal::NotPlugged);
        }
        Ok(Unplug::new(self, UnplugTarget::Release(id), blocks))
    }

    /// PART_SHRINK (docs/partition-channel.md): the guest gives back some blocks of a live
    /// partition, after the host has asked for less. At the commit they belong to nobody.
    ///
    /// # Errors
    /// NACK for more than was asked back; BUSY when the partition would be too scattered; ERROR for
    /// what it does not own or has not plugged.
    pub fn plan_shrink(
        &mut self,
        id: PartitionId,
        range: BlockRange,
    ) -> Result<Unplug<'_>, Refusal> {
        self.require(Mode::Channel)?;
        let partition = self.partition(id).ok_or(Refusal::UnknownPartition)?;
        let extent = partition.extent_of(&range).ok_or(Refusal::NotItsBlocks)?;
        if !self.map.all_set(&range) {
            return Err(Refusal::NotPlugged);
        }
        if range.count() > partition.excess() {
            return Err(Refusal::NotAskedBack);
        }
        let splits = extent.first() < range.first() && range.end() < extent.end();
        if splits && partition.extents.len() >= Partition::MAX_EXTENTS {
            return Err(Refusal::TooScattered);
        }
        let (target, blocks) = (UnplugTarget::Shrink(id, range), range.count());
        Ok(Unplug::new(self, target, blocks))
    }

    /// PART_QUERY (docs/partition-channel.md): the first partition with the number `from` or a
    /// higher one, and with `pending` the first such that has another size than is wanted; `None`
    /// (NACK) after the last. O(partitions) with `pending`, else O(log partitions).
    ///
    /// # Errors
    /// ERROR in plain mode.
    pub fn query(&self, from: PartitionId, pending: bool) -> Result<Option<&Partition>, Refusal> {
        self.require(Mode::Channel)?;
        let mut rest = self.partitions.range(from..).map(|(_, partition)| partition);
        Ok(rest.find(|partition| !pending || partition.is_pending()))
    }

    /// PART_NOTIFY (docs/partition-channel.md): what the guest says of a partition. Changes no
    /// account.
    ///
    /// # Errors
    /// ERROR for a partition that is not there or has not been plugged.
    pub fn hint(
        &mut self,
        id: PartitionId,
        hint: Hint,
        watch: &mut Watch<'_>,
    ) -> Result<(), Refusal> {
        self.require(Mode::Channel)?;
        let partition = self.partition(id).ok_or(Refusal::UnknownPartition)?;
        let plugged = self.geometry().bytes(partition.account.plugged);
        let mut taken = false;
        self.update(id, watch, |partition| taken = partition.take_hint(hint, plugged));
        self.debug_check();
        if taken { Ok(()) } else { Err(Refusal::NotPlugged) }
    }

    fn require(&self, mode: Mode) -> Result<(), Refusal> {
        match (self.mode, mode) {
            (Mode::Channel, Mode::Plain) => Err(Refusal::ByAddress),
            (Mode::Plain, Mode::Channel) => Err(Refusal::ByPartition),
            (Mode::Plain, Mode::Plain) | (Mode::Channel, Mode::Channel) => Ok(()),
        }
    }

    fn require_usable(&self, range: &BlockRange) -> Result<(), Refusal> {
        if range.end().as_u64() > self.usable.as_u64() {
            return Err(Refusal::BeyondUsable);
        }
        Ok(())
    }
}
