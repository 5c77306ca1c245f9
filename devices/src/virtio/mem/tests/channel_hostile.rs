//! What no driver with partitions sends, and every guest may.

use std::cmp::Ordering as Order;

use memctl::PartitionState;
use proptest::prelude::*;

use super::channel_driver::*;
use super::*;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Where an indirect table is.
const TABLE: u64 = 0x4_0000;

impl Rig {
    /// Sends `chain`, which may have more descriptors than the ring, through an indirect table.
    fn send_long(&mut self, chain: &[Descriptor]) -> u32 {
        for (at, one) in (0u16..).zip(chain) {
            let next = if usize::from(at) + 1 < chain.len() { NEXT } else { 0 };
            let linked = Descriptor::new(one.addr().0, one.len(), one.flags() | next, at + 1);
            let place = GuestAddress(TABLE + 16 * u64::from(at));
            self.memory.write_obj(RawDescriptor::from(linked), place).unwrap();
        }
        self.offer_raw(&[Descriptor::new(TABLE, 16 * chain.len() as u32, INDIRECT, 0)]);
        self.serve_one()
    }
}

/// A request to plug a partition of four blocks waits at [`REQUEST`].
fn waiting() -> (Rig, PartitionId) {
    let rig = Rig::channel();
    let id = rig.add("fn-1", 4);
    rig.write(REQUEST, &part_request(PART_PLUG, id, 0, 0, 0));
    rig.write(REPLY, &[0xee; RECORD_ROOM as usize + 2]);
    (rig, id)
}

fn seen(rig: &Rig, len: u32) -> Seen {
    let mut reply = vec![0; len as usize];
    rig.memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
    Seen::read(&reply)
}

/// `total` bytes at `at`, cut into pieces at `cuts`, some of them empty.
fn cut(at: u64, total: u32, cuts: &[u32], flags: u16) -> Vec<Descriptor> {
    let mut ends: Vec<u32> = cuts.iter().map(|cut| cut % (total + 1)).chain([total]).collect();
    ends.sort_unstable();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let piece =
        |(start, end): (u32, &u32)| Descriptor::new(at + u64::from(start), end - start, flags, 0);
    starts.zip(&ends).map(piece).collect()
}

#[test]
fn room_for_a_record_that_is_one_byte_short_however_it_is_cut_is_an_error() {
    let (mut rig, _) = waiting();
    let short = [writable(REPLY, 10), writable(REPLY + 10, 0), writable(REPLY + 10, 4141)];
    let chain = [readable(REQUEST, 24), short[0], short[1], short[2]];
    assert_eq!((rig.send(&chain), rig.u16_at(REPLY)), (10, ERROR));
    assert!(rig.host().calls.is_empty());
}

#[test]
fn room_for_a_record_in_memory_that_is_not_plugged_is_an_error() {
    let (mut rig, _) = waiting();
    // Where this very request would plug, past the end of RAM, and nowhere.
    for place in [BASE, (1 << 20) - 4100, u64::MAX - 4200] {
        rig.write(REPLY, &[0xee; 16]);
        let rest = [writable(REPLY, 16), writable(place, RECORD_ROOM)];
        assert_eq!(rig.send(&[readable(REQUEST, 24), rest[0], rest[1]]), 10);
        assert_eq!(rig.u16_at(REPLY), ERROR, "{place:#x}");
    }
    assert!(rig.host().calls.is_empty());
}

#[test]
fn a_record_may_go_to_the_memory_of_a_partition() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.write(REQUEST, &part_request(PART_QUERY, id, 0, 0, 0));
    let across = BASE + BLOCK - 20;
    assert_eq!(rig.send(&[readable(REQUEST, 24), writable(across, RECORD_ROOM)]), 72);
    let mut reply = [0; 72];
    rig.memory.read_slice(&mut reply, GuestAddress(across)).unwrap();
    assert_eq!(Seen::read(&reply).runs, [(0, 4)]);
}

#[test]
fn an_answer_into_the_partition_that_is_released_is_lost_and_nothing_else() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.write(REQUEST, &part_request(PART_RELEASE, id, 0, 0, 0));
    assert_eq!(rig.send(&[readable(REQUEST, 24), writable(BASE, 10)]), 0);
    assert_eq!((rig.view(id), rig.config(PLUGGED)), (None, 0));
    rig.assert_agreement();
}

