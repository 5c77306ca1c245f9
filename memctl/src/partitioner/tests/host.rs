//! What the host wishes.

use super::*;

fn refused(memory: &mut Partitioner, name: &str, size: u64, free: Option<Bytes>) -> HostError {
    let (name, size) = (name.parse().unwrap(), Blocks::new(size));
    memory.add(name, Cookie(0), size, Policy::default(), free, &mut |_| {}).unwrap_err()
}

#[test]
fn a_new_partition_has_its_place_at_once() {
    let mut memory = Partitioner::new(layout(16));
    let mut seen = Vec::new();
    let (name, policy) = ("fn-1".parse().unwrap(), Policy { keep: true, prefault: false });
    let id = memory
        .add(name, Cookie(5), Blocks::new(8), policy, None, &mut |change| {
            seen.push((change.from, change.partition.state()));
        })
        .unwrap();
    assert_eq!(seen, [(PartitionState::Absent, PartitionState::Requested)]);
    assert_eq!(extents(&memory, id), [(16, 8)]);
    let partition = memory.find("fn-1").unwrap();
    assert_eq!((partition.id(), partition.cookie()), (id, Cookie(5)));
    assert_eq!((partition.policy(), memory.generation()), (policy, 1));
    assert!(memory.find("fn-2").is_none());
}

#[test]
fn the_smallest_gap_that_fits_is_taken() {
    let mut memory = channel();
    let ids: Vec<_> = [8, 1, 4, 1, 6]
        .iter()
        .enumerate()
        .map(|(i, n)| add(&mut memory, &format!("f{i}"), *n))
        .collect();
    for id in [ids[0], ids[2]] {
        memory.remove(id, &mut |_| {}).unwrap();
    }
    let small = add(&mut memory, "small", 3);
    assert_eq!(extents(&memory, small), [(9, 3)]);
    let large = add(&mut memory, "large", 5);
    assert_eq!(extents(&memory, large), [(0, 5)]);
}

#[test]
fn freed_neighbours_become_one_gap() {
    let mut memory = channel();
    let ids: Vec<_> = (0..8).map(|i| plugged(&mut memory, &format!("f{i}"), 8)).collect();
    for id in [ids[3], ids[1], ids[2]] {
        memory.plan_release(id).unwrap().commit(&mut |_| {});
    }
    let id = add(&mut memory, "big", 24);
    assert_eq!(extents(&memory, id), [(8, 24)]);
}

#[test]
fn only_a_fragmented_region_scatters_a_partition() {
    let mut memory = channel();
    let ids: Vec<_> = (0..8).map(|i| add(&mut memory, &format!("f{i}"), 8)).collect();
    for id in [ids[1], ids[3]] {
        memory.remove(id, &mut |_| {}).unwrap();
    }
    let id = add(&mut memory, "scattered", 12);
    assert_eq!(extents(&memory, id), [(8, 8), (24, 4)]);
    let error = refused(&mut memory, "more", 5, None);
    let room = HostError::NoRoom { wanted: Bytes::mib(10), free: Bytes::mib(8) };
    assert_eq!(error, room);
}

#[test]
fn more_pieces_than_a_release_can_bear_is_no_room() {
    let layout = Layout { max_partitions: 64, ..layout(0) };
    let mut memory = Partitioner::new(layout);
    let ids: Vec<_> = (0..64).map(|i| add(&mut memory, &format!("f{i}"), 1)).collect();
    for id in ids.iter().step_by(2) {
        memory.remove(*id, &mut |_| {}).unwrap();
    }
    let refused = refused(&mut memory, "x", 17, None);
    assert!(matches!(refused, HostError::NoRoom { .. }));
    // A larger region would not be the way out.
    let text = refused.to_string();
    assert!(text.contains("64 MiB is free for partitions but is in too many pieces"), "{text}");
    let id = add(&mut memory, "x", 16);
    assert_eq!(extents(&memory, id).len(), 16);
}

#[test]
fn strayed_shared_blocks_are_avoided_until_they_are_unplugged() {
    let mut memory = Partitioner::new(layout(4));
    memory.resize_shared(Blocks::new(4), None).unwrap();
    let (one, two) = (add(&mut memory, "fn-1", 4), add(&mut memory, "fn-2", 4));
    memory.remove(one, &mut |_| {}).unwrap();
    assert_eq!(plug(&mut memory, 5, 1), Answer::Ack);
    assert_eq!(memory.shared().plugged, Blocks::new(1));
    let three = add(&mut memory, "fn-3", 4);
    assert_eq!(extents(&memory, three), [(12, 4)]);
    assert_eq!(unplug(&mut memory, 5, 1), Answer::Ack);
    let four = add(&mut memory, "fn-4", 4);
    assert_eq!(extents(&memory, four), [(4, 4)]);
    assert_eq!(extents(&memory, two), [(8, 4)]);
}

