//! Single requests, well-formed and not.

use proptest::prelude::*;
use vm_memory::GuestMemoryError;

use super::*;

fn disk_bytes(from: u64, len: usize) -> Vec<u8> {
    Mock::new().state().disk[from as usize..][..len].to_vec()
}

#[test]
fn reads_bring_the_disk_to_memory() {
    let mut rig = Rig::new();
    rig.header(T_IN, 3);
    assert_eq!(rig.ask(&chain(0, 1024)), (OK, 1025));
    assert_eq!(rig.bytes(DATA, 1024), disk_bytes(3 * 512, 1024));
    assert_eq!((rig.counter("read_bytes"), rig.counter("read_ops")), (1024, 1));
}

#[test]
fn writes_bring_memory_to_the_disk() {
    let mut rig = Rig::new();
    rig.header(T_OUT, DISK_SECTORS - 1);
    rig.write(DATA, &[7; 512]);
    assert_eq!(rig.ask(&chain(512, 0)), (OK, 1));
    assert_eq!(rig.mock.state().disk[63 * 512..], [7; 512]);
    assert_eq!((rig.counter("write_bytes"), rig.counter("write_ops")), (512, 1));
}

#[test]
fn descriptors_may_cut_a_request_anywhere() {
    let one_by_one = |from: u64| (0..16).map(move |at| readable(from + at, 1));
    let reads: [Vec<Descriptor>; 4] = [
        vec![readable(HEADER, 5), readable(HEADER + 5, 11), writable(DATA, 513)],
        vec![readable(HEADER, 16), writable(DATA, 1), writable(DATA + 1, 512)],
        vec![
            readable(HEADER, 16),
            writable(DATA, 0),
            writable(DATA, 500),
            writable(DATA + 500, 13),
        ],
        vec![readable(HEADER, 17), readable(DATA, 9), writable(DATA, 513)],
    ];
    for chain in reads {
        let mut rig = Rig::new();
        rig.header(T_IN, 9);
        rig.ask(&chain);
        assert_eq!(rig.answers(), [(0, 513)], "{chain:?}");
        assert_eq!(rig.bytes(DATA, 512), disk_bytes(9 * 512, 512), "{chain:?}");
        assert_eq!(rig.bytes(DATA + 512, 1), [OK], "{chain:?}");
    }
    let mut rig = Rig::new();
    rig.header(T_OUT, 0);
    rig.write(HEADER + 16, &[5; 512]);
    assert_eq!(rig.ask(&[readable(HEADER, 528), writable(STATUS, 1)]), (OK, 1));
    assert_eq!(rig.mock.state().disk[..512], [5; 512]);
    let mut rig = Rig::new();
    rig.header(T_FLUSH, 0);
    let mut chain: Vec<_> = one_by_one(HEADER).collect();
    *chain.last_mut().unwrap() = writable(STATUS, 1);
    assert_eq!(rig.ask(&chain), (IOERR, 1), "15 bytes are no header");
}

#[test]
fn the_serial_number_is_padded_with_zeros() {
    let mut rig = Rig::new();
    rig.header(T_GET_ID, 0);
    rig.write(DATA, &[0xff; 32]);
    assert_eq!(rig.ask(&chain(0, 20)), (OK, 21));
    let mut id = [0; 20];
    id[..2].copy_from_slice(b"T1");
    assert_eq!(rig.bytes(DATA, 20), id);
    assert_eq!(rig.ask(&chain(0, 32)), (OK, 20));
    assert_eq!(rig.ask(&chain(0, 19)), (IOERR, 0));
    assert_eq!(rig.ask(&chain(0, 0)), (IOERR, 1));
}

#[test]
fn flushes_reach_the_disk() {
    let mut rig = Rig::new();
    rig.header(T_FLUSH, 0);
    assert_eq!(rig.ask(&chain(0, 0)), (OK, 1));
    assert_eq!(rig.log(), [Operation::Flush]);
    assert_eq!(rig.counter("flushes"), 1);
}

#[test]
fn without_flushes_a_write_ends_when_it_is_stable() {
    let mut rig = Rig::with(Mock::new(), F_WRITE_ZEROES);
    rig.header(T_OUT, 0);
    assert_eq!(rig.ask(&chain(512, 0)), (OK, 1));
    rig.header(T_WRITE_ZEROES, 0);
    rig.write(DATA, &segment(0, 2, 0));
    assert_eq!(rig.ask(&chain(16, 0)), (OK, 1));
    rig.header(T_IN, 0);
    assert_eq!(rig.ask(&chain(0, 512)), (OK, 513));
    let flushes = rig.log().iter().map(|op| *op == Operation::Flush).collect::<Vec<_>>();
    assert_eq!(flushes, [false, true, false, true, false]);
    assert_eq!(rig.counter("flushes"), 0, "the guest asked for none");
}

#[test]
fn a_failed_write_is_not_flushed() {
    let mut rig = Rig::with(Mock::new(), 0);
    rig.mock.state().fail = true;
    rig.header(T_OUT, 0);
    assert_eq!(rig.ask(&chain(512, 0)), (IOERR, 1));
    assert_eq!(rig.log().len(), 1);
}

