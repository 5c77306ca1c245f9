//! Many requests at once.

use std::time::Duration;

use super::*;
use crate::virtio::worker::SLICED;

/// Offers `count` one-sector reads, each with a status byte of its own.
fn offer_reads(rig: &mut Rig, count: u64) {
    for i in 0..count {
        let at = HEADER + i * 16;
        rig.write(at, &header(T_IN, i));
        rig.write(STATUS + i, &[UNTOUCHED]);
        let (data, status) = (writable(DATA + i * 512, 512), writable(STATUS + i, 1));
        rig.offer(&[readable(at, 16), data, status]);
    }
}

/// Fills the available ring with head 0, for a driver that offers one chain again and again.
fn repeat_first_head(rig: &Rig) {
    let avail = rig.ring.avail().ring();
    (0..usize::from(RING_SIZE)).for_each(|at| avail.ref_at(at).unwrap().store(0));
}

/// Ends what the mock holds, the last first.
fn release(rig: &mut Rig) {
    let mut engine = rig.mock.engine(rig.memory, RING_SIZE).unwrap();
    let mut held = std::mem::take(&mut rig.mock.state().held);
    rig.mock.state().hold = false;
    while let Some((token, operation)) = held.pop() {
        engine.push(token, operation);
    }
    engine.submit();
    rig.mock.state().hold = true;
}

#[test]
fn answers_come_in_the_order_of_completion_with_one_interrupt() {
    let mut rig = Rig::new();
    rig.mock.state().hold = true;
    offer_reads(&mut rig, 4);
    rig.worker.queue_ready(0);
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.interrupts(), 0);
    release(&mut rig);
    rig.worker.source_ready(0);
    assert_eq!(rig.answers(), [(9, 513), (6, 513), (3, 513), (0, 513)]);
    assert_eq!(rig.interrupts(), 1);
    let disk = rig.mock.state().disk[..4 * 512].to_vec();
    assert_eq!(rig.bytes(DATA, 4 * 512), disk);
    assert_eq!(rig.bytes(STATUS, 4), [OK; 4]);
}

#[test]
fn a_failure_is_answered_to_the_one_it_happened_to() {
    let mut rig = Rig::new();
    offer_reads(&mut rig, 1);
    rig.worker.queue_ready(0);
    rig.mock.state().fail = true;
    rig.write(HEADER, &header(T_IN, 1));
    assert_eq!(rig.ask(&chain(0, 512)), (IOERR, 0));
    assert_eq!((rig.counter("read_ops"), rig.counter("errors")), (1, 1));
}

#[test]
fn no_more_is_in_flight_than_the_ring_holds() {
    let mut rig = Rig::new();
    rig.mock.state().hold = true;
    rig.header(T_FLUSH, 0);
    testing::offer(&rig.ring, 0, &chain(0, 0));
    repeat_first_head(&rig);
    for offered in [1, 2, 2] {
        rig.ring.avail().idx().store(offered * RING_SIZE);
        rig.worker.queue_ready(0);
        assert_eq!(rig.mock.state().held.len(), usize::from(RING_SIZE));
    }
    assert_eq!(rig.interrupts.needs_reset.load(Ordering::Relaxed), 0);
    release(&mut rig);
    rig.worker.source_ready(0);
    assert_eq!(rig.answered(), RING_SIZE);
    assert_eq!(rig.mock.state().held.len(), usize::from(RING_SIZE), "room is used at once");
}

#[test]
fn quiesce_answers_all_that_is_in_flight() {
    for features in [ALL, 0] {
        let mut rig = Rig::with(Mock::new(), features);
        rig.mock.state().hold = true;
        offer_reads(&mut rig, 2);
        rig.write(HEADER + 0x1000, &header(T_OUT, 5));
        rig.offer(&[readable(HEADER + 0x1000, 16), readable(DATA, 512), writable(STATUS + 9, 1)]);
        rig.worker.queue_ready(0);
        rig.worker.quiesce();
        assert_eq!(rig.answers().len(), 3);
        assert_eq!(rig.mock.state().held.len(), 0);
        assert_eq!(rig.interrupts(), 1);
        rig.worker.quiesce();
        assert_eq!(rig.answers().len(), 3);
    }
}

#[test]
fn a_driver_that_never_stops_does_not_keep_the_thread() {
    SLICED.set(true);
    let mut rig = Rig::new();
    rig.header(T_FLUSH, 0);
    testing::offer(&rig.ring, 0, &chain(0, 0));
    repeat_first_head(&rig);
    let (memory, index) = (Arc::clone(rig.memory), GuestAddress(rig.ring.avail_addr().0 + 2));
    rig.mock.state().on_submit = Some(Box::new(move || {
        let offered: u16 = memory.read_obj(index).unwrap();
        memory.write_obj(offered.wrapping_add(1), index).unwrap();
    }));
    rig.worker.queue_ready(0);
    let rung = rig.worker.queues()[0].kick().read().unwrap();
    assert_eq!(rung, 1, "the thread reminds itself of the rest");
    let answered = rig.answered();
    assert!(answered > 0);
    rig.worker.queue_ready(0);
    assert_ne!(rig.answered(), answered);
    assert_eq!(rig.interrupts.needs_reset.load(Ordering::Relaxed), 0);
}

/// With all that a guest may queue, a slow disk would hold up a pause for minutes.
#[test]
fn a_slow_disk_does_not_keep_the_thread() {
    SLICED.set(true);
    let mut rig = Rig::new();
    rig.mock.state().push_takes = Duration::from_millis(11);
    offer_reads(&mut rig, 3);
    for served in 1..=3 {
        rig.worker.queue_ready(0);
        assert_eq!(rig.answered(), served);
        assert_eq!(rig.worker.queues()[0].kick().read().is_ok(), served < 3);
    }
}

#[test]
fn a_broken_ring_ends_the_service() {
    let mut rig = Rig::new();
    rig.ring.avail().idx().store(RING_SIZE + 1);
    rig.worker.queue_ready(0);
    rig.worker.queue_ready(0);
    assert_eq!(rig.interrupts.needs_reset.load(Ordering::Relaxed), 1);
    assert_eq!(rig.answers(), []);
    assert_eq!(rig.interrupts(), 0);
}
