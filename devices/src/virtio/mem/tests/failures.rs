//! The host fails: the state is as before or as after, never between.

use super::*;

/// Every other pair of blocks plugged: 16 runs.
fn scattered() -> Rig {
    let mut rig = Rig::wanting(64);
    for first in (0..64).step_by(4) {
        assert_eq!(rig.plug(first, 2), ACK);
    }
    rig.events();
    rig
}

#[test]
fn a_plug_that_the_host_refuses_is_busy_and_changes_nothing() {
    let mut rig = Rig::wanting(8);
    rig.fail_calls(&[0]);
    assert_eq!(rig.plug(0, 8), BUSY);
    assert_eq!((rig.config(PLUGGED), rig.state(0, 8)), (0, 1));
    rig.assert_agreement();
    assert_eq!(rig.plug(0, 8), ACK, "the next try");
    assert_eq!((rig.counter("busy"), rig.counter("host_failures")), (1, 1));
    assert_eq!(rig.counter("plugged_bytes"), 8 * BLOCK);
}

#[test]
fn an_unplug_that_the_host_fails_to_free_is_busy_and_never_an_ack() {
    let mut rig = Rig::wanting(8);
    rig.plug(0, 8);
    rig.fail_calls(&[0]);
    assert_eq!(rig.unplug(2, 4), BUSY);
    assert_eq!((rig.config_blocks(PLUGGED), rig.state(0, 8)), (8, 0));
    rig.assert_agreement();
    assert_eq!(rig.unplug(2, 4), ACK);
    assert_eq!(rig.counter("unplugged_bytes"), 4 * BLOCK);
}

#[test]
fn unplug_all_that_fails_at_any_run_puts_those_before_it_back() {
    for position in 0..16 {
        let mut rig = scattered();
        let next = rig.host().calls.len();
        rig.host().fails = Box::new(move |call| call == next + position);
        assert_eq!(rig.unplug_all(), BUSY, "run {position}");
        assert_eq!(rig.host().open_blocks(), 32);
        rig.assert_agreement();
        assert_eq!(rig.events(), []);
        assert_eq!(rig.unplug_all(), ACK);
        assert_eq!(rig.host().open_blocks(), 0);
        rig.assert_agreement();
    }
}

#[test]
fn what_cannot_be_put_back_stays_closed_and_everything_busy_until_it_can() {
    for position in 1..16 {
        let mut rig = scattered();
        // Every call from `position` on fails: the release, and then all that undoes.
        let next = rig.host().calls.len();
        rig.host().fails = Box::new(move |call| call >= next + position);
        assert_eq!(rig.unplug_all(), BUSY);
        // The safe side: nothing is open that the guest does not have.
        assert_eq!(rig.host().open_blocks(), 32 - 2 * position as u64);
        assert_eq!(rig.config_blocks(PLUGGED), 32);
        assert_eq!((rig.plug(2, 1), rig.unplug(0, 1), rig.unplug_all()), (BUSY, BUSY, BUSY));
        assert_eq!(rig.plug(0, 1), ERROR, "what is wrong is wrong still");
        assert_eq!(rig.state(0, 2), 0);

        rig.host().fails = Box::new(|_| false);
        assert_eq!(rig.plug(2, 1), ACK);
        rig.assert_agreement();
        assert_eq!(rig.host().open_blocks(), 33);
    }
}

#[test]
fn an_undo_that_fails_once_is_made_up_for_even_after_a_reset() {
    let mut rig = scattered();
    // The third run, and the first of the two that are put back.
    rig.fail_calls(&[2, 3]);
    assert_eq!(rig.unplug_all(), BUSY);
    assert_eq!(rig.host().open_blocks(), 30);
    rig.reset();
    rig.activate();
    assert_eq!(rig.unplug_all(), ACK);
    rig.assert_agreement();
}

#[test]
fn a_host_that_never_recovers_costs_one_call_per_request() {
    let mut rig = scattered();
    rig.host().fails = Box::new(|_| true);
    let before = rig.host().calls.len();
    for _ in 0..100 {
        assert_eq!(rig.unplug_all(), BUSY);
    }
    assert_eq!(rig.host().calls.len(), before + 100);
    rig.assert_agreement();
}

#[test]
fn a_failed_request_tells_nobody_of_anything() {
    let mut rig = Rig::wanting(8);
    let (interrupts, generation) = (rig.config_interrupts(), rig.device.config().generation());
    rig.events();
    rig.fail_calls(&[0]);
    assert_eq!(rig.plug(0, 8), BUSY);
    assert_eq!(rig.config_interrupts(), interrupts);
    assert_eq!(rig.device.config().generation(), generation);
    assert_eq!(rig.events(), []);
}
