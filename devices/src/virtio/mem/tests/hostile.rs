//! What no driver sends, and every guest may.

use std::cell::Cell;

use log::{LevelFilter, Log, Metadata, Record};
use proptest::prelude::*;

use super::*;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A valid request, which would have an effect, waits at [`REQUEST`].
fn rig() -> Rig {
    let rig = Rig::wanting(8);
    rig.write(REQUEST, &request(PLUG, BASE, 8));
    rig.write(REPLY, &[0xee; 16]);
    rig
}

/// The answer at [`REPLY`].
fn answer(rig: &Rig) -> u16 {
    rig.u16_at(REPLY)
}

fn assert_no_effect(rig: &Rig) {
    assert!(rig.host().calls.is_empty());
    assert_eq!(rig.config(PLUGGED), 0);
}

#[test]
fn a_request_without_room_for_its_answer_is_given_back_without_effect() {
    let unplugged = BASE + BLOCK;
    let cases: [&[Descriptor]; 6] = [
        &[readable(REQUEST, 24)],
        &[readable(REQUEST, 24), writable(REPLY, 9)],
        &[readable(REQUEST, 24), writable(REPLY, 0)],
        &[readable(REQUEST, 24), writable(1 << 40, 10)],
        &[readable(REQUEST, 24), writable(unplugged, 10)],
        &[readable(REQUEST, 24), writable(REPLY, 9), writable(u64::MAX, 1)],
    ];
    let mut rig = rig();
    for chain in cases {
        assert_eq!(rig.send(chain), 0, "{chain:?}");
    }
    assert_eq!(rig.counter("unanswered"), cases.len() as u64);
    assert_no_effect(&rig);
}

#[test]
fn a_request_that_is_short_or_unreadable_is_an_error() {
    let cases: [&[Descriptor]; 6] = [
        &[writable(REPLY, 10)],
        &[readable(REQUEST, 23), writable(REPLY, 10)],
        &[readable(REQUEST, 0), writable(REPLY, 10)],
        &[readable(1 << 40, 24), writable(REPLY, 10)],
        &[readable(BASE, 24), writable(REPLY, 10)],
        &[readable(REQUEST, 8), readable(u64::MAX, 16), writable(REPLY, 10)],
    ];
    let mut rig = rig();
    for chain in cases {
        rig.write(REPLY, &[0xee; 10]);
        assert_eq!(rig.send(chain), 10, "{chain:?}");
        assert_eq!(answer(&rig), ERROR, "{chain:?}");
    }
    assert_eq!(rig.counter("malformed"), cases.len() as u64);
    assert_no_effect(&rig);
}

#[test]
fn a_buffer_to_read_after_one_to_write_is_an_error() {
    let mut rig = rig();
    assert_eq!(rig.send(&[writable(REPLY, 10), readable(REQUEST, 24)]), 10);
    assert_eq!(answer(&rig), ERROR);
    assert_no_effect(&rig);
}

#[test]
fn unknown_types_are_errors() {
    let mut rig = rig();
    for kind in [4, 5, 0x100, 0x104, 0xffff] {
        assert_eq!(rig.ask(kind, BASE, 8), ERROR);
    }
    assert_no_effect(&rig);
}

#[test]
fn chains_without_an_end_are_given_back_without_effect() {
    let loops = [
        // To itself, back to the start, out of the table.
        vec![Descriptor::new(REQUEST, 24, NEXT, 0)],
        vec![Descriptor::new(REQUEST, 24, NEXT, 1), Descriptor::new(REPLY, 10, NEXT | WRITE, 0)],
        vec![Descriptor::new(REQUEST, 24, NEXT, 1), Descriptor::new(REPLY, 10, NEXT | WRITE, 16)],
        // An indirect table that is in another, that is not there, and of half an entry.
        vec![Descriptor::new(0x3000, 16, INDIRECT, 0)],
        vec![Descriptor::new(1 << 40, 32, INDIRECT, 0)],
        vec![Descriptor::new(0x3000, 8, INDIRECT, 0)],
    ];
    let mut rig = rig();
    let inner = Descriptor::new(0x3000, 16, INDIRECT, 0);
    rig.memory.write_obj(RawDescriptor::from(inner), GuestAddress(0x3000)).unwrap();
    for chain in &loops {
        rig.offer_raw(chain);
        assert_eq!(rig.serve_one(), 0, "{chain:?}");
    }
    assert_eq!(rig.counter("unanswered"), loops.len() as u64);
    assert_no_effect(&rig);
}

