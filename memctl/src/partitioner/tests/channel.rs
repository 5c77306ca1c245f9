//! A guest that has negotiated the partition channel.

use super::*;

#[test]
fn a_partition_is_plugged_and_released_in_one_request_each() {
    let mut memory = channel();
    let id = add(&mut memory, "fn-1", 8);
    let plan = memory.plan_plug_partition(id).unwrap();
    assert_eq!(plan.runs().collect::<Vec<_>>(), [range(0, 8)]);
    plan.commit(&mut |_| {});
    assert_eq!(state(&memory, id), PartitionState::Plugged);

    let plan = memory.plan_release(id).unwrap();
    assert_eq!(
        (plan.blocks(), plan.runs().collect::<Vec<_>>()),
        (Blocks::new(8), vec![range(0, 8)])
    );
    let mut seen = Vec::new();
    plan.commit(&mut |change| {
        seen.push((change.partition.name().to_string(), change.from, change.partition.state()));
    });
    let gone = ("fn-1".to_string(), PartitionState::Plugged, PartitionState::Absent);
    assert_eq!(seen, [gone]);
    assert_eq!((memory.plugged_size(), memory.requested_size()), (Bytes::ZERO, Bytes::ZERO));
    assert_eq!(memory.partitions().len(), 0);
}

#[test]
fn plugging_twice_and_releasing_twice_are_errors() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    assert_eq!(memory.plan_plug_partition(id).unwrap_err().answer(), Answer::Error);
    memory.plan_release(id).unwrap().commit(&mut |_| {});
    assert_eq!(memory.plan_release(id).unwrap_err().answer(), Answer::Error);
    let waiting = add(&mut memory, "fn-2", 8);
    assert_eq!(memory.plan_release(waiting).unwrap_err(), Refusal::NotPlugged);
}

#[test]
fn a_partition_that_is_not_wanted_any_more_is_nacked() {
    let mut memory = channel();
    let waiting = add(&mut memory, "fn-1", 8);
    memory.remove(waiting, &mut |_| {}).unwrap();
    assert!(memory.partition(waiting).is_none());
    assert_eq!(memory.plan_plug_partition(waiting).unwrap_err().answer(), Answer::Nack);
    let taken = plugged(&mut memory, "fn-2", 8);
    memory.remove(taken, &mut |_| {}).unwrap();
    assert_eq!(memory.plan_plug_partition(taken).unwrap_err().answer(), Answer::Nack);
}

#[test]
fn what_was_plugged_by_address_counts_against_a_partition() {
    let mut memory = channel();
    // One of eight blocks that the host has back but for two, and one that it waits for.
    let old = add(&mut memory, "fn-1", 8);
    memory.set_mode(Mode::Plain);
    assert_eq!(plug(&mut memory, 0, 2), Answer::Ack);
    memory.remove(old, &mut |_| {}).unwrap();
    let new = add(&mut memory, "fn-2", 8);
    // In the old one's place, in the new one's name: six in all are still within what is wanted.
    assert_eq!(plug(&mut memory, 2, 6), Answer::Ack);
    assert_eq!(plug(&mut memory, 8, 1), Answer::Nack);
    memory.set_mode(Mode::Channel);
    assert_eq!(memory.plan_plug_partition(new).unwrap_err(), Refusal::OverRequested);
    // As the driver does that changes its ways.
    memory.plan_unplug_all().commit(&mut |_| {});
    memory.plan_plug_partition(new).unwrap().commit(&mut |_| {});
    assert_eq!(memory.plugged_size(), memory.requested_size());
}

#[test]
fn growth_withdrawn_before_it_was_taken_is_nacked() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    resize(&mut memory, id, 16);
    resize(&mut memory, id, 8);
    assert_eq!(memory.plan_plug_partition(id).unwrap_err().answer(), Answer::Nack);
    assert_eq!(extents(&memory, id), [(0, 8)]);
}

#[test]
fn a_grown_partition_plugs_only_what_it_misses() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    let next = plugged(&mut memory, "fn-2", 8);
    resize(&mut memory, id, 12);
    resize(&mut memory, next, 9);
    let runs = |memory: &mut Partitioner, id| {
        memory.plan_plug_partition(id).unwrap().runs().collect::<Vec<_>>()
    };
    assert_eq!(runs(&mut memory, id), [range(16, 4)]);
    assert_eq!(runs(&mut memory, next), [range(20, 1)]);
    memory.plan_plug_partition(id).unwrap().commit(&mut |_| {});
    let plan = memory.plan_release(id).unwrap();
    assert_eq!(plan.runs().collect::<Vec<_>>(), [range(0, 8), range(16, 4)]);
}