#[test]
fn request_and_record_may_be_one_buffer() {
    let (mut rig, id) = waiting();
    assert_eq!(rig.send(&[readable(REQUEST, 24), writable(REQUEST, RECORD_ROOM)]), 72);
    let mut reply = [0; 72];
    rig.memory.read_slice(&mut reply, GuestAddress(REQUEST)).unwrap();
    assert_eq!((Seen::read(&reply).id, Seen::read(&reply).runs), (id, vec![(0, 4)]));
}

#[test]
fn a_chain_may_have_as_many_descriptors_as_the_queue_and_no_more() {
    let (mut rig, id) = waiting();
    let mut chain = vec![readable(REQUEST, 24)];
    chain.extend(cut(REPLY, RECORD_ROOM, &(1..63).collect::<Vec<_>>(), WRITE));
    assert_eq!(chain.len(), 64);
    chain.push(writable(REPLY + 5000, 1));
    assert_eq!(rig.send_long(&chain), 0, "given back without effect");
    assert_eq!(rig.view(id).unwrap().state, PartitionState::Requested);
    chain.pop();
    let len = rig.send_long(&chain);
    assert_eq!(seen(&rig, len).runs, [(0, 4)]);
}

#[test]
fn notifications_with_absurd_numbers_are_cut_or_kept_as_they_are() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    for event in 1..=6 {
        for arg in [u64::MAX, 1 << 63, 4 * BLOCK + 1, 0] {
            assert_eq!(rig.notify(id, event, arg), ACK);
            let hints = rig.view(id).unwrap().hints;
            assert!(hints.used.unwrap() <= size(4) && hints.used_peak <= size(4));
        }
    }
    assert_eq!((rig.config_blocks(PLUGGED), rig.config_blocks(REQUESTED)), (4, 4));
}

#[test]
fn numbers_of_partitions_that_were_or_will_be_do_nothing() {
    let mut rig = Rig::channel();
    let old = rig.taken("fn-1", 4);
    rig.release(old);
    let id = rig.taken("fn-1", 4);
    for wrong in [old.0, id.0 + 1, 0, u32::MAX, id.0 | 1 << 31] {
        let wrong = PartitionId(wrong);
        assert_eq!((rig.release(wrong), rig.part_plug(wrong)), (ERROR, Err(NACK)));
        assert_eq!((rig.notify(wrong, 2, 0), rig.shrink(wrong, 0, 1)), (ERROR, ERROR));
    }
    assert_eq!(rig.view(id).unwrap().state, PartitionState::Plugged);
    rig.assert_agreement();
}

#[test]
fn the_most_blocks_and_addresses_that_wrap_shrink_nothing() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.handle.remove_partition(id).unwrap();
    let addresses = [BASE, BASE + 63 * BLOCK, u64::MAX, 0u64.wrapping_sub(BLOCK), 0, BASE - BLOCK];
    for addr in addresses {
        assert_eq!(rig.part(PART_SHRINK, id, 65535, 0, addr), ERROR, "{addr:#x}");
        assert_eq!(rig.part(PART_SHRINK, id, 0, 0, addr), ERROR, "{addr:#x}");
    }
    rig.assert_agreement();
}

/// What is wanted can be taken again, so this is the one loop of plugs that a guest has.
#[test]
fn a_storm_of_unplug_alls_leaves_what_is_wanted() {
    let mut rig = Rig::channel();
    let id = rig.add("fn-1", 4);
    for _ in 0..200 {
        assert_eq!(rig.part_plug(id).unwrap().runs, [(0, 4)]);
        assert_eq!((rig.part_plug(id), rig.unplug_all()), (Err(ERROR), ACK));
        assert_eq!((rig.release(id), rig.unplug_all()), (ERROR, ACK));
    }
    assert_eq!((rig.host().open_blocks(), rig.handle.partitions().len()), (0, 1));
    rig.assert_agreement();
}

#[test]
fn a_storm_of_resets_with_and_without_the_channel_loses_nothing() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 4);
    rig.notify(id, 1, BLOCK);
    for round in 0..200 {
        rig.reset();
        match round % 2 {
            0 => rig.activate(),
            _ => rig.activate_channel(),
        }
        assert_eq!(rig.handle.channel_is_up(), round % 2 == 1);
        assert_eq!(rig.state(0, 4), 0);
    }
    assert_eq!(rig.view(id).unwrap().state, PartitionState::Bound);
    rig.assert_agreement();
}

