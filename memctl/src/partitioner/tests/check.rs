//! Contradictions are noticed.

use super::*;

/// Two partitions, the second in use and asked to shrink, a hole, and a third that is not taken.
fn lively() -> Partitioner {
    let mut memory = channel();
    plugged(&mut memory, "fn-1", 8);
    let id = plugged(&mut memory, "fn-2", 8);
    memory.hint(id, Hint::Draining { used: Bytes::mib(3) }, &mut |_| {}).unwrap();
    resize(&mut memory, id, 4);
    memory.plan_shrink(id, range(10, 2)).unwrap().commit(&mut |_| {});
    add(&mut memory, "fn-3", 8);
    memory
}

fn broken(change: impl FnOnce(&mut Partitioner)) -> Broken {
    let mut memory = lively();
    change(&mut memory);
    memory.check_invariants().unwrap_err()
}

#[test]
fn an_account_that_contradicts_the_map_is_noticed() {
    let (one, blocks) = (PartitionId(1), Blocks::new);
    let broken_one = |change: fn(&mut Partition)| {
        broken(|memory| change(memory.partitions.get_mut(&PartitionId(1)).unwrap()))
    };
    assert_eq!(broken(|memory| memory.map.clear(&range(9, 1))), Broken::Plugged(PartitionId(2)));
    assert_eq!(broken_one(|it| it.account.plugged = Blocks::new(7)), Broken::Plugged(one));
    assert_eq!(broken_one(|it| it.account.peak = Blocks::new(7)), Broken::Peak);
    assert_eq!(broken_one(|it| it.account.requested = Blocks::new(9)), Broken::Owned(one));
    assert_eq!(broken_one(|it| it.state = PartitionState::Absent), Broken::State(one));
    assert_eq!(broken_one(|it| it.state = PartitionState::Requested), Broken::State(one));
    assert_eq!(broken(|memory| memory.shared.requested = blocks(1)), Broken::SharedArea);
    let sum = Broken::Sum { owners: blocks(15), map: blocks(14) };
    assert_eq!(broken(|memory| memory.shared.plugged = blocks(1)), sum);
}

#[test]
fn an_impossible_usable_size_is_noticed() {
    assert_eq!(broken(|memory| memory.usable = Blocks::new(63)), Broken::Usable);
    assert_eq!(broken(|memory| memory.usable = Blocks::new(65)), Broken::Usable);
    let plain = |memory: &mut Partitioner| {
        (memory.mode, memory.usable) = (Mode::Plain, Blocks::new(15));
    };
    assert_eq!(broken(plain), Broken::Usable);
}

#[test]
fn more_than_the_layout_allows_is_noticed() {
    assert_eq!(broken(|memory| memory.layout.max_partitions = 2), Broken::TooMany);
    let area = |memory: &mut Partitioner| memory.layout.shared_area = Blocks::new(1);
    assert_eq!(broken(area), Broken::Extents(PartitionId(1)));
}

#[test]
fn a_table_of_owners_that_disagrees_is_noticed() {
    let mut memory = lively();
    let gone = memory.partitions.remove(&PartitionId(3)).unwrap();
    assert_eq!(memory.check_invariants(), Err(Broken::Owners));
    memory.owners.forget(&gone);
    assert_eq!(memory.check_invariants(), Err(Broken::Requested));
    assert_eq!(broken(|memory| memory.owners.forget(&gone)), Broken::Owners);
}
