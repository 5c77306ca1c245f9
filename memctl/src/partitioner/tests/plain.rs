//! A stock guest: requests by address.

use super::*;

#[test]
fn what_fits_the_requested_size_is_plugged() {
    let mut memory = shared_only(8);
    assert_eq!(plug(&mut memory, 0, 8), Answer::Ack);
    assert_eq!(memory.plugged_size(), Bytes::mib(16));
    assert_eq!(memory.requested_size(), Bytes::mib(16));
    assert_eq!(memory.shared().peak, Blocks::new(8));
}

#[test]
fn plug_beyond_the_requested_size_is_nacked() {
    let mut memory = shared_only(8);
    assert_eq!(plug(&mut memory, 0, 9), Answer::Nack);
    assert_eq!(memory.plugged_size(), Bytes::ZERO);
}

#[test]
fn a_shrink_that_crosses_a_plug_is_a_nack_and_never_an_error() {
    let mut memory = shared_only(8);
    assert_eq!(plug(&mut memory, 0, 8), Answer::Ack);
    memory.resize_shared(Blocks::new(4), None).unwrap();
    // Even for blocks that are plugged: the driver must not give the device up.
    assert_eq!(plug(&mut memory, 6, 4), Answer::Nack);
    assert_eq!(unplug(&mut memory, 4, 4), Answer::Ack);
}

#[test]
fn plugging_twice_and_unplugging_twice_are_errors() {
    let mut memory = shared_only(64);
    assert_eq!(plug(&mut memory, 8, 8), Answer::Ack);
    assert_eq!(plug(&mut memory, 15, 2), Answer::Error);
    assert_eq!(unplug(&mut memory, 15, 2), Answer::Error);
    assert_eq!(unplug(&mut memory, 8, 8), Answer::Ack);
    assert_eq!(unplug(&mut memory, 8, 8), Answer::Error);
}

#[test]
fn a_dropped_plan_leaves_everything_as_it_was() {
    let mut memory = shared_only(8);
    plug(&mut memory, 0, 2);
    let before = memory.clone();
    drop(memory.plan_plug(range(2, 2)).unwrap());
    drop(memory.plan_unplug(range(0, 2)).unwrap());
    drop(memory.plan_unplug_all());
    assert_eq!(memory, before);
}

#[test]
fn a_plan_names_the_range_as_one_run() {
    let mut memory = shared_only(8);
    let plan = memory.plan_plug(range(3, 5)).unwrap();
    assert_eq!(plan.runs().collect::<Vec<_>>(), [range(3, 5)]);
    assert_eq!(plan.blocks(), Blocks::new(5));
    plan.commit(&mut |_| {});
    let plan = memory.plan_unplug(range(4, 2)).unwrap();
    assert_eq!(plan.runs().collect::<Vec<_>>(), [range(4, 2)]);
    assert_eq!(plan.blocks(), Blocks::new(2));
}

#[test]
fn state_says_plugged_unplugged_or_mixed() {
    let mut memory = shared_only(64);
    plug(&mut memory, 8, 8);
    assert_eq!(memory.state(&range(8, 8)), Ok(PlugState::Plugged));
    assert_eq!(memory.state(&range(0, 8)), Ok(PlugState::Unplugged));
    assert_eq!(memory.state(&range(7, 2)), Ok(PlugState::Mixed));
}

#[test]
fn nothing_beyond_the_usable_size_can_be_named() {
    let mut memory = Partitioner::new(layout(16));
    memory.resize_shared(Blocks::new(16), None).unwrap();
    assert_eq!(memory.usable_size(), Bytes::mib(32));
    assert_eq!(plug(&mut memory, 15, 2), Answer::Error);
    assert_eq!(unplug(&mut memory, 15, 2), Answer::Error);
    assert_eq!(memory.state(&range(15, 2)), Err(Refusal::BeyondUsable));
    assert_eq!(plug(&mut memory, 15, 1), Answer::Ack);
}

