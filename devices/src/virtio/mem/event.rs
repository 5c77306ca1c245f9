//! What the device tells its machine.

use std::time::Duration;

use memctl::{Bytes, Change, Cookie, Counters, Geometry, Hints, Partition, PartitionId};
use memctl::{PartitionName, PartitionState, Policy};

/// Something changed hands, or is going to. Each event carries the sizes of its moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemEvent {
    /// A partition has changed its state.
    PartitionChanged {
        /// As it is now; when its state is `Absent`, as it was last.
        partition: PartitionView,
        /// Its state before.
        from: PartitionState,
    },
    /// The guest has taken or given back shared memory, or has been asked for what it has. It has
    /// reached the size when both are equal.
    SharedPlugged {
        /// What the host wants it to have.
        requested: Bytes,
        /// What it has.
        plugged: Bytes,
        /// How it came and went, since the device was made.
        counters: Counters,
        /// How long the host took to free what was given back since the event before this one.
        freeing: Duration,
    },
}

/// Who is told, one event at a time, in the order in which they happened: on the device's thread after
/// it has answered the guest, or on a thread that calls a [`MemHandle`](super::MemHandle). It may look
/// at the device, and must not want anything of it. A guest causes an event per request and partition
/// it touches, as fast as it likes: whoever passes them on limits the rate.
pub type Observer = Box<dyn Fn(MemEvent) + Send + Sync>;

/// One partition at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// The number by which the guest knows it, unless it is a node.
    pub id: PartitionId,
    /// The guest's NUMA node that it is, where its guest has no partitions.
    pub node: Option<u16>,
    /// The host's name for it.
    pub name: PartitionName,
    /// The host's number for it.
    pub cookie: Cookie,
    /// Where it is in its life.
    pub state: PartitionState,
    /// What the host wants it to have; zero once its removal was asked for.
    pub requested: Bytes,
    /// What it has.
    pub plugged: Bytes,
    /// The most it ever had.
    pub peak: Bytes,
    /// What the host wants done with it.
    pub policy: Policy,
    /// What the guest last said of it.
    pub hints: Hints,
    /// How long the host took to free what was last given back of it, in the request that did so;
    /// `None` until there was one. In the event of its end, how long its release took.
    pub last_release: Option<Duration>,
    /// How much was last given back of it.
    pub last_released: Bytes,
    /// How its memory came and went.
    pub counters: Counters,
}

impl PartitionView {
    /// `partition` of the region `geometry`. Allocates nothing.
    pub fn new(geometry: &Geometry, partition: &Partition) -> Self {
        let account = partition.account();
        Self {
            id: partition.id(),
            node: None,
            name: partition.name().clone(),
            cookie: partition.cookie(),
            state: partition.state(),
            requested: geometry.bytes(account.requested),
            plugged: geometry.bytes(account.plugged),
            peak: geometry.bytes(account.peak),
            policy: partition.policy(),
            hints: *partition.hints(),
            last_release: account.last_release,
            last_released: geometry.bytes(account.last_released),
            counters: account.counters,
        }
    }
}

impl MemEvent {
    pub(super) fn changed(geometry: &Geometry, change: Change<'_>) -> Self {
        let partition = PartitionView::new(geometry, change.partition);
        Self::PartitionChanged { partition, from: change.from }
    }
}
