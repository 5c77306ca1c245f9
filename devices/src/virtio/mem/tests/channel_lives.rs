//! Lives of partitions, as docs/partition-channel.md draws them, and what resets do to them.

use std::time::Duration;

use memctl::PartitionState;

use super::channel_driver::*;
use super::*;

#[test]
fn notifications_are_hints() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    let before = (rig.config(PLUGGED), rig.config(REQUESTED), rig.part_gen());
    use PartitionState::{Bound, Draining, Plugged};
    let steps = [
        (BOUND, BLOCK, Bound, BLOCK),
        (IN_USE, 3 * BLOCK, Bound, 3 * BLOCK),
        (SPILLED, 5000, Bound, 3 * BLOCK),
        (DRAINING, 2 * BLOCK, Draining, 2 * BLOCK),
        (STUCK, 4096, Draining, 2 * BLOCK),
        (IN_USE, u64::MAX, Draining, 4 * BLOCK),
        (EMPTY, 77, Plugged, 0),
    ];
    for (event, arg, state, used) in steps {
        assert_eq!(rig.notify(id, event, arg), ACK);
        let view = rig.view(id).unwrap();
        assert_eq!((view.state, view.hints.used), (state, Some(Size::new(used))), "{event}");
    }
    let hints = rig.view(id).unwrap().hints;
    assert_eq!((hints.used_peak, hints.spilled), (size(4), Size::new(5000)));
    assert_eq!(hints.stuck, Size::new(4096));
    assert_eq!((rig.config(PLUGGED), rig.config(REQUESTED), rig.part_gen()), before);
}

#[test]
fn unknown_events_are_errors() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    let before = rig.view(id);
    for event in [0, 7, 0xffff] {
        assert_eq!(rig.notify(id, event, 0), ERROR);
    }
    assert_eq!((rig.view(id), rig.counter("malformed")), (before, 3));
}

#[test]
fn a_life_is_told_step_by_step_with_the_time_of_its_release() {
    use PartitionState::{Absent, Bound, Draining, Plugged, Requested};
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.notify(id, BOUND, BLOCK);
    rig.notify(id, DRAINING, BLOCK);
    let time = Duration::from_millis(2);
    rig.host().hook = Box::new(move || std::thread::sleep(time));
    assert_eq!(rig.release(id), ACK);
    let told = |event| match event {
        MemEvent::PartitionChanged { partition, from } => (partition, from),
        other @ MemEvent::SharedPlugged { .. } => panic!("{other:?}"),
    };
    let told: Vec<_> = rig.events().into_iter().map(told).collect();
    let steps: Vec<_> = told.iter().map(|(one, from)| (*from, one.state)).collect();
    let expected = [(Absent, Requested), (Requested, Plugged), (Plugged, Bound), (Bound, Draining)];
    assert_eq!(steps[..4], expected);
    assert_eq!(steps[4..], [(Draining, Absent)]);
    assert!(told[..4].iter().all(|(one, _)| one.last_release.is_none()));
    let last = &told[4].0;
    assert!(last.last_release.unwrap() >= time);
    assert_eq!((last.hints.used_peak, last.peak, last.cookie), (size(1), size(4), Cookie(700)));
    assert_eq!(last.last_released, size(4));
}

#[test]
fn a_shrink_tells_how_long_it_took() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    assert_eq!(rig.view(id).unwrap().last_release, None);
    rig.handle.resize_partition(id, size(3), None).unwrap();
    let time = Duration::from_millis(1);
    rig.host().hook = Box::new(move || std::thread::sleep(time));
    rig.shrink(id, 0, 1);
    assert!(rig.view(id).unwrap().last_release.unwrap() >= time);
}

#[test]
fn prefault_provides_the_memory_when_it_is_plugged() {
    let mut rig = Rig::channel();
    let policy = Policy { keep: false, prefault: true };
    let name = "fn-1".parse().unwrap();
    let id = rig.handle.add_partition(name, Cookie(0), size(4), policy, None).unwrap().id;
    rig.part_plug(id).unwrap();
    rig.taken("fn-2", 4);
    assert_eq!(rig.host().populated, 1);
    assert_eq!(rig.view(id).unwrap().policy, policy);
    rig.assert_agreement();
}