/// One round of a driver that does as docs/partition-channel.md says. Its answers.
fn look_for_work(rig: &mut Rig) -> Vec<u16> {
    let mut answers = Vec::new();
    let mut from = 0;
    while let Ok(seen) = rig.query(from, PENDING) {
        from = seen.id.0 + 1;
        answers.push(match seen.size.cmp(&seen.plugged) {
            Order::Greater => rig.part_plug(seen.id).map_or_else(|answer| answer, |_| ACK),
            _ if seen.size == 0 => rig.release(seen.id),
            _ => {
                let (first, count) = *seen.runs.last().unwrap();
                let less = count.min((seen.plugged - seen.size) / BLOCK);
                rig.shrink(seen.id, first + count - less, less as u16)
            }
        });
    }
    answers
}

#[test]
fn a_thousand_racing_wishes_never_make_an_error() {
    let mut rig = Rig::channel();
    let handle = rig.handle.clone();
    let machine = std::thread::spawn(move || {
        for round in 0..1000u64 {
            let policy = Policy { keep: round % 2 == 0, prefault: false };
            let name = format!("fn-{}", round % 5).parse().unwrap();
            // It may have no room, or be there already; the race is what counts.
            let _ = handle.add_partition(name, Cookie(round), size(round % 13 + 1), policy, None);
            for one in handle.partitions() {
                let wish = (round * 7 + u64::from(one.id.0)) % 4;
                let _ = match wish {
                    0 => handle.remove_partition(one.id).is_ok(),
                    1 => handle.resize_partition(one.id, size(round % 17 + 1), None).is_ok(),
                    2 => handle.ask_evacuation(one.id).is_ok(),
                    _ => continue,
                };
            }
        }
    });
    let mut rounds = 0;
    while !machine.is_finished() || rounds == 0 {
        for answer in look_for_work(&mut rig) {
            assert!(answer == ACK || answer == NACK, "{answer}");
        }
        rounds += 1;
    }
    machine.join().unwrap();
    while !look_for_work(&mut rig).is_empty() {}
    for one in rig.handle.partitions() {
        assert_eq!(one.plugged, one.requested);
    }
    assert_eq!(rig.counter("error"), 0);
    rig.assert_agreement();
}

proptest! {
    #[test]
    fn any_framing_of_a_record_is_understood(
        reads in prop::collection::vec(any::<u32>(), 0..10),
        writes in prop::collection::vec(prop_oneof![0..80u32, any::<u32>()], 0..52),
    ) {
        let (mut rig, id) = waiting();
        let mut chain = cut(REQUEST, 24, &reads, 0);
        chain.extend(cut(REPLY, RECORD_ROOM, &writes, WRITE));
        let len = rig.send_long(&chain);
        let seen = seen(&rig, len);
        prop_assert_eq!((len, seen.id, seen.runs), (72, id, vec![(0, 4)]));
        prop_assert_eq!(rig.u16_at(REPLY + 72), 0xeeee);
    }

    #[test]
    fn any_request_in_the_channel_leaves_host_and_books_in_agreement(
        requests in prop::collection::vec((0x100..0x106u16, any::<[u8; 24]>()), 1..40),
    ) {
        let mut rig = Rig::channel();
        let ids = [rig.taken("fn-1", 8), rig.add("fn-2", 8)];
        rig.handle.remove_partition(ids[0]).unwrap();
        for (kind, mut request) in requests {
            request[..2].copy_from_slice(&kind.to_le_bytes());
            // Mostly one of the partitions, in one of its blocks.
            request[9..12].fill(0);
            request[8] %= 4;
            if request[16] % 4 > 0 {
                let addr = BASE + u64::from(request[17] % 18) * BLOCK;
                request[16..].copy_from_slice(&addr.to_le_bytes());
                request[13] = 0;
                request[12] %= 8;
            }
            rig.write(REQUEST, &request);
            rig.send(&[readable(REQUEST, 24), writable(REPLY, RECORD_ROOM)]);
        }
        rig.assert_agreement();
    }
}