#[test]
fn unplug_all_takes_every_run_and_shrinks_the_usable_size() {
    let mut memory = Partitioner::new(layout(16));
    memory.resize_shared(Blocks::new(16), None).unwrap();
    let id = add(&mut memory, "fn-1", 8);
    assert_eq!(memory.usable_size(), Bytes::mib(48));
    for first in [0, 4, 16] {
        assert_eq!(plug(&mut memory, first, 2), Answer::Ack);
    }
    let plan = memory.plan_unplug_all();
    assert_eq!(plan.runs().collect::<Vec<_>>(), [range(0, 2), range(4, 2), range(16, 2)]);
    assert_eq!(plan.blocks(), Blocks::new(6));
    plan.commit(&mut |_| {});
    assert_eq!(memory.plugged_size(), Bytes::ZERO);
    assert_eq!(state(&memory, id), PartitionState::Requested);
    memory.remove(id, &mut |_| {}).unwrap();
    assert_eq!(memory.usable_size(), Bytes::mib(48), "only unplugging everything shrinks it");
    memory.plan_unplug_all().commit(&mut |_| {});
    assert_eq!(memory.usable_size(), Bytes::mib(32));
}

#[test]
fn every_block_is_booked_to_its_owner() {
    let mut memory = Partitioner::new(layout(16));
    memory.resize_shared(Blocks::new(16), None).unwrap();
    let (one, two) = (add(&mut memory, "fn-1", 8), add(&mut memory, "fn-2", 8));
    assert_eq!(memory.requested_size(), Bytes::mib(64));
    assert_eq!(plug(&mut memory, 12, 16), Answer::Ack);
    let account = |id| memory.partition(id).unwrap().account().plugged.as_u64();
    assert_eq!((memory.shared().plugged.as_u64(), account(one), account(two)), (4, 8, 4));
    assert_eq!(state(&memory, one), PartitionState::Plugged);
    assert_eq!(state(&memory, two), PartitionState::Requested);
    assert_eq!(memory.owner_of(BlockIndex::new(23)), Owner::Partition(one));
    assert_eq!(memory.owner_of(BlockIndex::new(15)), Owner::Shared);
}

#[test]
fn a_partition_that_is_not_wanted_goes_with_its_last_block() {
    let mut memory = Partitioner::new(layout(0));
    let id = add(&mut memory, "fn-1", 8);
    plug(&mut memory, 0, 8);
    memory.remove(id, &mut |_| {}).unwrap();
    assert_eq!(memory.requested_size(), Bytes::ZERO);
    assert_eq!(unplug(&mut memory, 0, 7), Answer::Ack);
    assert_eq!(state(&memory, id), PartitionState::Plugged);
    let mut seen = Vec::new();
    let plan = memory.plan_unplug(range(7, 1)).unwrap();
    plan.commit(&mut |change| seen.push((change.partition.id(), change.from)));
    assert_eq!(seen, [(id, PartitionState::Plugged)]);
    assert_eq!(state(&memory, id), PartitionState::Absent);
    assert_eq!(memory.owner_of(BlockIndex::FIRST), Owner::Shared);
}

#[test]
fn a_wanted_partition_that_was_unplugged_waits_to_be_plugged_again() {
    let mut memory = Partitioner::new(layout(0));
    let id = add(&mut memory, "fn-1", 8);
    plug(&mut memory, 0, 8);
    unplug(&mut memory, 0, 8);
    assert_eq!(state(&memory, id), PartitionState::Requested);
    assert_eq!(plug(&mut memory, 0, 8), Answer::Ack);
}

#[test]
fn requests_by_partition_need_the_channel() {
    let mut memory = Partitioner::new(layout(0));
    let id = add(&mut memory, "fn-1", 8);
    let error = Refusal::ByPartition;
    assert_eq!(memory.plan_plug_partition(id).unwrap_err(), error);
    assert_eq!(memory.plan_release(id).unwrap_err(), error);
    assert_eq!(memory.plan_shrink(id, range(0, 1)).unwrap_err(), error);
    assert_eq!(memory.hint(id, BOUND, &mut |_| {}), Err(error));
}

#[test]
fn only_races_with_the_host_are_nacked() {
    let nacked = [Refusal::OverRequested, Refusal::Unwanted, Refusal::NotAskedBack];
    assert!(nacked.iter().all(|refusal| refusal.answer() == Answer::Nack));
    assert_eq!(Refusal::TooScattered.answer(), Answer::Busy);
    for error in [Refusal::Range(RangeError::PastEnd), Refusal::ByAddress, Refusal::NotItsBlocks] {
        assert_eq!(error.answer(), Answer::Error);
    }
}