#[test]
fn requests_by_address_are_errors_but_state_and_unplug_all_stay() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    assert_eq!(memory.plan_plug(range(8, 1)).unwrap_err(), Refusal::ByAddress);
    assert_eq!(memory.plan_unplug(range(0, 1)).unwrap_err(), Refusal::ByAddress);
    assert_eq!(memory.state(&range(0, 16)), Ok(PlugState::Mixed));
    memory.plan_unplug_all().commit(&mut |_| {});
    assert_eq!(state(&memory, id), PartitionState::Requested);
    assert_eq!(memory.usable_size(), Bytes::mib(128));
}

#[test]
fn what_was_asked_back_is_taken_from_a_live_partition() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    memory.hint(id, BOUND, &mut |_| {}).unwrap();
    assert_eq!(memory.plan_shrink(id, range(2, 2)).unwrap_err().answer(), Answer::Nack);
    resize(&mut memory, id, 6);
    assert_eq!(memory.plan_shrink(id, range(2, 3)).unwrap_err().answer(), Answer::Nack);
    let plan = memory.plan_shrink(id, range(2, 2)).unwrap();
    assert_eq!(plan.runs().collect::<Vec<_>>(), [range(2, 2)]);
    plan.commit(&mut |_| {});
    assert_eq!(extents(&memory, id), [(0, 2), (4, 4)]);
    assert_eq!(memory.owner_of(BlockIndex::new(2)), Owner::Shared);
    assert_eq!(state(&memory, id), PartitionState::Bound);
    assert_eq!(memory.plan_shrink(id, range(0, 1)).unwrap_err().answer(), Answer::Nack);
}

#[test]
fn lies_about_what_to_give_back_are_errors() {
    let mut memory = channel();
    let one = plugged(&mut memory, "fn-1", 8);
    let two = plugged(&mut memory, "fn-2", 8);
    resize(&mut memory, one, 1);
    let refused = |memory: &mut Partitioner, id, range| memory.plan_shrink(id, range).unwrap_err();
    assert_eq!(refused(&mut memory, one, range(8, 1)), Refusal::NotItsBlocks);
    assert_eq!(refused(&mut memory, one, range(7, 2)), Refusal::NotItsBlocks);
    assert_eq!(refused(&mut memory, one, range(40, 1)), Refusal::NotItsBlocks);
    assert_eq!(refused(&mut memory, PartitionId(99), range(0, 1)), Refusal::UnknownPartition);
    resize(&mut memory, two, 16);
    assert_eq!(refused(&mut memory, two, range(16, 1)), Refusal::NotPlugged);
}

#[test]
fn the_last_block_leaves_only_by_a_release() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 2);
    memory.remove(id, &mut |_| {}).unwrap();
    assert_eq!(memory.plan_shrink(id, range(0, 2)).unwrap_err(), Refusal::NotAskedBack);
    memory.plan_shrink(id, range(0, 1)).unwrap().commit(&mut |_| {});
    assert_eq!(memory.plan_shrink(id, range(1, 1)).unwrap_err(), Refusal::NotAskedBack);
    memory.plan_release(id).unwrap().commit(&mut |_| {});
    assert_eq!(state(&memory, id), PartitionState::Absent);
}

#[test]
fn a_guest_cannot_scatter_a_partition_without_bound() {
    let blocks = 4 * Partition::MAX_EXTENTS as u64;
    let size = Bytes::mib(2 * blocks);
    let geometry = Geometry::new(0, Bytes::mib(2), size).unwrap();
    let mut memory = Partitioner::new(Layout { geometry, ..layout(0) });
    memory.set_mode(Mode::Channel);
    let id = plugged(&mut memory, "fn-1", blocks);
    resize(&mut memory, id, 1);
    let block = |index| BlockRange::within(&geometry, index, 1).unwrap();
    for split in 1..Partition::MAX_EXTENTS as u64 {
        memory.plan_shrink(id, block(2 * split)).unwrap().commit(&mut |_| {});
    }
    let refusal = memory.plan_shrink(id, block(blocks - 4)).unwrap_err();
    assert_eq!((refusal, refusal.answer()), (Refusal::TooScattered, Answer::Busy));
    memory.plan_shrink(id, block(blocks - 1)).unwrap().commit(&mut |_| {});
}

