//! The invariants of the module's documentation, recomputed from nothing but the map.

use crate::blocks::{BlockRange, Blocks};
use crate::partition::{Partition, PartitionId, PartitionState};

use super::{Mode, Partitioner};

/// An invariant that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The owners' blocks do not add up to the blocks set in the map.
    #[error("the owners have {owners}, but {map} are plugged")]
    Sum {
        /// By the accounts.
        owners: Blocks,
        /// By the map.
        map: Blocks,
    },
    /// A partition's account is not what the map says of its extents.
    #[error("the account of {0} is not what it has plugged")]
    Plugged(PartitionId),
    /// A partition's extents are not ascending, apart, and inside the partition area.
    #[error("the extents of {0} are not apart, or outside the partition area")]
    Extents(PartitionId),
    /// The table of owners is not what the partitions say.
    #[error("the table of owners disagrees with the partitions")]
    Owners,
    /// A partition owns fewer blocks than it is to have.
    #[error("{0} owns less than was requested for it")]
    Owned(PartitionId),
    /// A partition's state is not what its account says.
    #[error("the state of {0} is not what its account says")]
    State(PartitionId),
    /// Something was plugged by address, but nothing is plugged.
    #[error("something was plugged by address, but nothing is plugged")]
    ByAddress,
    /// The requested sizes do not add up.
    #[error("the requested sizes do not add up")]
    Requested,
    /// More shared memory is requested than the shared area has blocks.
    #[error("more shared memory is requested than the shared area holds")]
    SharedArea,
    /// The usable size leaves out what is plugged, requested or reserved, or exceeds the region.
    #[error("the usable size does not fit what is plugged and requested")]
    Usable,
    /// An owner has more than it ever had.
    #[error("an owner has more plugged than its peak")]
    Peak,
    /// More partitions than the layout allows.
    #[error("more partitions than the VM may have")]
    TooMany,
}

impl Partitioner {
    /// Recomputes every invariant of the module's documentation. O(region): for tests.
    ///
    /// # Errors
    /// The first invariant that does not hold: a fault of this crate.
    pub fn check_invariants(&self) -> Result<(), Broken> {
        require(self.partitions.len() <= self.layout.max_partitions as usize, Broken::TooMany)?;
        self.check_extents()?;
        self.partitions().try_for_each(|partition| self.check_partition(partition))?;
        self.check_sums()?;
        self.check_usable()
    }

    /// Stops a debug build at the change that broke an invariant.
    pub(super) fn debug_check(&self) {
        debug_assert_eq!(self.check_invariants(), Ok(()));
    }

    fn check_extents(&self) -> Result<(), Broken> {
        let area = self.layout.partition_area();
        for partition in self.partitions() {
            let extents = partition.extents();
            let apart = extents.windows(2).all(|pair| pair[0].end() < pair[1].first());
            let inside = |extent| area.is_some_and(|area| area.contains(extent));
            let few = extents.len() <= Partition::MAX_EXTENTS;
            let fit = apart && few && extents.iter().all(inside);
            require(fit, Broken::Extents(partition.id))?;
            let known = extents
                .iter()
                .all(|extent| self.owners.first_in(extent) == Some((*extent, partition.id)));
            require(known, Broken::Owners)?;
        }
        let extents: usize = self.partitions().map(|partition| partition.extents.len()).sum();
        require(self.owners.iter().count() == extents, Broken::Owners)?;
        let pairs = self.owners.iter().zip(self.owners.iter().skip(1));
        let disjoint = pairs.into_iter().all(|((one, _), (next, _))| one.end() <= next.first());
        require(disjoint, Broken::Owners)
    }

    fn check_partition(&self, partition: &Partition) -> Result<(), Broken> {
        let (id, account) = (partition.id, &partition.account);
        let plugged: Blocks = partition.extents.iter().map(|extent| self.map.count(extent)).sum();
        require(plugged == account.plugged, Broken::Plugged(id))?;
        require(partition.owned() >= account.requested, Broken::Owned(id))?;
        require(account.plugged <= account.peak, Broken::Peak)?;
        let state = partition.state;
        let settled = state != PartitionState::Absent && state == state.settled(account);
        require(settled, Broken::State(id))
    }

    fn check_sums(&self) -> Result<(), Broken> {
        let map = self.map.count(&self.geometry().all());
        let plugged: Blocks = self.partitions().map(|partition| partition.account.plugged).sum();
        let owners = plugged + self.shared.plugged;
        require(owners == map && self.plugged == map, Broken::Sum { owners, map })?;
        require(!self.by_address || map > Blocks::ZERO, Broken::ByAddress)?;
        require(self.shared.plugged <= self.shared.peak, Broken::Peak)?;
        require(self.shared.requested <= self.layout.shared_area, Broken::SharedArea)?;
        let requested: Blocks =
            self.partitions().map(|partition| partition.account.requested).sum();
        let sum = requested + self.shared.requested;
        require(sum == self.requested, Broken::Requested)
    }

    fn check_usable(&self) -> Result<(), Broken> {
        let region = self.geometry().all();
        let beyond = region.tail(region.count() - self.usable);
        let unplugged_beyond = beyond.is_none_or(|beyond: BlockRange| self.map.all_clear(&beyond));
        let bounded = self.usable >= self.requested && self.usable <= region.count();
        let covers = self.usable >= self.least_usable();
        let whole = self.mode == Mode::Plain || self.usable == region.count();
        require(unplugged_beyond && bounded && covers && whole, Broken::Usable)
    }
}

fn require(holds: bool, broken: Broken) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(broken) }
}
