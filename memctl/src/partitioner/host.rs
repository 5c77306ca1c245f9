//! What the host wants: partitions to add, resize and remove, and the size of shared memory.
//!
//! The host only wishes. Plugged state changes in the answers to the guest's requests, and here only
//! what they are measured against.

use crate::Bytes;
use crate::blocks::{BlockRange, Blocks};
use crate::partition::{
    Account, Change, Cookie, Partition, PartitionId, PartitionName, PartitionState, Policy, Watch,
};

use super::Partitioner;

/// Why the host's wish cannot be granted. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// A partition of no blocks; to remove one is another call.
    #[error("a partition has at least one block of {0}")]
    Zero(Bytes),
    /// More than all blocks that are for partitions.
    #[error("a partition can have at most {0}")]
    OverPartitionArea(Bytes),
    /// Another partition has that name.
    #[error("there is a partition {0} already")]
    NameTaken(PartitionName),
    /// As many partitions as the layout allows.
    #[error(
        "there are {0} partitions already, as many as the VM may have; make memory.partitions.max \
         larger when the VM is created"
    )]
    TooManyPartitions(u32),
    /// Too few blocks are free, or in more pieces than a partition may have.
    #[error(
        "no room for {wanted} more in the region, where {free} is free for partitions{}",
        no_room_advice(wanted, free)
    )]
    NoRoom {
        /// What is to be placed.
        wanted: Bytes,
        /// What is free, in however many pieces.
        free: Bytes,
    },
    /// The host has too little memory for what the guest has been promised and has not taken yet.
    #[error("the host would have to provide {wanted}, but has {free} free")]
    HostFull {
        /// What the guest may still take, the new wish included.
        wanted: Bytes,
        /// What the caller said is free.
        free: Bytes,
    },
    /// More shared memory than the shared area holds.
    #[error("the shared memory can have at most {0}")]
    OverSharedArea(Bytes),
    /// No such partition.
    #[error("there is no {0}")]
    Unknown(PartitionId),
}

fn no_room_advice(wanted: &Bytes, free: &Bytes) -> &'static str {
    if free < wanted {
        "; make memory.partitions.size larger when the VM is created"
    } else {
        " but is in too many pieces; it comes together as partitions are removed"
    }
}

/// What came of a wish to resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// It has that size already; nothing to tell the guest.
    Unchanged,
    /// The guest must be told: a configuration interrupt, and an event where the channel is used.
    Changed,
}

impl Partitioner {
    /// Reserves blocks for a new partition; the guest has to be told. `policy` says what else is
    /// wanted of it. `host_free` is what the host can still give, `None` to promise more than that.
    ///
    /// # Errors
    /// [`HostError`]; nothing has changed.
    pub fn add(
        &mut self,
        name: PartitionName,
        cookie: Cookie,
        size: Blocks,
        policy: Policy,
        host_free: Option<Bytes>,
        watch: &mut Watch<'_>,
    ) -> Result<PartitionId, HostError> {
        self.require_possible(size)?;
        if self.find(name.as_str()).is_some() {
            return Err(HostError::NameTaken(name));
        }
        if self.partitions.len() >= self.layout.max_partitions as usize {
            return Err(HostError::TooManyPartitions(self.layout.max_partitions));
        }
        self.admit(&Account::default(), size, host_free)?;
        self.give_up_all_slack();
        let pieces = self.place(size).ok_or_else(|| self.no_room(size))?;

        let id = self.next_free_id();
        let partition = Partition { policy, ..Partition::new(id, name, cookie, size) };
        self.next_id = id.0.wrapping_add(1);
        self.partitions.insert(id, partition);
        self.requested += size;
        self.generation = self.generation.wrapping_add(1);
        self.grow(id, pieces);
        if let Some(partition) = self.partitions.get(&id) {
            watch(Change { partition, from: PartitionState::Absent });
        }
        self.debug_check();
        Ok(id)
    }

    /// Wants a partition to have another size. Growth has its blocks reserved at once; shrinkage
    /// waits for the guest. A size for a partition that was to be removed cancels its removal, and
    /// its evacuation.
    ///
    /// # Errors
    /// [`HostError`]; nothing has changed.
    pub fn resize(
        &mut self,
        id: PartitionId,
        size: Blocks,
        host_free: Option<Bytes>,
        watch: &mut Watch<'_>,
    ) -> Result<Resize, HostError> {
        self.require_possible(size)?;
        let partition = self.partition(id).ok_or(HostError::Unknown(id))?;
        if partition.account.requested == size {
            return Ok(Resize::Unchanged);
        }
        self.admit(&partition.account, size, host_free)?;
        let wanted = size - partition.owned();
        if wanted > Blocks::ZERO {
            self.give_up_all_slack();
            let partition = self.partition(id).ok_or(HostError::Unknown(id))?;
            let wanted = size - partition.owned();
            let pieces = self.place_growth(partition, wanted);
            self.grow(id, pieces.ok_or_else(|| self.no_room(wanted))?);
        }
        self.update(id, watch, |partition| {
            partition.account.requested = size;
            partition.resized = true;
            partition.evacuate = false;
        });
        self.give_up_slack(id);
        self.debug_check();
        Ok(Resize::Changed)
    }