#[test]
fn growth_continues_the_partition_where_it_can() {
    let mut memory = channel();
    let (one, two) = (add(&mut memory, "fn-1", 8), add(&mut memory, "fn-2", 8));
    resize(&mut memory, two, 16);
    assert_eq!(extents(&memory, two), [(8, 16)]);
    resize(&mut memory, one, 9);
    assert_eq!(extents(&memory, one), [(0, 8), (24, 1)]);
    resize(&mut memory, one, 4);
    assert_eq!(memory.partition(one).unwrap().owned(), Blocks::new(4));
    assert_eq!(memory.requested_size(), Bytes::mib(40));
}

#[test]
fn growth_does_not_jump_over_a_strayed_block() {
    let mut memory = Partitioner::new(layout(0));
    let sizes = [("a", 4), ("b", 8), ("c", 4), ("d", 2), ("e", 4)];
    let ids = sizes.map(|(name, size)| add(&mut memory, name, size));
    for id in [ids[1], ids[3]] {
        memory.remove(id, &mut |_| {}).unwrap();
    }
    assert_eq!(plug(&mut memory, 4, 1), Answer::Ack);
    resize(&mut memory, ids[0], 6);
    assert_eq!(extents(&memory, ids[0]), [(0, 4), (16, 2)]);
}

#[test]
fn a_partition_shrunk_before_it_was_taken_is_smaller_at_once() {
    let mut memory = channel();
    let id = add(&mut memory, "fn-1", 8);
    resize(&mut memory, id, 5);
    assert_eq!(extents(&memory, id), [(0, 5)]);
    memory.plan_plug_partition(id).unwrap().commit(&mut |_| {});
    assert_eq!(state(&memory, id), PartitionState::Plugged);
}

#[test]
fn a_half_taken_partition_counts_as_taken_when_the_host_wants_no_more() {
    let mut memory = Partitioner::new(layout(0));
    let id = add(&mut memory, "fn-1", 8);
    plug(&mut memory, 2, 4);
    let mut seen = Vec::new();
    let watch = &mut |change: Change<'_>| seen.push(change.partition.state());
    memory.resize(id, Blocks::new(4), None, watch).unwrap();
    assert_eq!(seen, [PartitionState::Plugged]);
    assert_eq!(extents(&memory, id), [(2, 4)]);
}

#[test]
fn slack_in_more_pieces_than_a_partition_may_have_is_kept() {
    let blocks = 4 * Partition::MAX_EXTENTS as u64;
    let geometry = Geometry::new(0, Bytes::mib(2), Bytes::mib(2 * blocks)).unwrap();
    let mut memory = Partitioner::new(Layout { geometry, ..layout(0) });
    let id = add(&mut memory, "fn-1", blocks);
    for index in (0..blocks).step_by(2) {
        let block = BlockRange::within(&geometry, index, 1).unwrap();
        memory.plan_plug(block).unwrap().commit(&mut |_| {});
    }
    resize(&mut memory, id, 1);
    let partition = memory.partition(id).unwrap();
    assert_eq!(partition.extents().len(), Partition::MAX_EXTENTS);
    assert!(partition.owned() > partition.account().committed());
    let grown = memory.resize(id, Blocks::new(blocks), None, &mut |_| {});
    assert!(matches!(grown, Err(HostError::NoRoom { .. })));
}

#[test]
fn a_size_for_a_partition_on_its_way_out_keeps_it() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    memory.remove(id, &mut |_| {}).unwrap();
    assert!(!memory.partition(id).unwrap().wanted());
    let cancelled = memory.resize(id, Blocks::new(8), Some(Bytes::ZERO), &mut |_| {});
    assert_eq!(cancelled, Ok(Resize::Changed));
    assert!(memory.partition(id).unwrap().wanted());
    assert_eq!(state(&memory, id), PartitionState::Plugged);
}

#[test]
fn the_generation_counts_changes_of_what_the_host_wants_only() {
    let mut memory = channel();
    let mut last = memory.generation();
    let mut changed = |memory: &Partitioner| {
        std::mem::replace(&mut last, memory.generation()) != memory.generation()
    };
    let id = add(&mut memory, "fn-1", 8);
    assert!(changed(&memory));
    memory.plan_plug_partition(id).unwrap().commit(&mut |_| {});
    memory.hint(id, BOUND, &mut |_| {}).unwrap();
    assert!(!changed(&memory));
    let same = memory.resize(id, Blocks::new(8), None, &mut |_| {});
    assert_eq!(same, Ok(Resize::Unchanged));
    assert!(!changed(&memory));
    resize(&mut memory, id, 4);
    assert!(changed(&memory));
    memory.remove(id, &mut |_| {}).unwrap();
    assert!(changed(&memory));
    memory.remove(id, &mut |_| {}).unwrap();
    assert!(!changed(&memory), "asking again is no change");
    memory.plan_release(id).unwrap().commit(&mut |_| {});
    assert!(!changed(&memory), "what was asked for has come");
}

