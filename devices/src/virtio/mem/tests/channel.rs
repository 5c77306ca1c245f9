//! Each line of docs/partition-channel.md that says what the device does.

use memctl::partitioner::Resize;
use memctl::{PartitionState, Partitioner};

use super::channel_driver::*;
use super::*;

const KEEP: u32 = 1;
const EVACUATE: u32 = 2;

/// A number that no partition has.
const NOBODY: PartitionId = PartitionId(999);

// Feature bits.

#[test]
fn the_bits_are_offered_where_there_may_be_partitions() {
    let bits = F_PARTITION | F_PART_ZEROED;
    assert_eq!(Rig::new(layout(16), None).device.features() & bits, bits);
    assert_eq!(Rig::wanting(0).device.features() & bits, 0);
}

#[test]
fn not_negotiated_it_is_a_plain_device() {
    let mut rig = Rig::new(layout(0), None);
    let id = rig.add("fn-1", 4);
    assert!(!rig.handle.channel_is_up());
    for kind in [PART_PLUG, PART_RELEASE, PART_SHRINK, PART_QUERY, PART_NOTIFY] {
        let answer = rig.ask_record(&part_request(kind, id, 1, IN_USE, BASE));
        assert_eq!(answer, Err(ERROR), "{kind:#x}");
    }
    assert_eq!((rig.plug(0, 4), rig.unplug(0, 1)), (ACK, ACK));
    assert_eq!(rig.config_blocks(USABLE), 4);
    rig.assert_agreement();
}

#[test]
fn bit_57_alone_negotiates_nothing() {
    let mut rig = Rig::new(layout(0), None);
    rig.reset();
    rig.worker = rig.try_activate(F_UNPLUGGED_INACCESSIBLE | F_PART_ZEROED).unwrap().pop();
    assert!(!rig.handle.channel_is_up());
    assert_eq!(rig.query(0, 0), Err(ERROR));
}

#[test]
fn a_driver_without_a_queue_has_no_channel() {
    let mut rig = Rig::new(layout(0), None);
    rig.reset();
    let (memory, interrupt) = (Arc::clone(rig.memory), Arc::clone(&rig.interrupts) as _);
    let features = F_UNPLUGGED_INACCESSIBLE | F_PARTITION;
    let activation = Activation { features, memory, queues: vec![None], interrupt };
    assert!(rig.device.activate(activation).unwrap().is_empty());
    assert!(!rig.handle.channel_is_up());
}

#[test]
fn negotiated_requests_by_address_are_errors() {
    let mut rig = Rig::channel();
    rig.taken("fn-1", 4);
    rig.add("fn-2", 4);
    assert!(rig.handle.channel_is_up());
    assert_eq!((rig.plug(4, 1), rig.unplug(0, 1)), (ERROR, ERROR));
    rig.assert_agreement();
}

#[test]
fn negotiated_state_and_unplug_all_stay_valid() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    assert_eq!((rig.state(0, 4), rig.state(4, 60), rig.state(0, 64)), (0, 1, 2));
    assert_eq!(rig.unplug_all(), ACK);
    assert_eq!(rig.view(id).unwrap().state, PartitionState::Requested);
    assert_eq!(rig.part_plug(id).unwrap().runs, [(0, 4)], "it is wanted still");
}

#[test]
fn negotiated_the_usable_size_is_the_region_and_that_is_told() {
    let mut rig = Rig::new(layout(0), None);
    rig.add("fn-1", 4);
    rig.reset();
    let before = rig.config_interrupts();
    rig.activate_channel();
    assert_eq!(rig.config_blocks(USABLE), BLOCKS);
    assert_eq!(rig.config_interrupts(), before + 1);
    rig.reset();
    rig.activate_channel();
    assert_eq!(rig.config_interrupts(), before + 1, "nothing has changed");
    assert_eq!(rig.unplug_all(), ACK);
    assert_eq!(rig.config_blocks(USABLE), BLOCKS);
}

// Configuration space.

#[test]
fn the_fields_of_the_channel_follow_those_of_virtio() {
    let rig = Rig::channel();
    rig.handle.prepare(size(10)).unwrap();
    rig.add("fn-1", 4);
    assert_eq!(rig.config(PART_MAX) as u32, 8);
    assert_eq!(rig.part_gen(), rig.handle.look(Partitioner::generation));
    assert_eq!(rig.config(PART_PREPARE), 10 * BLOCK);
    assert_eq!(rig.config(PART_BACK), 0);
    assert_eq!(rig.config(PART_BACK + 8), 0, "the space ends after 80 bytes");
}