#[test]
fn numbers_are_not_used_again_soon() {
    let mut rig = Rig::channel();
    let ids: Vec<_> = (0..20)
        .map(|_| {
            let id = rig.taken("fn-1", 4);
            assert_eq!(rig.release(id), ACK);
            id
        })
        .collect();
    assert!(ids.is_sorted_by(|one, next| one < next));
}

/// Principle 1: a wish changes nothing that the guest has.
#[test]
fn the_host_only_wishes() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    let calls = rig.host().calls.len();
    rig.handle.resize_partition(id, size(1), None).unwrap();
    rig.handle.ask_evacuation(id).unwrap();
    rig.handle.remove_partition(id).unwrap();
    assert_eq!(rig.host().calls.len(), calls);
    assert_eq!((rig.state(0, 4), rig.config_blocks(PLUGGED)), (0, 4));
}

#[test]
fn a_reset_of_the_device_changes_no_block_and_ends_the_channel() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.notify(id, BOUND, 0);
    let calls = rig.host().calls.len();
    rig.reset();
    assert!(!rig.handle.channel_is_up());
    rig.activate_channel();
    assert!(rig.handle.channel_is_up());
    assert_eq!(rig.host().calls.len(), calls);
    let seen = rig.query(0, 0).unwrap();
    assert_eq!((seen.id, seen.runs), (id, vec![(0, 4)]));
    assert_eq!((rig.release(id), rig.config(PLUGGED)), (ACK, 0));
}

/// A kernel that knows nothing of partitions follows one that did.
#[test]
fn a_plain_driver_after_the_channel_is_served_as_one() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.reset();
    rig.activate();
    assert_eq!((rig.query(0, 0), rig.release(id)), (Err(ERROR), ERROR));
    assert_eq!((rig.state(0, 4), rig.unplug(0, 4), rig.plug(0, 3)), (0, ACK, ACK));
    assert_eq!(rig.view(id).unwrap().plugged, size(3));
    rig.reset();
    rig.activate_channel();
    assert_eq!(rig.part_plug(id).unwrap().runs, [(3, 1)]);
    rig.assert_agreement();
}

#[test]
fn what_a_kernel_before_left_goes_with_unplug_all() {
    let mut rig = Rig::channel();
    let (kept, dropped) = (rig.taken("fn-1", 4), rig.taken("fn-2", 4));
    rig.handle.remove_partition(dropped).unwrap();
    rig.reset();
    rig.activate_channel();
    assert_eq!((rig.unplug_all(), rig.config(PLUGGED)), (ACK, 0));
    assert_eq!(rig.view(dropped), None);
    assert_eq!(rig.query(0, PENDING).unwrap().id, kept);
    assert_eq!(rig.query(kept.0 + 1, 0), Err(NACK));
}

#[test]
fn requests_of_the_channel_are_counted() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.notify(id, IN_USE, 0);
    rig.shrink(id, 0, 1);
    rig.query(0, 0).unwrap();
    rig.release(id);
    for name in ["part_plug", "part_notify", "part_shrink", "part_query", "part_release"] {
        assert_eq!(rig.counter(name), 1, "{name}");
    }
}

/// What the guest says of a partition is policy: it is neither needed nor in the way.
#[test]
fn a_partition_that_is_said_to_be_in_use_can_be_released_shrunk_and_plugged() {
    for event in [BOUND, DRAINING, EMPTY] {
        let mut rig = Rig::channel();
        let id = rig.taken("fn-1", 4);
        assert_eq!(rig.notify(id, event, 4 * BLOCK), ACK);
        assert_eq!(rig.part_plug(id), Err(ERROR), "it has what is wanted");
        rig.handle.resize_partition(id, size(6), None).unwrap();
        assert_eq!(rig.part_plug(id).unwrap().runs, [(4, 2)]);
        rig.handle.resize_partition(id, size(5), None).unwrap();
        assert_eq!((rig.shrink(id, 0, 1), rig.release(id)), (ACK, ACK));
        assert_eq!(rig.view(id), None);
    }
}