#[test]
fn a_release_that_nobody_asked_for_changes_the_requested_size() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    let before = memory.generation();
    memory.plan_release(id).unwrap().commit(&mut |_| {});
    assert_eq!(memory.requested_size(), Bytes::ZERO);
    assert_ne!(memory.generation(), before);
}

#[test]
fn impossible_wishes_are_refused_and_change_nothing() {
    let mut memory = channel();
    let id = add(&mut memory, "fn-1", 8);
    let before = memory.clone();
    let nobody = PartitionId(99);
    let (zero, one) = (Blocks::ZERO, Blocks::new(1));
    assert_eq!(refused(&mut memory, "fn-2", 0, None), HostError::Zero(Bytes::mib(2)));
    assert!(matches!(refused(&mut memory, "fn-1", 1, None), HostError::NameTaken(_)));
    let over = HostError::OverPartitionArea(Bytes::mib(128));
    for too_many in [65, u64::MAX] {
        assert_eq!(refused(&mut memory, "x", too_many, Some(Bytes::ZERO)), over);
        let resized = memory.resize(id, Blocks::new(too_many), Some(Bytes::ZERO), &mut |_| {});
        assert_eq!(resized.as_ref(), Err(&over));
    }
    assert!(matches!(memory.resize(id, zero, None, &mut |_| {}), Err(HostError::Zero(_))));
    let unknown = Err(HostError::Unknown(nobody));
    assert_eq!(memory.resize(nobody, one, None, &mut |_| {}), unknown);
    assert_eq!(memory.remove(nobody, &mut |_| {}), Err(HostError::Unknown(nobody)));
    let shared = memory.resize_shared(one, None);
    assert_eq!(shared, Err(HostError::OverSharedArea(Bytes::ZERO)));
    assert_eq!(memory, before);
}

#[test]
fn growth_without_room_is_refused() {
    let mut memory = Partitioner::new(layout(60));
    let id = add(&mut memory, "fn-1", 2);
    add(&mut memory, "fn-2", 1);
    let grown = memory.resize(id, Blocks::new(4), None, &mut |_| {});
    let room = HostError::NoRoom { wanted: Bytes::mib(4), free: Bytes::mib(2) };
    assert_eq!(grown, Err(room));
    assert_eq!(memory.partition(id).unwrap().account().requested, Blocks::new(2));
}

#[test]
fn there_are_never_more_partitions_than_the_layout_allows() {
    let mut memory = channel();
    let ids: Vec<_> = (0..8).map(|i| add(&mut memory, &format!("f{i}"), 1)).collect();
    assert_eq!(refused(&mut memory, "f8", 1, None), HostError::TooManyPartitions(8));
    memory.remove(ids[0], &mut |_| {}).unwrap();
    add(&mut memory, "f8", 1);
    let mut none = Partitioner::new(Layout::shared_only(layout(0).geometry));
    assert_eq!(refused(&mut none, "f0", 1, None), HostError::OverPartitionArea(Bytes::ZERO));
}

#[test]
fn a_vm_made_too_small_says_what_would_make_it_larger() {
    let mut memory = channel();
    for name in 0..8 {
        add(&mut memory, &format!("f{name}"), 1);
    }
    let full = refused(&mut memory, "f8", 1, None).to_string();
    assert!(full.ends_with("make memory.partitions.max larger when the VM is created"), "{full}");
    memory.remove(memory.find("f7").unwrap().id(), &mut |_| {}).unwrap();
    let full = refused(&mut memory, "f8", 64, None).to_string();
    assert!(full.ends_with("make memory.partitions.size larger when the VM is created"), "{full}");
}

#[test]
fn what_one_partition_keeps_is_no_room_for_another() {
    let mut memory = channel();
    let kept = plugged(&mut memory, "fn-1", 8);
    memory.remove(kept, &mut |_| {}).unwrap();
    assert_eq!(memory.promised(), Bytes::ZERO);
    add(&mut memory, "fn-2", 8);
    assert_eq!(memory.requested_size(), memory.plugged_size());
    assert_eq!(memory.promised(), Bytes::mib(16));
}

