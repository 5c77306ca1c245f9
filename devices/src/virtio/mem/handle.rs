//! What the machine and the API use of a device.

use std::sync::Arc;

use memctl::{
    BlockRange, Blocks, Bytes, Cookie, HostError, Mode, Owner, PartitionId, PartitionName,
    Partitioner, PlugState, Policy, Resize,
};

use super::event::PartitionView;
use super::shared::Shared;

/// Why a wish can't be granted. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// Memory comes in whole blocks.
    #[error("{size} is not a whole number of blocks of {block}")]
    NotWholeBlocks {
        /// What was wished for.
        size: Bytes,
        /// The size of a block.
        block: Bytes,
    },
    /// The partitioner refuses.
    #[error(transparent)]
    Refused(#[from] HostError),
}

/// What is known of a guest-physical address in the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockView {
    /// The guest-physical address of its block.
    pub block: u64,
    /// Whether the guest has it.
    pub plugged: bool,
    /// The partition that owns it, plugged or not.
    pub owner: Option<PartitionName>,
}

/// A device as its machine steers it. Callable from any thread; a call waits for at most one of the
/// guest's requests, its host calls included. It changes what the host wants: the guest is told by
/// a configuration interrupt, and acts when it likes.
///
/// `host_free` is what the host can still give, `None` to promise more than it has.
#[derive(Clone)]
pub struct MemHandle {
    shared: Arc<Shared>,
}

impl MemHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// What is behind it, for tests that need more than one wish in one step.
    #[cfg(test)]
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Returns when the observer has been told of all that is in the books by now. Not for the
    /// observer itself.
    pub fn settle(&self) {
        self.shared.report();
    }

    /// Looks something up in the books, all of one moment. The device answers no guest meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(&Partitioner) -> T) -> T {
        self.shared.look(look)
    }

    /// What the guest has.
    pub fn plugged(&self) -> Bytes {
        self.shared.look(Partitioner::plugged_size)
    }

    /// Wants the shared memory to have `size`.
    ///
    /// # Errors
    /// Not whole blocks, more than the shared area or the host has.
    pub fn resize_shared(&self, size: Bytes, host_free: Option<Bytes>) -> Result<Resize, MemError> {
        let size = self.blocks(size)?;
        self.shared.wish(|partitioner, _| Ok(partitioner.resize_shared(size, host_free)?))
    }

    /// Whether a driver is up that has negotiated the partition channel: only then do partitions
    /// come and go as a whole. Changes when the guest resets the device, as at its reboot.
    pub fn channel_is_up(&self) -> bool {
        self.shared.look(Partitioner::mode) == Mode::Channel
    }

    /// Whether a driver is up that puts the memory into the device's NUMA node: any of a kernel with
    /// NUMA does. `None` while no driver is up.
    pub fn driver_takes_node(&self) -> Option<bool> {
        self.shared.negotiated().map(|negotiated| negotiated.node)
    }

    /// Has the driver look again at what is wanted. Linux rests for 50 s and more after it could not
    /// give something back, unless it is told of a change.
    pub fn remind(&self) {
        self.shared.interrupt();
    }

    /// Wants the guest to have its bookkeeping ready for `size` from the start of the region, so
    /// that plugging there is quick (`part_prepare`). More than the region means all of it.
    ///
    /// # Errors
    /// Not whole blocks.
    pub fn prepare(&self, size: Bytes) -> Result<(), MemError> {
        let size = self.blocks(size)?;
        self.shared.wish(|partitioner, _| {
            partitioner.prepare(size);
            Ok(())
        })
    }

    /// Reserves room for a new partition, which the guest is asked to plug. `cookie` is shown to the
    /// guest's userspace.
    ///
    /// # Errors
    /// Not whole blocks, the name is taken, or there is no room in the table, the region or the
    /// host.
    pub fn add_partition(
        &self,
        name: PartitionName,
        cookie: Cookie,
        size: Bytes,
        policy: Policy,
        host_free: Option<Bytes>,
    ) -> Result<PartitionView, MemError> {
        let size = self.blocks(size)?;
        self.shared.wish(|partitioner, watch| {
            let id = partitioner.add(name, cookie, size, policy, host_free, watch)?;
            let partition = partitioner.partition(id).ok_or(HostError::Unknown(id))?;
            Ok(PartitionView::new(partitioner.geometry(), partition))
        })
    }

    /// Wants a partition to have `size`. Cancels its removal, and its evacuation.
    ///
    /// # Errors
    /// As for [`MemHandle::add_partition`], or there is no such partition.
    pub fn resize_partition(
        &self,
        id: PartitionId,
        size: Bytes,
        host_free: Option<Bytes>,
    ) -> Result<Resize, MemError> {
        let size = self.blocks(size)?;
        self.shared.wish(|partitioner, watch| Ok(partitioner.resize(id, size, host_free, watch)?))
    }

    /// Wants a partition back. It is gone when the event says `Absent`, or at once where nothing of
    /// it was plugged.
    ///
    /// # Errors
    /// There is no such partition.
    pub fn remove_partition(&self, id: PartitionId) -> Result<(), MemError> {
        self.shared.wish(|partitioner, watch| Ok(partitioner.remove(id, watch)?))
    }

    /// Wants what is in use in a partition moved elsewhere, so that it can be given back: a removal
    /// alone waits for its users. Has an effect while the partition is not wanted, so it comes
    /// before or after [`MemHandle::remove_partition`].
    ///
    /// # Errors
    /// There is no such partition.
    pub fn ask_evacuation(&self, id: PartitionId) -> Result<(), MemError> {
        self.shared.wish(|partitioner, _| Ok(partitioner.ask_evacuation(id)?))
    }

    /// All partitions, by ascending number.
    pub fn partitions(&self) -> Vec<PartitionView> {
        self.shared.look(|partitioner| {
            let geometry = partitioner.geometry();
            partitioner.partitions().map(|one| PartitionView::new(geometry, one)).collect()
        })
    }

    /// The partition called `name`.
    pub fn find_partition(&self, name: &str) -> Option<PartitionView> {
        self.shared.look(|partitioner| {
            let partition = partitioner.find(name)?;
            Some(PartitionView::new(partitioner.geometry(), partition))
        })
    }

    /// What is known of a guest-physical address, for a report on a touch of closed memory; `None`
    /// outside the region.
    pub fn block_at(&self, addr: u64) -> Option<BlockView> {
        self.shared.look(|partitioner| view_block(partitioner, addr))
    }

    fn blocks(&self, size: Bytes) -> Result<Blocks, MemError> {
        let geometry = self.shared.geometry();
        let block = geometry.block_size();
        geometry.whole_blocks(size).ok_or(MemError::NotWholeBlocks { size, block })
    }
}

fn view_block(partitioner: &Partitioner, addr: u64) -> Option<BlockView> {
    let geometry = partitioner.geometry();
    let block = geometry.block_at(addr)?;
    let range = BlockRange::within(geometry, block.as_u64(), 1).ok()?;
    let owner = match partitioner.owner_of(block) {
        Owner::Shared => None,
        Owner::Partition(id) => partitioner.partition(id).map(|owner| owner.name().clone()),
    };
    Some(BlockView {
        block: geometry.address_of(block),
        plugged: partitioner.state(&range) == Ok(PlugState::Plugged),
        owner,
    })
}