/// An interrupt may give the CPU to the guest.
#[test]
fn who_waits_for_memory_hears_before_the_guest_does() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    let before = rig.interrupts.used.load(Ordering::Relaxed);
    rig.events();
    assert_eq!((rig.release(id), rig.events().len()), (ACK, 1));
    assert_eq!(rig.used_when_told.load(Ordering::Relaxed), before);
    assert_eq!(rig.interrupts.used.load(Ordering::Relaxed), before + 1);
}

/// A driver that reads it needs no look at the table.
#[test]
fn part_back_names_a_partition_from_its_removal_to_its_release() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.taken("fn-2", 4);
    rig.handle.remove_partition(id).unwrap();
    assert_eq!(rig.config(PART_BACK), u64::from(id.0));
    assert_eq!(rig.release(id), ACK);
    assert_eq!(rig.config(PART_BACK), 0);
}

#[test]
fn prepare_takes_whole_blocks_and_at_most_the_region() {
    let rig = Rig::channel();
    rig.handle.prepare(Size::new(BLOCK / 2)).unwrap_err();
    assert_eq!(rig.config(PART_PREPARE), 0);
    rig.handle.prepare(size(BLOCKS + 1)).unwrap();
    assert_eq!(rig.config_blocks(PART_PREPARE), BLOCKS);
}

/// Each of these is one change of what the host wants.
#[test]
fn each_wish_changes_part_gen_and_interrupts_once() {
    let rig = Rig::channel();
    let mut last = (rig.part_gen(), rig.config_interrupts());
    let mut told = |what: &str| {
        let now = (rig.part_gen(), rig.config_interrupts());
        assert_eq!(now, (last.0 + 1, last.1 + 1), "{what}");
        last = now;
    };
    let handle = rig.handle.clone();
    let id = rig.add("fn-1", 8);
    told("addition");
    handle.resize_partition(id, size(4), None).unwrap();
    told("resize");
    handle.ask_evacuation(id).unwrap();
    told("evacuation");
    handle.prepare(size(8)).unwrap();
    told("preparation");
    handle.remove_partition(id).unwrap();
    told("removal");
}

#[test]
fn what_is_wanted_already_or_refused_interrupts_nobody() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 8);
    rig.handle.ask_evacuation(id).unwrap();
    let before = (rig.part_gen(), rig.config_interrupts());
    rig.handle.ask_evacuation(id).unwrap();
    rig.handle.prepare(size(0)).unwrap();
    assert_eq!(rig.handle.resize_partition(id, size(8), None), Ok(Resize::Unchanged));
    rig.handle.resize_partition(id, size(65), None).unwrap_err();
    rig.handle.remove_partition(NOBODY).unwrap_err();
    rig.handle.ask_evacuation(NOBODY).unwrap_err();
    assert_eq!((rig.part_gen(), rig.config_interrupts()), before);
}

#[test]
fn a_request_of_the_drivers_own_interrupts_nobody() {
    let mut rig = Rig::channel();
    let id = rig.add("fn-1", 8);
    let (before, interrupts) = (rig.part_gen(), rig.config_interrupts());
    rig.part_plug(id).unwrap();
    assert_eq!(rig.notify(id, BOUND, 0), ACK);
    assert_eq!(rig.part_gen(), before);
    assert_eq!(rig.release(id), ACK);
    assert_ne!(rig.part_gen(), before, "the host wants it no more");
    assert_eq!(rig.config_interrupts(), interrupts);
}

// Requests.

#[test]
fn part_plug_takes_the_whole_partition_and_says_where_it_is() {
    let mut rig = Rig::channel();
    rig.add("fn-1", 3);
    let id = rig.add("fn-2", 4);
    let seen = rig.part_plug(id).unwrap();
    let (size, plugged, runs) = (4 * BLOCK, 4 * BLOCK, vec![(3, 4)]);
    assert_eq!(seen, Seen { id, flags: 0, cookie: 700, size, plugged, runs });
    assert_eq!(rig.host().calls, [(true, 3, 4)]);
    assert_eq!(rig.config_blocks(PLUGGED), 4);
    rig.assert_agreement();
}

#[test]
fn part_plug_of_what_is_not_wanted_is_nacked() {
    let mut rig = Rig::channel();
    let id = rig.add("fn-1", 4);
    rig.handle.remove_partition(id).unwrap();
    assert_eq!(rig.part_plug(id), Err(NACK));
    assert_eq!(rig.part_plug(NOBODY), Err(NACK));
    let id = rig.taken("fn-2", 4);
    rig.handle.remove_partition(id).unwrap();
    assert_eq!(rig.part_plug(id), Err(NACK));
    assert_eq!((rig.counter("nack"), rig.counter("refused")), (3, 0));
}