#[test]
fn nothing_to_do_is_done_at_once() {
    let mut rig = Rig::new();
    for kind in [T_IN, T_OUT, T_DISCARD, T_WRITE_ZEROES] {
        rig.header(kind, DISK_SECTORS);
        rig.write(DATA, &segment(DISK_SECTORS, 0, 0));
        let payload = if kind >= T_DISCARD { 16 } else { 0 };
        assert_eq!(rig.ask(&chain(payload, 0)), (OK, 1), "{kind}");
    }
    assert_eq!(rig.log(), []);
}

#[test]
fn discards_and_zeroes_are_checked() {
    let (in_range, end) = (segment(2, 4, 0), DISK_SECTORS);
    let cases = [
        (T_DISCARD, ALL, in_range, OK),
        (T_DISCARD, 0, in_range, UNSUPP),
        (T_DISCARD, ALL, segment(2, 4, 1), UNSUPP),
        (T_DISCARD, ALL, segment(1, 4, 0), IOERR),
        (T_DISCARD, ALL, segment(2, 3, 0), IOERR),
        (T_DISCARD, ALL, segment(end, 2, 0), IOERR),
        (T_DISCARD, ALL, segment(u64::MAX, u32::MAX, 0), IOERR),
        (T_WRITE_ZEROES, ALL, in_range, OK),
        (T_WRITE_ZEROES, ALL, segment(2, 4, 1), OK),
        (T_WRITE_ZEROES, ALL, segment(2, 4, 2), UNSUPP),
        (T_WRITE_ZEROES, 0, in_range, UNSUPP),
        (T_WRITE_ZEROES, ALL, segment(end - 2, 4, 0), IOERR),
    ];
    for (kind, features, payload, status) in cases {
        let mut rig = Rig::with(Mock::new(), features | F_FLUSH);
        rig.header(kind, 0);
        rig.write(DATA, &payload);
        assert_eq!(rig.ask(&chain(16, 0)), (status, 1), "{kind} {payload:?}");
        assert_eq!(rig.log().len(), usize::from(status == OK), "{kind} {payload:?}");
    }
}

#[test]
fn one_discard_segment_at_a_time_and_none_too_long() {
    let mut mock = Mock::new();
    mock.geometry.capacity = Sectors(1 << 32);
    let mut rig = Rig::with(mock, ALL);
    for (sectors, len, status) in [
        (crate::virtio::block::MAX_DISCARD_SECTORS, 16, OK),
        (crate::virtio::block::MAX_DISCARD_SECTORS + 2, 16, IOERR),
        (2, 0, IOERR),
        (2, 15, IOERR),
        (2, 17, IOERR),
        (2, 32, IOERR),
    ] {
        rig.header(T_DISCARD, 0);
        rig.write(DATA, &segment(0, sectors, 0));
        assert_eq!(rig.ask(&chain(len, 0)), (status, 1), "{sectors} sectors, {len} bytes");
        rig = Rig::with(rig.mock, ALL);
    }
}

#[test]
fn unmap_is_passed_on() {
    for may_unmap in [false, true] {
        let mut rig = Rig::new();
        rig.header(T_WRITE_ZEROES, 0);
        rig.write(DATA, &segment(2, 2, u32::from(may_unmap)));
        rig.ask(&chain(16, 0));
        let log = rig.log();
        let Operation::WriteZeroes { range, may_unmap: passed } = log[0] else { panic!("{log:?}") };
        assert_eq!((range.start(), range.len(), passed), (1024, 1024, may_unmap));
    }
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let mut mock = Mock::new();
    mock.geometry.readonly = true;
    let mut rig = Rig::with(mock, ALL);
    rig.write(DATA, &segment(0, 2, 0));
    for (kind, len) in [(T_OUT, 512), (T_DISCARD, 16), (T_WRITE_ZEROES, 16)] {
        rig.header(kind, 0);
        assert_eq!(rig.ask(&chain(len, 0)), (IOERR, 1), "{kind}");
    }
    assert_eq!(rig.log(), []);
    rig.header(T_IN, 0);
    assert_eq!(rig.ask(&chain(0, 512)), (OK, 513));
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut rig = Rig::new();
    for kind in [2, 3, 14, 24, 0x8000_0000, u32::MAX] {
        rig.header(kind, 0);
        assert_eq!(rig.ask(&chain(0, 0)), (UNSUPP, 1), "{kind}");
    }
    assert_eq!(rig.counter("errors"), 6);
}

#[test]
fn transfers_off_the_disk_or_off_sectors_fail() {
    for (sector, len) in [
        (DISK_SECTORS, 512),
        (DISK_SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 511),
        (0, 513),
    ] {
        let mut rig = Rig::new();
        rig.header(T_IN, sector);
        assert_eq!(rig.ask(&chain(0, len)), (IOERR, 0), "{sector} {len}");
        rig.header(T_OUT, sector);
        assert_eq!(rig.ask(&chain(len, 0)), (IOERR, 1), "{sector} {len}");
        assert_eq!(rig.log(), []);
    }
}