#[test]
fn a_chain_of_hundreds_of_descriptors_is_given_back_without_effect() {
    let mut rig = rig();
    let table = 0x3_0000;
    for at in 0..300u16 {
        let inner = Descriptor::new(REQUEST, 1, if at < 299 { NEXT } else { WRITE }, at + 1);
        let place = GuestAddress(table + 16 * u64::from(at));
        rig.memory.write_obj(RawDescriptor::from(inner), place).unwrap();
    }
    rig.offer_raw(&[Descriptor::new(table, 300 * 16, INDIRECT, 0)]);
    assert_eq!(rig.serve_one(), 0);
    assert_no_effect(&rig);
}

#[test]
fn a_head_outside_the_table_is_given_back_or_breaks_the_queue() {
    let mut rig = rig();
    rig.offer_head(0xffff);
    rig.kick();
    let broken = rig.interrupts.needs_reset.load(Ordering::Relaxed);
    assert!(rig.answered() == 1 || broken == 1);
    assert_no_effect(&rig);
}

#[test]
fn request_and_answer_may_be_one_buffer() {
    let mut rig = rig();
    assert_eq!(rig.send(&[readable(REQUEST, 24), writable(REQUEST, 10)]), 10);
    assert_eq!(rig.u16_at(REQUEST), ACK);
    rig.assert_agreement();
}

#[test]
fn more_than_is_needed_may_be_offered() {
    let mut rig = rig();
    assert_eq!(rig.send(&[readable(REQUEST, 4096), writable(REPLY, 4096)]), 10);
    assert_eq!(answer(&rig), ACK);
}

#[test]
fn an_answer_into_the_memory_that_is_given_back_is_lost_and_nothing_else() {
    let mut rig = rig();
    rig.plug(0, 8);
    rig.write(REQUEST, &request(UNPLUG, BASE, 8));
    let parts = [writable(REPLY, 4), writable(BASE + BLOCK, 6)];
    assert_eq!(rig.send(&[readable(REQUEST, 24), parts[0], parts[1]]), 4);
    assert_eq!(rig.config(PLUGGED), 0);
    rig.assert_agreement();
}

#[test]
fn queue_addresses_in_unplugged_memory_end_the_queue_and_not_the_monitor() {
    let mut rig = Rig::wanting(8);
    let mut queue: Queue = rig.ring.create_queue().unwrap();
    queue.set_used_ring_address(Some(0), Some(1));
    queue.set_avail_ring_address(Some(AVAIL), None);
    let (memory, interrupt) = (Arc::clone(rig.memory), Arc::clone(&rig.interrupts) as _);
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let queues = vec![Some(VirtQueue::new(0, queue, kick, memory.clone(), Arc::clone(&interrupt)))];
    let features = F_UNPLUGGED_INACCESSIBLE;
    let activation = Activation { features, memory, queues, interrupt };
    rig.worker = rig.device.activate(activation).unwrap().pop();
    rig.write(REQUEST, &request(STATE, BASE, 8));
    rig.offer(&[readable(REQUEST, 24), writable(REPLY, 10)]);
    rig.kick();
    assert_eq!(rig.interrupts.needs_reset.load(Ordering::Relaxed), 1);
}