#[test]
fn the_host_promises_no_more_than_it_has() {
    let mut memory = channel();
    let id = add(&mut memory, "fn-1", 8);
    // 8 blocks are promised and not taken, so 4 more need the memory of 12.
    let full = HostError::HostFull { wanted: Bytes::mib(24), free: Bytes::mib(22) };
    assert_eq!(refused(&mut memory, "fn-2", 4, Some(Bytes::mib(22))), full);
    memory.plan_plug_partition(id).unwrap().commit(&mut |_| {});
    let name = "fn-2".parse().unwrap();
    let (policy, free) = (Policy::default(), Some(Bytes::mib(8)));
    assert!(memory.add(name, Cookie(0), Blocks::new(4), policy, free, &mut |_| {}).is_ok());
    assert!(memory.resize(id, Blocks::new(4), Some(Bytes::ZERO), &mut |_| {}).is_ok());
}

#[test]
fn shared_memory_stays_in_its_area() {
    let mut memory = Partitioner::new(layout(16));
    assert_eq!(memory.resize_shared(Blocks::new(16), None), Ok(Resize::Changed));
    assert_eq!(memory.resize_shared(Blocks::new(16), None), Ok(Resize::Unchanged));
    let over = Err(HostError::OverSharedArea(Bytes::mib(32)));
    assert_eq!(memory.resize_shared(Blocks::new(17), None), over);
    assert_eq!(memory.resize_shared(Blocks::ZERO, Some(Bytes::ZERO)), Ok(Resize::Changed));
    let whole = Partitioner::new(layout(u64::MAX));
    assert_eq!(whole.layout().shared_area, Blocks::new(64), "no larger than the region");
}

#[test]
fn errors_read_well() {
    assert_eq!(HostError::Unknown(PartitionId(3)).to_string(), "there is no partition 3");
    let zero = HostError::Zero(Bytes::mib(2)).to_string();
    assert_eq!(zero, "a partition has at least one block of 2 MiB");
}

#[test]
fn an_evacuation_is_a_wish_of_which_the_guest_must_hear_once() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    let before = memory.generation();
    memory.ask_evacuation(id).unwrap();
    memory.ask_evacuation(id).unwrap();
    let partition = memory.partition(id).unwrap();
    assert_eq!((partition.state(), partition.evacuate()), (PartitionState::Plugged, true));
    let unknown = PartitionId(9);
    assert_eq!(memory.ask_evacuation(unknown), Err(HostError::Unknown(unknown)));
    assert_eq!(memory.generation(), before + 1);
}

#[test]
fn a_size_cancels_removal_and_evacuation() {
    let mut memory = channel();
    let id = plugged(&mut memory, "fn-1", 8);
    memory.remove(id, &mut |_| {}).unwrap();
    memory.ask_evacuation(id).unwrap();
    resize(&mut memory, id, 8);
    let partition = memory.partition(id).unwrap();
    assert!(!partition.evacuate() && partition.wanted() && !partition.is_pending());
}

#[test]
fn preparation_is_a_wish_of_at_most_the_region() {
    let mut memory = channel();
    let before = memory.generation();
    memory.prepare(Blocks::new(16));
    memory.prepare(Blocks::new(16));
    assert_eq!((memory.prepared_size(), memory.generation()), (Bytes::mib(32), before + 1));
    memory.prepare(Blocks::new(65));
    assert_eq!(memory.prepared_size(), Bytes::mib(128));
}

#[test]
fn the_generation_and_numbers_wrap() {
    let mut memory = channel();
    (memory.generation, memory.next_id) = (u32::MAX, u32::MAX);
    assert_eq!(add(&mut memory, "last", 1), PartitionId(u32::MAX));
    assert_eq!(memory.generation(), 0);
    assert_eq!(add(&mut memory, "first", 1), PartitionId(1), "0 is nobody's number");
}

#[test]
fn the_last_one_wanted_back_is_known_until_it_is_gone_or_wanted_again() {
    let mut memory = channel();
    let [first, second, third] = ["a", "b", "c"].map(|name| plugged(&mut memory, name, 4));
    assert_eq!(memory.wanted_back(), None);
    memory.remove(first, &mut |_| {}).unwrap();
    memory.remove(second, &mut |_| {}).unwrap();
    assert_eq!(memory.wanted_back(), Some(second));
    memory.plan_release(second).unwrap().commit(&mut |_| {});
    assert_eq!(memory.wanted_back(), None, "the first one is found by a look at the table");
    memory.remove(third, &mut |_| {}).unwrap();
    assert_eq!(memory.wanted_back(), Some(third));
    resize(&mut memory, third, 2);
    assert_eq!(memory.wanted_back(), None);
}