#[test]
fn a_bypassed_page_cache_wants_whole_blocks() {
    let mut mock = Mock::new();
    mock.geometry.transfer_alignment = 4096;
    let mut rig = Rig::with(mock, ALL);
    for (sector, len, status) in [(8, 4096, OK), (7, 4096, IOERR), (8, 512, IOERR)] {
        rig.header(T_OUT, sector);
        assert_eq!(rig.ask(&chain(len, 0)), (status, 1), "{sector} {len}");
    }
}

#[test]
fn malformed_chains_are_answered_and_do_nothing() {
    const OUTSIDE: u64 = 1 << 40;
    const NEXT: u16 = 1;
    let status = writable(STATUS, 1);
    let head = readable(HEADER, 16);
    let cases: [(&str, Vec<Descriptor>, (u8, u32)); 11] = [
        ("no header", vec![status], (IOERR, 1)),
        ("half a header", vec![readable(HEADER, 15), status], (IOERR, 1)),
        ("no status", vec![head, readable(DATA, 512)], (UNTOUCHED, 0)),
        ("nothing but a header", vec![head], (UNTOUCHED, 0)),
        ("empty status", vec![head, readable(DATA, 512), writable(STATUS, 0)], (UNTOUCHED, 0)),
        ("header outside RAM", vec![readable(OUTSIDE, 16), status], (IOERR, 1)),
        ("data outside RAM", vec![head, readable(OUTSIDE, 512), status], (IOERR, 1)),
        (
            "status outside RAM",
            vec![head, readable(DATA, 512), writable(OUTSIDE, 1)],
            (UNTOUCHED, 0),
        ),
        (
            "read after write",
            vec![head, writable(DATA, 8), readable(DATA, 512), status],
            (IOERR, 0),
        ),
        ("past the end of addresses", vec![head, readable(u64::MAX, 512), status], (UNTOUCHED, 0)),
        ("an empty buffer", vec![readable(0, 0)], (UNTOUCHED, 0)),
    ];
    for (name, chain, expected) in cases {
        let mut rig = Rig::new();
        rig.header(T_OUT, 0);
        let before = rig.mock.state().disk.clone();
        assert_eq!(rig.ask(&chain), expected, "{name}");
        let wrote = matches!(name, "status outside RAM");
        assert!(wrote || rig.mock.state().disk == before, "{name}");
        assert_eq!(rig.counter("errors"), u64::from(!wrote), "{name}");
    }
    // A chain that points at a descriptor which does not exist, and one that is a circle.
    for link in [99, 0] {
        let mut rig = Rig::new();
        rig.header(T_OUT, 0);
        let broken = Descriptor::new(HEADER, 16, NEXT, link);
        rig.ring.add_desc_chains(&[broken.into()], 0).unwrap();
        rig.worker.queue_ready(0);
        assert_eq!(rig.answers(), [(0, 0)], "{link}");
    }
}

#[test]
fn unplugged_data_is_an_error_of_that_request_alone() {
    let mut rig = Rig::new();
    rig.header(T_IN, 0);
    let chain = [readable(HEADER, 16), writable((1 << 20) - 256, 512), writable(STATUS, 1)];
    assert_eq!(rig.ask(&chain), (IOERR, 0));
    assert_eq!(rig.ask(&super::chain(0, 512)), (OK, 513));
    let mut past_ram = Buffers::default();
    past_ram.push(GuestAddress(1 << 20), 1).unwrap();
    let first = past_ram.slices(rig.memory).next().unwrap();
    assert!(matches!(first, Err(GuestMemoryError::InvalidGuestAddress(_))));
}

proptest! {
    #[test]
    fn any_chain_is_answered_once(
        chains in proptest::collection::vec(
            proptest::collection::vec((0u64..6, 0u64..32, 0u32..1100, 0u16..4, 0u16..20), 1..5),
            1..4,
        ),
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..70, any::<u64>()],
        features in any::<u64>(),
    ) {
        let mut rig = Rig::with(Mock::new(), features);
        rig.header(kind, sector);
        rig.write(DATA, &segment(sector, kind, sector as u32));
        let places = [HEADER, DATA, STATUS, (1 << 20) - 64, 1 << 40, u64::MAX - 16];
        let mut heads = Vec::new();
        for buffers in &chains {
            let chain: Vec<_> = buffers
                .iter()
                .map(|&(place, shift, len, flags, next)| {
                    Descriptor::new(places[place as usize].saturating_add(shift), len, flags, next)
                })
                .collect();
            heads.push(rig.offer(&chain));
            // Linked as a driver would, except for the end, which goes anywhere.
            let last = chain[chain.len() - 1];
            rig.ring.desc_table().store(rig.next - 1, last.into()).unwrap();
        }
        rig.worker.queue_ready(0);
        let mut answered: Vec<_> = rig.answers().iter().map(|&(head, _)| head).collect();
        answered.sort_unstable();
        prop_assert_eq!(answered, heads);
    }
}
