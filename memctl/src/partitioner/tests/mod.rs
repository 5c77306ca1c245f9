//! Outcomes, one test each. Random sequences are in `tests/model.rs`.

mod channel;
mod check;
mod host;
mod plain;

use std::time::Duration;

use super::*;
use crate::blocks::RangeError;
use crate::partition::{Cookie, Hint, Hints, Policy};

const BASE: u64 = 4 << 30;

/// An instance runs, in one block.
const BOUND: Hint = Hint::Bound { used: Bytes::mib(2) };

/// 64 blocks of 2 MiB of which `shared_area` are for shared memory.
fn layout(shared_area: u64) -> Layout {
    Layout {
        geometry: Geometry::new(BASE, Bytes::mib(2), Bytes::mib(128)).unwrap(),
        shared_area: Blocks::new(shared_area),
        max_partitions: 8,
    }
}

/// A plain device without partitions.
fn shared_only(requested: u64) -> Partitioner {
    let mut made = Partitioner::new(Layout::shared_only(layout(0).geometry));
    made.resize_shared(Blocks::new(requested), None).unwrap();
    made
}

/// A partition device whose driver has negotiated the channel.
fn channel() -> Partitioner {
    let mut made = Partitioner::new(layout(0));
    made.set_mode(Mode::Channel);
    made
}

fn range(first: u64, count: u64) -> BlockRange {
    BlockRange::within(&layout(0).geometry, first, count).unwrap()
}

fn add(partitioner: &mut Partitioner, name: &str, size: u64) -> PartitionId {
    let (name, size) = (name.parse().unwrap(), Blocks::new(size));
    partitioner.add(name, Cookie(7), size, Policy::default(), None, &mut |_| {}).unwrap()
}

/// Adds a partition, and the guest takes it.
fn plugged(partitioner: &mut Partitioner, name: &str, size: u64) -> PartitionId {
    let id = add(partitioner, name, size);
    partitioner.plan_plug_partition(id).unwrap().commit(&mut |_| {});
    id
}

fn resize(partitioner: &mut Partitioner, id: PartitionId, size: u64) {
    partitioner.resize(id, Blocks::new(size), None, &mut |_| {}).unwrap();
}

fn plug(partitioner: &mut Partitioner, first: u64, count: u64) -> Answer {
    match partitioner.plan_plug(range(first, count)) {
        Ok(plan) => {
            plan.commit(&mut |_| {});
            Answer::Ack
        }
        Err(refusal) => refusal.answer(),
    }
}

fn unplug(partitioner: &mut Partitioner, first: u64, count: u64) -> Answer {
    match partitioner.plan_unplug(range(first, count)) {
        Ok(plan) => {
            plan.commit(&mut |_| {});
            Answer::Ack
        }
        Err(refusal) => refusal.answer(),
    }
}

fn extents(partitioner: &Partitioner, id: PartitionId) -> Vec<(u64, u64)> {
    let extents = partitioner.partition(id).unwrap().extents().iter();
    extents.map(|extent| (extent.first().as_u64(), extent.count().as_u64())).collect()
}

fn state(partitioner: &Partitioner, id: PartitionId) -> PartitionState {
    partitioner.partition(id).map_or(PartitionState::Absent, Partition::state)
}