    /// Wants a partition back; one of which nothing was plugged is gone. Asking again changes nothing.
    ///
    /// # Errors
    /// [`HostError::Unknown`] only.
    pub fn remove(&mut self, id: PartitionId, watch: &mut Watch<'_>) -> Result<(), HostError> {
        self.partition(id).ok_or(HostError::Unknown(id))?;
        self.update(id, watch, |partition| partition.account.requested = Blocks::ZERO);
        self.removed = Some(id);
        self.debug_check();
        Ok(())
    }

    /// Wants what is in use in a partition moved elsewhere, once the partition is not wanted: a
    /// removal alone waits for its users. Asking again changes nothing.
    ///
    /// # Errors
    /// [`HostError::Unknown`] only.
    pub fn ask_evacuation(&mut self, id: PartitionId) -> Result<(), HostError> {
        let partition = self.partitions.get_mut(&id).ok_or(HostError::Unknown(id))?;
        if !std::mem::replace(&mut partition.evacuate, true) {
            self.generation = self.generation.wrapping_add(1);
        }
        Ok(())
    }

    /// Wants the guest to have its bookkeeping ready for `size` from the start of the region, so
    /// that plugging there is quick. More than the region means all of it.
    pub fn prepare(&mut self, size: Blocks) {
        let size = size.min(self.geometry().blocks());
        if std::mem::replace(&mut self.prepare, size) != size {
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// Wants the shared memory to have another size.
    ///
    /// # Errors
    /// [`HostError`]; nothing has changed.
    pub fn resize_shared(
        &mut self,
        size: Blocks,
        host_free: Option<Bytes>,
    ) -> Result<Resize, HostError> {
        if size == self.shared.requested {
            return Ok(Resize::Unchanged);
        }
        if size > self.layout.shared_area {
            let area = self.geometry().bytes(self.layout.shared_area);
            return Err(HostError::OverSharedArea(area));
        }
        self.admit(&self.shared, size, host_free)?;
        self.requested = self.requested - self.shared.requested + size;
        self.shared.requested = size;
        self.generation = self.generation.wrapping_add(1);
        self.debug_check();
        Ok(Resize::Changed)
    }

    /// Whether an owner may be promised `size`. Promising no more than before always may.
    fn admit(
        &self,
        owner: &Account,
        size: Blocks,
        host_free: Option<Bytes>,
    ) -> Result<(), HostError> {
        let before = self.committed();
        let committed = before - owner.committed() + size;
        let wanted = self.geometry().bytes(committed - self.plugged);
        match host_free {
            Some(free) if committed > before && free < wanted => {
                Err(HostError::HostFull { wanted, free })
            }
            _ => Ok(()),
        }
    }

    /// What the guest may still take: what each owner was promised beyond what it has. O(partitions).
    ///
    /// Not the requested size less what is plugged, as what one owner keeps is no room for another.
    pub fn promised(&self) -> Bytes {
        self.geometry().bytes(self.committed() - self.plugged)
    }

    /// What all owners have been promised or cannot be made to give back. O(partitions).
    fn committed(&self) -> Blocks {
        let partitions: Blocks =
            self.partitions().map(|partition| partition.account.committed()).sum();
        partitions + self.shared.committed()
    }

    /// What can never be is refused before what cannot be now.
    fn require_possible(&self, size: Blocks) -> Result<(), HostError> {
        let (geometry, most) = (self.geometry(), self.layout.partition_blocks());
        match size {
            Blocks::ZERO => Err(HostError::Zero(geometry.block_size())),
            _ if size > most => Err(HostError::OverPartitionArea(geometry.bytes(most))),
            _ => Ok(()),
        }
    }

    fn no_room(&self, wanted: Blocks) -> HostError {
        let (wanted, free) = (self.geometry().bytes(wanted), self.geometry().bytes(self.free()));
        HostError::NoRoom { wanted, free }
    }

    /// The next number that no partition has. Ends, as there are fewer partitions than numbers.
    fn next_free_id(&self) -> PartitionId {
        let mut id = PartitionId(self.next_id);
        while id == PartitionId::NONE || self.partitions.contains_key(&id) {
            id.0 = id.0.wrapping_add(1);
        }
        id
    }

    fn grow(&mut self, id: PartitionId, pieces: Vec<BlockRange>) {
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        pieces.into_iter().for_each(|piece| self.owners.give(partition, piece));
        self.usable = self.usable.max(self.least_usable());
    }
}
