//! The MUSTs of virtio 1.3, 5.15, what Linux needs on top, and faults that others have shipped.

use vm_memory::Bytes as _;

use super::*;

#[test]
fn it_is_device_24_with_one_queue() {
    let rig = Rig::wanting(0);
    assert_eq!(rig.device.device_id(), 24);
    assert_eq!(rig.device.queue_sizes(), [64]);
    let worker = rig.worker.as_ref().unwrap();
    assert_eq!((worker.name().as_str(), worker.queues().len()), ("virtio-mem", 1));
}

#[test]
fn unplugged_inaccessible_is_offered_and_required() {
    let mut rig = Rig::wanting(0);
    assert_eq!(rig.device.features(), F_UNPLUGGED_INACCESSIBLE);
    let refused = rig.try_activate(0).map(|workers| workers.len()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
}

#[test]
fn a_numa_node_is_shown_with_its_feature() {
    let rig = Rig::new(layout(64), Some(3));
    let channel = F_PARTITION | F_PART_ZEROED;
    assert_eq!(rig.device.features(), F_UNPLUGGED_INACCESSIBLE | F_ACPI_PXM | channel);
    assert_eq!(rig.config(8), 3);
}

#[test]
fn a_driver_that_leaves_the_queue_disabled_gets_no_worker() {
    let mut rig = Rig::wanting(0);
    let (memory, interrupt) = (Arc::clone(rig.memory), Arc::clone(&rig.interrupts) as _);
    let features = F_UNPLUGGED_INACCESSIBLE;
    let activation = Activation { features, memory, queues: vec![None], interrupt };
    assert!(rig.device.activate(activation).unwrap().is_empty());
}

#[test]
fn all_sizes_are_multiples_of_a_power_of_two_block_size() {
    let mut rig = Rig::wanting(7);
    rig.plug(0, 5);
    assert_eq!(rig.config(0), BLOCK);
    assert!(rig.config(0).is_power_of_two());
    for offset in [16, 24, USABLE, PLUGGED, REQUESTED] {
        rig.config_blocks(offset);
    }
    assert_eq!(rig.config(56), 0, "the space ends after 56 bytes");
}

#[test]
fn block_size_node_address_and_region_size_never_change() {
    let mut rig = Rig::new(layout(16), Some(1));
    let fixed = |rig: &Rig| [0, 8, 16, 24].map(|offset| rig.config(offset));
    let before = fixed(&rig);
    assert_eq!(before, [BLOCK, 1, BASE, BLOCKS * BLOCK]);
    rig.handle.resize_shared(size(16), None).unwrap();
    add(&rig, "fn-1", 8);
    rig.plug(0, 16);
    rig.unplug_all();
    rig.reset();
    rig.activate();
    assert_eq!(fixed(&rig), before);
}

#[test]
fn the_usable_size_is_never_below_the_requested_size() {
    let rig = Rig::new(layout(16), None);
    let both = |rig: &Rig| (rig.config_blocks(USABLE), rig.config_blocks(REQUESTED));
    assert_eq!(both(&rig), (16, 0));
    rig.handle.resize_shared(size(16), None).unwrap();
    assert_eq!(both(&rig), (16, 16));
    let id = add(&rig, "fn-1", 8);
    assert_eq!(both(&rig), (24, 24));
    rig.handle.resize_partition(id, size(48), None).unwrap();
    assert_eq!(both(&rig), (64, 64));
    rig.handle.remove_partition(id).unwrap();
    rig.handle.resize_shared(size(0), None).unwrap();
    assert_eq!(both(&rig), (64, 0));
}

#[test]
fn a_usable_size_of_zero_comes_only_with_a_requested_size_of_zero() {
    let mut rig = Rig::new(layout(0), None);
    assert_eq!((rig.config(USABLE), rig.config(REQUESTED)), (0, 0));
    assert_eq!(rig.plug(0, 1), ERROR);
    add(&rig, "fn-1", 1);
    rig.unplug_all();
    assert_eq!((rig.config_blocks(USABLE), rig.config_blocks(REQUESTED)), (1, 1));
    assert_eq!(rig.plug(0, 1), ACK);
}

#[test]
fn only_unplug_all_shrinks_the_usable_size() {
    let mut rig = Rig::new(layout(16), None);
    let id = add(&rig, "fn-1", 8);
    rig.plug(16, 8);
    rig.handle.remove_partition(id).unwrap();
    assert_eq!(rig.unplug(16, 8), ACK);
    assert_eq!(rig.config_blocks(USABLE), 24);
    assert_eq!(rig.unplug_all(), ACK);
    assert_eq!(rig.config_blocks(USABLE), 16);
}

#[test]
fn a_change_of_the_requested_size_interrupts_and_no_change_does_not() {
    let rig = Rig::wanting(4);
    assert_eq!(rig.config_interrupts(), 1);
    rig.handle.resize_shared(size(4), None).unwrap();
    assert_eq!(rig.config_interrupts(), 1);
    rig.handle.resize_shared(size(2), None).unwrap();
    assert_eq!(rig.config_interrupts(), 2);
    rig.handle.resize_shared(size(65), None).unwrap_err();
    assert_eq!(rig.config_interrupts(), 2);
}

#[test]
fn a_change_of_the_usable_size_alone_interrupts() {
    let rig = Rig::new(layout(16), None);
    rig.handle.resize_shared(size(8), None).unwrap();
    let before = rig.config_interrupts();
    // In one step, the sum of what is requested stays the same.
    let same = rig.handle.shared().wish(|partitioner, watch| {
        partitioner.resize_shared(Blocks::new(0), None)?;
        let name = "fn-1".parse().unwrap();
        partitioner.add(name, Cookie(0), Blocks::new(8), Policy::default(), None, watch)
    });
    same.unwrap();
    assert_eq!((rig.config_blocks(REQUESTED), rig.config_blocks(USABLE)), (8, 24));
    assert_eq!(rig.config_interrupts(), before + 1);
}

#[test]
fn the_plugged_size_changes_without_an_interrupt() {
    let mut rig = Rig::wanting(8);
    let before = rig.config_interrupts();
    assert_eq!((rig.plug(0, 8), rig.unplug(0, 2)), (ACK, ACK));
    assert_eq!(rig.config_blocks(PLUGGED), 6);
    assert_eq!(rig.config_interrupts(), before);
}

#[test]
fn unplug_all_shrinks_the_usable_size_without_an_interrupt() {
    let mut rig = Rig::new(layout(16), None);
    let id = add(&rig, "fn-1", 8);
    rig.plug(16, 1);
    rig.handle.remove_partition(id).unwrap();
    let before = rig.config_interrupts();
    assert_eq!(rig.unplug_all(), ACK);
    assert_eq!(rig.config_blocks(USABLE), 16);
    assert_eq!(rig.config_interrupts(), before);
}

#[test]
fn a_device_reset_changes_neither_blocks_nor_memory() {
    let mut rig = Rig::wanting(8);
    rig.plug(2, 4);
    rig.write(BASE + 3 * BLOCK, b"kept");
    let calls = rig.host().calls.len();
    rig.reset();
    rig.activate();
    assert_eq!(rig.host().calls.len(), calls);
    assert_eq!((rig.state(2, 4), rig.config_blocks(PLUGGED)), (0, 4));
    let kept: [u8; 4] = rig.memory.read_obj(GuestAddress(BASE + 3 * BLOCK)).unwrap();
    assert_eq!(&kept, b"kept");
}

#[test]
fn no_interrupt_between_a_reset_and_the_next_driver() {
    let mut rig = Rig::wanting(8);
    rig.reset();
    let before = rig.config_interrupts();
    rig.handle.resize_shared(size(4), None).unwrap();
    assert_eq!(rig.config_interrupts(), before);
    rig.activate();
    assert_eq!(rig.config_blocks(REQUESTED), 4);
    rig.handle.resize_shared(size(5), None).unwrap();
    assert_eq!(rig.config_interrupts(), before + 1);
}

#[test]
fn a_new_machine_has_nothing_plugged() {
    let mut rig = Rig::wanting(8);
    assert_eq!((rig.config(PLUGGED), rig.state(0, 64)), (0, 1));
    assert!(rig.host().calls.is_empty());
}

#[test]
fn plug_unplug_and_state_of_what_is_no_range_are_errors() {
    let mut rig = Rig::wanting(64);
    rig.plug(0, 32);
    let cases = [
        ("misaligned", BASE + 4096, 1),
        ("misaligned by one", BASE + 1, 1),
        ("no blocks", BASE, 0),
        ("past the end", BASE + 63 * BLOCK, 2),
        ("at the end", BASE + 64 * BLOCK, 1),
        ("below", BASE - BLOCK, 2),
        ("address zero", 0, 1),
        ("most blocks", BASE, 65535),
        ("most blocks at the end", BASE + 63 * BLOCK, 65535),
        ("wraps", u64::MAX - BLOCK + 1, 2),
        ("wraps into the region", 0u64.wrapping_sub(BLOCK), 65535),
        ("last address", u64::MAX, 1),
        ("2^44 MiB", 1 << 44, 1),
    ];
    for (case, addr, count) in cases {
        for kind in [PLUG, UNPLUG, STATE] {
            assert_eq!(rig.ask(kind, addr, count), ERROR, "{case}, {kind}");
        }
    }
    assert_eq!(rig.counter("refused"), 3 * cases.len() as u64);
    rig.assert_agreement();
}

#[test]
fn plug_unplug_and_state_beyond_the_usable_size_are_errors() {
    let mut rig = Rig::new(layout(16), None);
    rig.handle.resize_shared(size(16), None).unwrap();
    for kind in [PLUG, UNPLUG, STATE] {
        assert_eq!(rig.ask(kind, BASE + 15 * BLOCK, 2), ERROR);
    }
    assert_eq!(rig.plug(15, 1), ACK);
}

#[test]
fn the_last_block_of_the_region_can_be_plugged() {
    let mut rig = Rig::wanting(64);
    assert_eq!((rig.plug(63, 1), rig.state(63, 1), rig.unplug(63, 1)), (ACK, 0, ACK));
    assert_eq!((rig.plug(0, 64), rig.unplug(0, 64)), (ACK, ACK));
}

#[test]
fn plugging_a_plugged_block_is_an_error() {
    let mut rig = Rig::wanting(64);
    assert_eq!(rig.plug(8, 8), ACK);
    assert_eq!((rig.plug(8, 8), rig.plug(7, 2), rig.plug(15, 2)), (ERROR, ERROR, ERROR));
    rig.assert_agreement();
}

#[test]
fn unplugging_an_unplugged_block_is_an_error() {
    let mut rig = Rig::wanting(64);
    assert_eq!(rig.unplug(0, 1), ERROR);
    rig.plug(8, 8);
    assert_eq!((rig.unplug(7, 2), rig.unplug(15, 2)), (ERROR, ERROR));
    rig.assert_agreement();
}

#[test]
fn padding_is_ignored() {
    let mut rig = Rig::wanting(8);
    let mut bytes = request(PLUG, BASE, 8);
    for padding in [0x00, 0xff] {
        bytes[2..8].fill(padding);
        bytes[18..].fill(padding);
        assert_eq!(rig.ask_raw(&bytes).0, ACK);
        assert_eq!(rig.unplug_all(), ACK);
    }
}

#[test]
fn plug_beyond_requested_size_is_nacked() {
    let mut rig = Rig::wanting(8);
    assert_eq!((rig.plug(0, 9), rig.plug(0, 6), rig.plug(6, 3)), (NACK, ACK, NACK));
    assert_eq!(rig.plug(6, 2), ACK);
    assert_eq!((rig.counter("nack"), rig.counter("refused")), (2, 0));
}

#[test]
fn a_shrink_that_crosses_a_plug_is_a_nack_and_never_an_error() {
    let mut rig = Rig::wanting(8);
    rig.plug(0, 8);
    rig.handle.resize_shared(size(4), None).unwrap();
    assert_eq!((rig.plug(8, 1), rig.plug(7, 2)), (NACK, NACK));
}

/// A driver that does as it is told, while the host changes its mind.
#[test]
fn a_thousand_racing_resizes_never_make_an_error() {
    let mut rig = Rig::wanting(0);
    let handle = rig.handle.clone();
    let machine = std::thread::spawn(move || {
        for round in 0..1000u64 {
            handle.resize_shared(size(round * 37 % 65), None).unwrap();
        }
    });
    while !machine.is_finished() {
        let (wanted, plugged) = (rig.config_blocks(REQUESTED), rig.config_blocks(PLUGGED));
        let answer = match wanted.cmp(&plugged) {
            std::cmp::Ordering::Greater => rig.plug(plugged, (wanted - plugged) as u16),
            std::cmp::Ordering::Less => rig.unplug(wanted, (plugged - wanted) as u16),
            std::cmp::Ordering::Equal => ACK,
        };
        assert!(answer == ACK || answer == NACK, "{answer}");
    }
    machine.join().unwrap();
    rig.assert_agreement();
}

#[test]
fn the_plugged_size_is_right_when_the_answer_is_there() {
    let mut rig = Rig::wanting(8);
    for (first, count, sum) in [(0, 3, 3), (5, 1, 4), (3, 2, 6)] {
        assert_eq!(rig.plug(first, count), ACK);
        assert_eq!(rig.config_blocks(PLUGGED), sum);
    }
    assert_eq!(rig.unplug(1, 4), ACK);
    assert_eq!(rig.config_blocks(PLUGGED), 2);
}

#[test]
fn after_unplug_all_nothing_is_plugged() {
    let mut rig = Rig::wanting(64);
    for first in [0, 4, 60] {
        rig.plug(first, 2);
    }
    assert_eq!(rig.unplug_all(), ACK);
    assert_eq!((rig.config(PLUGGED), rig.host().open_blocks()), (0, 0));
    assert_eq!(rig.unplug_all(), ACK, "of nothing, too");
    assert_eq!(rig.counter("unplug_all"), 2);
}

#[test]
fn state_says_plugged_unplugged_or_mixed() {
    let mut rig = Rig::wanting(64);
    rig.plug(8, 8);
    assert_eq!((rig.state(8, 8), rig.state(0, 8), rig.state(7, 2)), (0, 1, 2));
    assert_eq!(rig.counter("state"), 3);
}

#[test]
fn plugged_memory_is_not_touched() {
    let mut rig = Rig::wanting(64);
    rig.plug(0, 4);
    rig.write(BASE + BLOCK, b"mine");
    rig.plug(4, 4);
    rig.unplug(0, 1);
    rig.plug(0, 65535);
    rig.state(0, 64);
    rig.handle.resize_shared(size(1), None).unwrap();
    let mine: [u8; 4] = rig.memory.read_obj(GuestAddress(BASE + BLOCK)).unwrap();
    assert_eq!(&mine, b"mine");
}

/// Between what the host did and what is booked the guest must not be told anything.
#[test]
fn the_host_acts_before_the_books_and_the_books_before_the_answer() {
    let mut rig = Rig::wanting(8);
    let (config, memory) = (rig.device.config(), Arc::clone(rig.memory));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    rig.host().hook = Box::new(move || {
        let mut plugged = [0; 8];
        config.read(PLUGGED, &mut plugged);
        let answered: u16 = memory.read_obj(GuestAddress(u64::from(USED) + 2)).unwrap();
        log.lock().unwrap().push((u64::from_le_bytes(plugged) / BLOCK, answered));
    });
    rig.plug(0, 8);
    rig.unplug(0, 4);
    assert_eq!(*seen.lock().unwrap(), [(0, 0), (8, 1)]);
    rig.assert_agreement();
}

#[test]
fn one_host_call_per_run_however_many_blocks() {
    let mut rig = Rig::wanting(64);
    rig.plug(0, 64);
    rig.unplug(16, 32);
    rig.unplug_all();
    let calls = [(true, 0, 64), (false, 16, 32), (false, 0, 16), (false, 48, 16)];
    assert_eq!(rig.host().calls, calls);
}

/// Grow to the most, shrink to a few blocks that lie apart: nothing else stays within reach.
#[test]
fn a_hoarder_holds_no_byte_over_its_allotment() {
    let mut rig = Rig::wanting(64);
    rig.plug(0, 64);
    rig.handle.resize_shared(size(8), None).unwrap();
    for first in (0..64).step_by(8) {
        assert_eq!(rig.unplug(first + 1, 7), ACK);
    }
    assert_eq!(rig.host().open_blocks(), 8);
    for block in 0..64 {
        let touched = rig.memory.write_slice(&[1], GuestAddress(BASE + block * BLOCK));
        assert_eq!(touched.is_ok(), block % 8 == 0, "block {block}");
    }
    rig.assert_agreement();
}

#[test]
fn requests_answers_bytes_and_time_are_counted() {
    let mut rig = Rig::wanting(8);
    rig.host().hook = Box::new(|| std::thread::sleep(std::time::Duration::from_millis(2)));
    rig.plug(0, 8);
    rig.plug(0, 1);
    rig.unplug(0, 2);
    rig.unplug_all();
    rig.state(0, 1);
    for (name, count) in [
        ("plug", 2),
        ("unplug", 1),
        ("unplug_all", 1),
        ("state", 1),
        ("malformed", 0),
        ("ack", 4),
        ("nack", 1),
        ("busy", 0),
        ("error", 0),
        ("unanswered", 0),
        ("plugged_bytes", 8 * BLOCK),
        ("unplugged_bytes", 8 * BLOCK),
        ("host_failures", 0),
    ] {
        assert_eq!(rig.counter(name), count, "{name}");
    }
    let [last, total, max] =
        ["release_us_last", "release_us_total", "release_us_max"].map(|name| rig.counter(name));
    assert!(2000 <= last && last <= max && max + 2000 <= total, "{last} {max} {total}");
    assert_eq!(rig.counter("open_us_last"), rig.counter("open_us_total"));
}

fn add(rig: &Rig, name: &str, blocks: u64) -> memctl::PartitionId {
    let (name, cookie) = (name.parse().unwrap(), memctl::Cookie(0));
    rig.handle.add_partition(name, cookie, size(blocks), Policy::default(), None).unwrap().id
}