#[test]
fn hints_change_the_state_and_no_account() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    let before = *memory.partition(id).unwrap().account();
    let mut seen = Vec::new();
    let hints = [
        BOUND,
        Hint::Used(Bytes::mib(12)),
        Hint::Spilled(Bytes::mib(1)),
        Hint::Draining { used: Bytes::gib(9) },
        Hint::Stuck(Bytes::kib(4)),
    ];
    for hint in hints {
        memory.hint(id, hint, &mut |change| seen.push(change.partition.state())).unwrap();
    }
    assert_eq!(seen, [PartitionState::Bound, PartitionState::Draining]);
    let partition = memory.partition(id).unwrap();
    assert_eq!(*partition.account(), before);
    assert_eq!(partition.hints().used, Some(Bytes::mib(16)), "never more than is plugged");
    assert_eq!(partition.hints().used_peak, Bytes::mib(16));
    assert_eq!(partition.hints().spilled, Bytes::mib(1));
    assert_eq!(partition.hints().stuck, Bytes::kib(4));
    memory.hint(id, Hint::Empty, &mut |_| {}).unwrap();
    assert_eq!(state(&memory, id), PartitionState::Plugged);
    assert_eq!(memory.partition(id).unwrap().hints().used, Some(Bytes::ZERO));
    memory.hint(id, BOUND, &mut |_| {}).unwrap();
    let hints = *memory.partition(id).unwrap().hints();
    assert_eq!((hints.used, hints.used_peak), (Some(Bytes::mib(2)), Bytes::mib(16)));
}

#[test]
fn hints_about_what_is_not_plugged_are_errors() {
    let mut memory = channel();
    let id = add(&mut memory, "fn-1", 8);
    assert_eq!(memory.hint(id, BOUND, &mut |_| {}), Err(Refusal::NotPlugged));
    let unknown = memory.hint(PartitionId(9), BOUND, &mut |_| {});
    assert_eq!(unknown, Err(Refusal::UnknownPartition));
}

#[test]
fn unplug_all_keeps_what_is_wanted_and_drops_what_is_not() {
    let mut memory = channel();
    let kept = plugged(&mut memory, "fn-1", 8);
    let dropped = plugged(&mut memory, "fn-2", 8);
    memory.remove(dropped, &mut |_| {}).unwrap();
    memory.plan_unplug_all().commit(&mut |_| {});
    assert_eq!(memory.plugged_size(), Bytes::ZERO);
    assert_eq!(state(&memory, kept), PartitionState::Requested);
    assert_eq!(state(&memory, dropped), PartitionState::Absent);
}

#[test]
fn a_device_reset_changes_no_block() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    memory.set_mode(Mode::Plain);
    assert_eq!(
        (memory.plugged_size(), state(&memory, id)),
        (Bytes::mib(16), PartitionState::Plugged)
    );
    assert_eq!(memory.usable_size(), Bytes::mib(128), "it never shrinks on a device reset");
    assert_eq!(memory.owner_of(BlockIndex::FIRST), Owner::Partition(id));
}

#[test]
fn what_a_plain_driver_left_half_plugged_is_completed_or_released() {
    let mut memory = Partitioner::new(layout(0));
    let id = add(&mut memory, "fn-1", 8);
    plug(&mut memory, 1, 2);
    plug(&mut memory, 5, 1);
    memory.set_mode(Mode::Channel);
    let plan = memory.plan_release(id).unwrap();
    assert_eq!(plan.runs().collect::<Vec<_>>(), [range(1, 2), range(5, 1)]);
    drop(plan);
    let plan = memory.plan_plug_partition(id).unwrap();
    assert_eq!(plan.runs().collect::<Vec<_>>(), [range(0, 1), range(3, 2), range(6, 2)]);
    plan.commit(&mut |_| {});
    assert_eq!(state(&memory, id), PartitionState::Plugged);
}

#[test]
fn a_partition_is_never_plugged_beyond_what_is_wanted() {
    let mut memory = Partitioner::new(layout(0));
    let id = add(&mut memory, "fn-1", 8);
    plug(&mut memory, 0, 8);
    resize(&mut memory, id, 4);
    unplug(&mut memory, 0, 6);
    memory.set_mode(Mode::Channel);
    let plan = memory.plan_plug_partition(id).unwrap();
    assert_eq!(plan.runs().collect::<Vec<_>>(), [range(0, 2)]);
    plan.commit(&mut |_| {});
    assert_eq!(memory.plugged_size(), Bytes::mib(8));
}