#[test]
fn a_storm_of_chains_is_answered_one_by_one() {
    let mut rig = rig();
    let chain = [Descriptor::new(REQUEST, 24, NEXT, 1), Descriptor::new(REPLY, 10, WRITE, 0)];
    for round in 1..=1000u16 {
        for _ in 0..RING_SIZE {
            rig.offer_raw(&chain);
        }
        rig.kick();
        assert_eq!(rig.answered(), round.wrapping_mul(RING_SIZE));
    }
    assert_eq!((rig.counter("ack"), rig.host().calls.len()), (1, 1));
}

#[test]
fn a_storm_of_resets_loses_nothing() {
    let mut rig = rig();
    rig.plug(0, 8);
    for _ in 0..200 {
        rig.reset();
        rig.activate();
        assert_eq!(rig.state(0, 8), 0);
    }
    rig.assert_agreement();
}

thread_local! {
    static LINES: Cell<usize> = const { Cell::new(0) };
}

/// Counts what the device logs on this thread.
struct CountingLog;

impl Log for CountingLog {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.target().contains("virtio::mem") {
            LINES.set(LINES.get() + 1);
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_guest_that_misbehaves_ten_thousand_times_does_not_flood_the_log() {
    log::set_logger(&CountingLog).unwrap();
    log::set_max_level(LevelFilter::Warn);
    let mut rig = rig();
    for round in 0..2000 {
        rig.plug(0, 0);
        rig.ask(7, 0, 0);
        rig.send(&[readable(REQUEST, 24)]);
        rig.unplug(round % 70, 65535);
        rig.plug(0, 9);
        rig.release(PartitionId(round as u32));
        if round % 100 == 0 {
            rig.reset();
            rig.activate();
        }
    }
    assert_eq!(rig.counter("refused"), 10000);
    assert!((1..=14).contains(&LINES.get()), "{} lines", LINES.get());
}

/// `len` bytes at `at`, cut into pieces at `cuts`, some of them empty.
fn cut(at: u64, len: u32, cuts: &[u32], buffer: fn(u64, u32) -> Descriptor) -> Vec<Descriptor> {
    let mut ends: Vec<u32> = cuts.iter().map(|cut| cut % (len + 1)).chain([len]).collect();
    ends.sort_unstable();
    let mut start = 0;
    ends.into_iter()
        .map(|end| {
            let piece = buffer(at + u64::from(start), end - start);
            start = end;
            piece
        })
        .collect()
}

proptest! {
    #[test]
    fn any_framing_is_understood(
        reads in prop::collection::vec(any::<u32>(), 0..8),
        writes in prop::collection::vec(any::<u32>(), 0..6),
    ) {
        let mut rig = rig();
        let mut chain = cut(REQUEST, 24, &reads, readable);
        chain.extend(cut(REPLY, 10, &writes, writable));
        prop_assert_eq!(rig.send(&chain), 10);
        prop_assert_eq!(answer(&rig), ACK);
        prop_assert_eq!(rig.config_blocks(PLUGGED), 8);
        prop_assert_eq!(rig.u16_at(REPLY + 10), 0xeeee);
    }

    #[test]
    fn any_chain_is_answered_once_within_bounds(
        buffers in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..18), 1..12),
        near in any::<bool>(),
    ) {
        let mut rig = rig();
        let table: Vec<_> = buffers
            .iter()
            .map(|&(at, len, flags, next)| {
                // Half of the cases stay where there is RAM, clear of the rings.
                let at = if near { REQUEST + at % (1 << 18) } else { at };
                Descriptor::new(at, if near { len % 64 } else { len }, flags, next)
            })
            .collect();
        rig.offer_raw(&table);
        prop_assert!(rig.serve_one() <= 10);
        rig.assert_agreement();
    }

    #[test]
    fn any_request_leaves_host_and_books_in_agreement(
        requests in prop::collection::vec(any::<[u8; 24]>(), 1..20),
    ) {
        let mut rig = rig();
        for request in requests {
            rig.ask_raw(&request);
        }
        rig.assert_agreement();
    }
}
