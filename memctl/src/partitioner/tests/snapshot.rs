//! Snapshots come back whole, or not at all.

use super::*;
use crate::partition::NameError;

/// Two partitions, the second in use and asked to shrink, and a hole.
fn lively() -> Partitioner {
    let mut memory = channel();
    plugged(&mut memory, "fn-1", 8);
    let id = plugged(&mut memory, "fn-2", 8);
    memory.ask_evacuation(id).unwrap();
    memory.prepare(Blocks::new(32));
    memory.hint(id, Hint::Draining { used: Bytes::mib(3) }, &mut |_| {}).unwrap();
    resize(&mut memory, id, 4);
    memory.plan_shrink(id, range(10, 2)).unwrap().commit(&mut |_| {});
    add(&mut memory, "fn-3", 8);
    memory
}

fn refused(change: impl FnOnce(&mut Snapshot)) -> RestoreError {
    let mut snapshot = lively().snapshot();
    change(&mut snapshot);
    Partitioner::restore(layout(0), &snapshot).unwrap_err()
}

fn broken(change: impl FnOnce(&mut Snapshot)) -> Broken {
    match refused(change) {
        RestoreError::Broken(broken) => broken,
        other => panic!("{other}"),
    }
}

#[test]
fn a_snapshot_comes_back_whole() {
    let memory = lively();
    let snapshot = memory.snapshot();
    let text = serde_json::to_string(&snapshot).unwrap();
    let read: Snapshot = serde_json::from_str(&text).unwrap();
    assert_eq!(read, snapshot);
    let restored = Partitioner::restore(layout(0), &read).unwrap();
    assert_eq!(restored.snapshot(), snapshot);
    assert_eq!(restored.plugged_size(), memory.plugged_size());
    assert_eq!(restored.plugged_runs().collect::<Vec<_>>(), [range(0, 10), range(12, 4)]);
}

#[test]
fn a_snapshot_has_ranges_and_no_bitmap() {
    let plugged = lively().snapshot().plugged;
    let runs = [RangeRecord { first: 0, count: 10 }, RangeRecord { first: 12, count: 4 }];
    assert_eq!(plugged, runs);
}

#[test]
fn another_region_is_refused() {
    assert_eq!(refused(|file| file.addr += 1), RestoreError::OtherRegion);
    assert_eq!(refused(|file| file.block_size = 0), RestoreError::OtherRegion);
    assert_eq!(refused(|file| file.blocks += Blocks::new(1)), RestoreError::OtherRegion);
    assert_eq!(refused(|file| file.shared_area = Blocks::new(1)), RestoreError::OtherRegion);
}

#[test]
fn impossible_ranges_are_refused() {
    let past = RestoreError::Range(RangeError::PastEnd);
    assert_eq!(refused(|file| file.plugged[1].count = 64), past);
    assert_eq!(refused(|file| file.plugged[1].first = u64::MAX), past);
    assert_eq!(refused(|file| file.partitions[0].extents[0].count = u64::MAX), past);
    let empty = RestoreError::Range(RangeError::Empty);
    assert_eq!(refused(|file| file.plugged[0].count = 0), empty);
    assert_eq!(refused(|file| file.plugged.swap(0, 1)), RestoreError::Order);
    assert_eq!(refused(|file| file.plugged[0].count = 12), RestoreError::Order);
    assert_eq!(refused(|file| file.partitions[1].extents.swap(0, 1)), RestoreError::Order);
}

#[test]
fn partitions_in_each_others_way_are_refused() {
    let second = PartitionId(2);
    assert_eq!(
        refused(|file| file.partitions[1].extents[0].first = 7),
        RestoreError::Overlap(second)
    );
    assert_eq!(
        refused(|file| file.partitions[1].id = PartitionId(1)),
        RestoreError::Twice(PartitionId(1))
    );
    let name = RestoreError::Name(second, NameError);
    assert_eq!(refused(|file| file.partitions[1].name = String::new()), name);
    let taken = RestoreError::NameTaken("fn-1".parse().unwrap());
    assert_eq!(refused(|file| file.partitions[1].name = "fn-1".to_string()), taken);
}