#[test]
fn a_partition_plugged_twice_is_an_error_unless_the_host_has_resized_it() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    assert_eq!(rig.part_plug(id), Err(ERROR));
    rig.handle.resize_partition(id, size(8), None).unwrap();
    rig.handle.resize_partition(id, size(4), None).unwrap();
    assert_eq!(rig.part_plug(id), Err(NACK));
}

#[test]
fn part_plug_of_a_grown_partition_names_what_is_new() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.add("fn-2", 4);
    rig.handle.resize_partition(id, size(6), None).unwrap();
    let seen = rig.part_plug(id).unwrap();
    assert_eq!((seen.runs, seen.plugged), (vec![(8, 2)], 6 * BLOCK));
    assert_eq!(rig.query(id.0, 0).unwrap().runs, [(0, 4), (8, 2)]);
}

#[test]
fn part_release_gives_all_back_and_the_partition_is_gone() {
    let mut rig = Rig::channel();
    let id = rig.scattered();
    let seen = rig.part_plug(id).unwrap();
    assert_eq!(seen.runs, [(0, 2), (3, 2), (6, 2), (9, 2)]);
    rig.host().calls.clear();
    assert_eq!(rig.release(id), ACK);
    let calls = [(false, 0, 2), (false, 3, 2), (false, 6, 2), (false, 9, 2)];
    assert_eq!(rig.host().calls, calls, "one call for each run");
    assert_eq!((rig.view(id), rig.config(PLUGGED)), (None, 0));
    assert_eq!((rig.release(id), rig.part_plug(id)), (ERROR, Err(NACK)));
    assert_eq!((rig.counter("releases"), rig.counter("released_bytes")), (1, 8 * BLOCK));
    rig.assert_agreement();
}

#[test]
fn release_shrink_and_notify_of_what_is_not_there_or_holds_nothing_are_errors() {
    let mut rig = Rig::channel();
    let empty = rig.add("fn-1", 4);
    for id in [empty, NOBODY] {
        assert_eq!((rig.release(id), rig.notify(id, IN_USE, 0)), (ERROR, ERROR));
        assert_eq!(rig.shrink(id, 0, 1), ERROR);
    }
    assert_eq!(rig.counter("refused"), 6);
    assert!(rig.host().calls.is_empty());
}

#[test]
fn part_shrink_gives_back_what_was_asked_and_no_more() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 8);
    assert_eq!(rig.shrink(id, 0, 1), NACK, "nothing was asked back");
    rig.handle.resize_partition(id, size(5), None).unwrap();
    assert_eq!(rig.shrink(id, 2, 4), NACK);
    assert_eq!(
        (rig.shrink(id, 2, 2), rig.shrink(id, 7, 1), rig.shrink(id, 0, 1)),
        (ACK, ACK, NACK)
    );
    assert_eq!(rig.query(0, 0).unwrap().runs, [(0, 2), (4, 3)]);
    assert_eq!(rig.query(0, PENDING), Err(NACK));
    rig.assert_agreement();
}

#[test]
fn part_shrink_of_what_is_not_its_own_or_not_plugged_is_an_error() {
    let mut rig = Rig::channel();
    let (id, other) = (rig.taken("fn-1", 8), rig.taken("fn-2", 8));
    for id in [id, other] {
        rig.handle.resize_partition(id, size(2), None).unwrap();
    }
    assert_eq!(rig.shrink(id, 2, 2), ACK);
    for (first, count) in [(8, 1), (7, 2), (2, 1), (1, 2), (3, 2), (40, 1), (64, 1), (0, 0)] {
        assert_eq!(rig.shrink(id, first, count), ERROR, "{first}, {count}");
    }
    assert_eq!(rig.part(PART_SHRINK, id, 1, 0, BASE + 4096), ERROR);
    assert_eq!(rig.config_blocks(PLUGGED), 14);
    rig.assert_agreement();
}

#[test]
fn the_last_block_goes_with_the_partition() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 2);
    rig.handle.remove_partition(id).unwrap();
    assert_eq!(
        (rig.shrink(id, 0, 2), rig.shrink(id, 0, 1), rig.shrink(id, 1, 1)),
        (NACK, ACK, NACK)
    );
    assert_eq!(rig.release(id), ACK);
    assert_eq!(rig.view(id), None);
}