#[test]
fn a_query_finds_the_partition_at_or_after_a_number() {
    let mut memory = channel();
    let (one, two) = (add(&mut memory, "fn-1", 1), add(&mut memory, "fn-2", 1));
    let next = |from| memory.query(from, false).unwrap().map(Partition::id);
    assert_eq!(next(PartitionId(0)), Some(one));
    assert_eq!(next(PartitionId(two.0)), Some(two));
    assert_eq!(next(PartitionId(two.0 + 1)), None);
    memory.set_mode(Mode::Plain);
    assert_eq!(memory.query(one, false), Err(Refusal::ByPartition));
}

#[test]
fn a_query_for_what_is_pending_passes_over_what_has_its_size() {
    let mut memory = channel();
    let [one, two, three] = ["fn-1", "fn-2", "fn-3"].map(|name| plugged(&mut memory, name, 4));
    let next = |memory: &Partitioner, from: PartitionId| {
        memory.query(from, true).unwrap().map(Partition::id)
    };
    assert_eq!(next(&memory, one), None);
    resize(&mut memory, one, 2);
    memory.remove(two, &mut |_| {}).unwrap();
    resize(&mut memory, three, 8);
    assert_eq!(
        [one, two, three].map(|from| next(&memory, from)),
        [Some(one), Some(two), Some(three)]
    );
    memory.plan_release(two).unwrap().commit(&mut |_| {});
    assert_eq!(next(&memory, two), Some(three));
}

#[test]
fn the_runs_of_a_partition_are_those_that_are_plugged() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    let runs = |memory: &Partitioner| {
        let partition = memory.partition(id).unwrap();
        memory.runs_of(partition).collect::<Vec<_>>()
    };
    assert_eq!(runs(&memory), [range(0, 8)]);
    resize(&mut memory, id, 12);
    assert_eq!(runs(&memory), [range(0, 8)], "not what it may take");
    resize(&mut memory, id, 6);
    memory.plan_shrink(id, range(2, 2)).unwrap().commit(&mut |_| {});
    assert_eq!(runs(&memory), [range(0, 2), range(4, 4)]);
}

#[test]
fn the_highest_number_survives_unplug_all() {
    let mut memory = channel();
    memory.next_id = u32::MAX;
    let (last, first) = (plugged(&mut memory, "fn-1", 1), plugged(&mut memory, "fn-2", 1));
    assert_eq!((last, first), (PartitionId(u32::MAX), PartitionId(1)));
    memory.next_id = u32::MAX;
    assert_eq!(add(&mut memory, "fn-3", 1), PartitionId(2), "numbers in use are passed over");
    memory.plan_unplug_all().commit(&mut |_| {});
    assert_eq!(state(&memory, last), PartitionState::Requested);
}

#[test]
fn the_last_hints_are_told_with_the_end_and_forgotten_by_unplug_all() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    let tell = |memory: &mut Partitioner| {
        memory.hint(id, BOUND, &mut |_| {}).unwrap();
        memory.hint(id, Hint::Spilled(Bytes::mib(3)), &mut |_| {}).unwrap();
    };
    tell(&mut memory);
    memory.plan_unplug_all().commit(&mut |_| {});
    assert_eq!(*memory.partition(id).unwrap().hints(), Hints::default());
    memory.plan_plug_partition(id).unwrap().commit(&mut |_| {});
    tell(&mut memory);
    let mut last = None;
    let plan = memory.plan_release(id).unwrap();
    plan.commit(&mut |change| last = Some(*change.partition.hints()));
    let last = last.unwrap();
    assert_eq!((last.used, last.used_peak), (Some(Bytes::ZERO), Bytes::mib(2)));
    assert_eq!(last.spilled, Bytes::mib(3));
}

#[test]
fn how_long_the_host_took_is_kept_with_the_account() {
    let mut memory = channel();
    let (one, two) = (plugged(&mut memory, "fn-1", 8), plugged(&mut memory, "fn-2", 8));
    let took = |memory: &Partitioner, id| memory.partition(id).unwrap().account().last_release;
    assert_eq!(took(&memory, one), None);
    resize(&mut memory, one, 6);
    let time = Duration::from_micros(70);
    memory.plan_shrink(one, range(0, 1)).unwrap().took(time).commit(&mut |_| {});
    assert_eq!((took(&memory, one), took(&memory, two)), (Some(time), None));
    memory.plan_shrink(one, range(1, 1)).unwrap().commit(&mut |_| {});
    assert_eq!(took(&memory, one), Some(time), "an untimed one tells nothing new");
    let longer = Duration::from_millis(1);
    let mut told = None;
    let plan = memory.plan_release(one).unwrap().took(longer);
    plan.commit(&mut |change| told = change.partition.account().last_release);
    assert_eq!(told, Some(longer));
}