#[test]
fn contradictions_are_refused() {
    let (one, blocks) = (PartitionId(1), Blocks::new);
    assert_eq!(broken(|file| file.plugged[0].count = 9), Broken::Plugged(PartitionId(2)));
    assert_eq!(broken(|file| file.partitions[0].account.plugged = blocks(7)), Broken::Plugged(one));
    assert_eq!(broken(|file| file.partitions[0].account.peak = blocks(7)), Broken::Peak);
    assert_eq!(broken(|file| file.partitions[0].account.requested = blocks(9)), Broken::Owned(one));
    assert_eq!(
        broken(|file| file.partitions[0].state = PartitionState::Absent),
        Broken::State(one)
    );
    assert_eq!(
        broken(|file| file.partitions[0].state = PartitionState::Requested),
        Broken::State(one)
    );
    assert_eq!(broken(|file| file.shared.requested = blocks(1)), Broken::SharedArea);
    let sum = Broken::Sum { owners: blocks(15), map: blocks(14) };
    assert_eq!(broken(|file| file.shared.plugged = blocks(1)), sum);
    assert_eq!(broken(|file| file.usable = blocks(63)), Broken::Usable);
    assert_eq!(broken(|file| file.usable = blocks(65)), Broken::Usable);
    let usable = |file: &mut Snapshot| (file.mode, file.usable) = (Mode::Plain, blocks(15));
    assert_eq!(broken(usable), Broken::Usable);
}

#[test]
fn more_than_the_configuration_allows_is_refused() {
    let snapshot = lively().snapshot();
    let restore = |layout| Partitioner::restore(layout, &snapshot).unwrap_err();
    let few = Layout { max_partitions: 2, ..layout(0) };
    assert_eq!(restore(few), RestoreError::Broken(Broken::TooMany));
}

#[test]
fn a_partition_in_the_shared_area_is_refused() {
    let mut snapshot = lively().snapshot();
    snapshot.shared_area = Blocks::new(1);
    let error = Partitioner::restore(layout(1), &snapshot).unwrap_err();
    assert_eq!(error, RestoreError::Broken(Broken::Extents(PartitionId(1))));
}

#[test]
fn a_table_of_owners_that_disagrees_is_noticed() {
    let mut memory = lively();
    let gone = memory.partitions.remove(&PartitionId(3)).unwrap();
    assert_eq!(memory.check_invariants(), Err(Broken::Owners));
    memory.owners.forget(&gone);
    assert_eq!(memory.check_invariants(), Err(Broken::Requested));
    let mut memory = lively();
    memory.owners.forget(&gone);
    assert_eq!(memory.check_invariants(), Err(Broken::Owners));
    let mut memory = lively();
    memory.shared.plugged = Blocks::new(1);
    assert!(memory.check_invariants().is_err());
}

#[test]
fn what_the_guest_says_is_in_use_is_cut_to_what_is_plugged() {
    let mut snapshot = lively().snapshot();
    snapshot.partitions[1].used = Some(u64::MAX);
    snapshot.partitions[1].used_peak = u64::MAX;
    let restored = Partitioner::restore(layout(0), &snapshot).unwrap();
    let hints = restored.partition(PartitionId(2)).unwrap().hints();
    assert_eq!((hints.used, hints.used_peak), (Some(Bytes::mib(12)), Bytes::mib(16)));
}

#[test]
fn counters_of_any_value_do_not_overflow() {
    let mut snapshot = lively().snapshot();
    snapshot.partitions[0].account.counters.unplugs = u64::MAX;
    snapshot.generation = u32::MAX;
    snapshot.next_id = u32::MAX;
    snapshot.prepare = Blocks::new(u64::MAX);
    let mut restored = Partitioner::restore(layout(0), &snapshot).unwrap();
    restored.plan_unplug_all().commit(&mut |_| {});
    assert_eq!(add(&mut restored, "last", 1), PartitionId(u32::MAX));
    assert_eq!(restored.generation(), 0);
    assert_eq!(restored.prepared_size(), Bytes::mib(128));
}