#[test]
fn part_query_finds_the_first_partition_from_a_number_on() {
    let mut rig = Rig::channel();
    assert_eq!(rig.query(0, 0), Err(NACK));
    let (one, two) = (rig.taken("fn-1", 4), rig.add("fn-2", 2));
    let seen = rig.query(0, 0).unwrap();
    assert_eq!((seen.id, seen.size, seen.plugged), (one, 4 * BLOCK, 4 * BLOCK));
    let seen = rig.query(one.0 + 1, 0).unwrap();
    assert_eq!((seen.id, seen.size, seen.plugged, seen.runs), (two, 2 * BLOCK, 0, vec![]));
    assert_eq!((rig.query(two.0 + 1, 0), rig.query(u32::MAX, 0)), (Err(NACK), Err(NACK)));
}

#[test]
fn part_query_for_pending_finds_what_has_another_size_than_is_wanted() {
    let mut rig = Rig::channel();
    let [new, same, less, gone] = ["fn-1", "fn-2", "fn-3", "fn-4"].map(|name| rig.add(name, 4));
    for id in [same, less, gone] {
        rig.part_plug(id).unwrap();
    }
    rig.handle.resize_partition(less, size(2), None).unwrap();
    rig.handle.remove_partition(gone).unwrap();
    let mut found = Vec::new();
    let mut from = 0;
    while let Ok(seen) = rig.query(from, PENDING) {
        found.push((seen.id, seen.size / BLOCK, seen.plugged / BLOCK));
        from = seen.id.0 + 1;
    }
    assert_eq!(found, [(new, 4, 0), (less, 2, 4), (gone, 0, 4)]);
}

#[test]
fn the_record_says_what_the_host_wants_done() {
    let mut rig = Rig::channel();
    let policy = Policy { keep: true, prefault: false };
    let name = "fn-1".parse().unwrap();
    let id = rig.handle.add_partition(name, Cookie(u64::MAX), size(2), policy, None).unwrap().id;
    let seen = rig.part_plug(id).unwrap();
    assert_eq!((seen.flags, seen.cookie), (KEEP, u64::MAX));
    rig.handle.remove_partition(id).unwrap();
    rig.handle.ask_evacuation(id).unwrap();
    let seen = rig.query(0, PENDING).unwrap();
    assert_eq!((seen.flags, seen.size), (KEEP | EVACUATE, 0));
    rig.handle.resize_partition(id, size(2), None).unwrap();
    assert_eq!(rig.query(0, 0).unwrap().flags, KEEP, "not wanted back any more");
}

#[test]
fn what_a_request_does_not_use_is_ignored() {
    let mut rig = Rig::channel();
    let id = rig.add("fn-1", 4);
    for kind in [PART_PLUG, PART_QUERY] {
        let seen = rig.ask_record(&part_request(kind, id, 0xfffe, 0xffff, u64::MAX));
        assert_eq!(seen.unwrap().id, id, "{kind:#x}");
    }
    assert_eq!(rig.part(PART_RELEASE, id, 0xffff, 0xffff, u64::MAX), ACK);
}

// The answer.

#[test]
fn plug_and_query_need_room_for_the_longest_record() {
    let mut rig = Rig::channel();
    let id = rig.add("fn-1", 4);
    for kind in [PART_PLUG, PART_QUERY] {
        rig.write(REQUEST, &part_request(kind, id, 0, 0, 0));
        for room in [10, 16, 56, 72, RECORD_ROOM - 1] {
            rig.write(REPLY, &[0xee; 16]);
            assert_eq!(rig.send(&[readable(REQUEST, 24), writable(REPLY, room)]), 10);
            assert_eq!((rig.u16_at(REPLY), rig.u16_at(REPLY + 10)), (ERROR, 0xeeee), "{room}");
        }
    }
    assert!(rig.host().calls.is_empty());
    assert_eq!(rig.counter("malformed"), 10);
    assert_eq!(rig.part_plug(id).unwrap().runs, [(0, 4)]);
}

#[test]
fn the_other_requests_need_room_for_ten_bytes() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.handle.resize_partition(id, size(3), None).unwrap();
    // `part` gives ten.
    assert_eq!((rig.notify(id, IN_USE, 1), rig.shrink(id, 0, 1), rig.release(id)), (ACK, ACK, ACK));
}

#[test]
fn a_nack_is_ten_bytes_however_much_there_is_room_for() {
    let mut rig = Rig::channel();
    rig.write(REQUEST, &part_request(PART_QUERY, NOBODY, 0, 0, 0));
    rig.write(REPLY, &[0xee; 16]);
    assert_eq!(rig.send(&[readable(REQUEST, 24), writable(REPLY, 60_000)]), 10);
    assert_eq!((rig.u16_at(REPLY), rig.u16_at(REPLY + 10)), (NACK, 0xeeee));
}
