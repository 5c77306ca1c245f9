//! The device from the machine's side.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use memctl::{HostError, PartitionId, PartitionState, Partitioner, Resize};

use super::super::{BlockView, MemError, PartitionView};
use super::*;

fn add(rig: &Rig, name: &str, blocks: u64) -> Result<PartitionView, MemError> {
    rig.handle.add_partition(
        name.parse().unwrap(),
        Cookie(7),
        size(blocks),
        Policy::default(),
        None,
    )
}

/// The events so far, all of which are on shared memory, as wanted and plugged blocks.
fn shared(rig: &Rig) -> Vec<(u64, u64)> {
    let blocks = |size: Size| size.as_u64() / BLOCK;
    let sizes = |event| match event {
        MemEvent::SharedPlugged { requested, plugged, .. } => (blocks(requested), blocks(plugged)),
        other @ MemEvent::PartitionChanged { .. } => panic!("{other:?}"),
    };
    rig.events().into_iter().map(sizes).collect()
}

/// State changes so far, as names and states.
fn changes(rig: &Rig) -> Vec<(String, PartitionState, PartitionState)> {
    let change = |event| match event {
        MemEvent::PartitionChanged { partition, from } => {
            Some((partition.name.to_string(), from, partition.state))
        }
        MemEvent::SharedPlugged { .. } => None,
    };
    rig.events().into_iter().filter_map(change).collect()
}

#[test]
fn sizes_are_those_of_the_configuration_space() {
    let mut rig = Rig::new(layout(16), None);
    rig.handle.resize_shared(size(8), None).unwrap();
    add(&rig, "fn-1", 4).unwrap();
    rig.plug(0, 2);
    rig.plug(16, 3);
    assert_eq!(rig.handle.plugged(), size(5));
    let fields = [REQUESTED, PLUGGED, USABLE, 24, 0].map(|offset| Size::new(rig.config(offset)));
    assert_eq!(fields, [12, 5, 20, 64, 1].map(size));
}

#[test]
fn a_resize_to_the_same_size_says_so() {
    let rig = Rig::wanting(8);
    assert_eq!(rig.handle.resize_shared(size(8), None), Ok(Resize::Unchanged));
    assert_eq!(rig.handle.resize_shared(size(9), None), Ok(Resize::Changed));
}

#[test]
fn a_size_that_is_not_whole_blocks_is_refused_with_the_block_size() {
    let rig = Rig::new(layout(16), None);
    let odd = Size::new(BLOCK + 1);
    let refused = MemError::NotWholeBlocks { size: odd, block: size(1) };
    assert_eq!(rig.handle.resize_shared(odd, None), Err(refused.clone()));
    let name = "fn-1".parse().unwrap();
    let added = rig.handle.add_partition(name, Cookie(0), odd, Policy::default(), None);
    assert_eq!(added, Err(refused.clone()));
    assert_eq!(rig.handle.resize_partition(PartitionId(1), odd, None), Err(refused.clone()));
    assert_eq!(refused.to_string(), "2097153 bytes is not a whole number of blocks of 2 MiB");
}

#[test]
fn the_partitioners_refusals_pass_through() {
    let rig = Rig::new(layout(16), None);
    let refused = |error: HostError| MemError::Refused(error);
    let over = refused(HostError::OverSharedArea(size(16)));
    assert_eq!(rig.handle.resize_shared(size(17), None), Err(over));
    let full = rig.handle.resize_shared(size(8), Some(size(7))).unwrap_err();
    let host_full = HostError::HostFull { wanted: size(8), free: size(7) };
    assert_eq!((full.to_string(), full), (host_full.to_string(), refused(host_full)));
    add(&rig, "fn-1", 4).unwrap();
    assert!(matches!(add(&rig, "fn-1", 4), Err(MemError::Refused(HostError::NameTaken(_)))));
    let unknown = PartitionId(9);
    assert_eq!(rig.handle.remove_partition(unknown), Err(refused(HostError::Unknown(unknown))));
    assert_eq!(rig.handle.look(Partitioner::requested_size), size(4));
}

#[test]
fn shared_memory_that_moves_is_told_with_the_sizes_of_the_moment() {
    let mut rig = Rig::wanting(8);
    assert_eq!(rig.events(), [], "nothing was plugged yet");
    rig.plug(0, 6);
    rig.plug(6, 2);
    rig.unplug(0, 1);
    assert_eq!(shared(&rig), [(8, 6), (8, 8), (8, 7)]);
    rig.plug(0, 65535);
    rig.state(0, 1);
    assert_eq!(rig.events(), []);
}

#[test]
fn a_wish_for_what_the_guest_has_already_is_reached_at_once() {
    let mut rig = Rig::wanting(8);
    rig.plug(0, 4);
    rig.events();
    rig.handle.resize_shared(size(4), None).unwrap();
    assert_eq!(shared(&rig), [(4, 4)]);
}

#[test]
fn requests_served_together_make_one_event_on_shared_memory() {
    let mut rig = Rig::wanting(8);
    serve_together(&mut rig, PLUG, 3);
    assert_eq!((rig.answered(), shared(&rig)), (3, vec![(8, 3)]));
    assert_eq!(rig.interrupts.used.load(Ordering::Relaxed), 1);
}

#[test]
fn shared_memory_that_comes_back_is_told_with_the_time_that_freeing_took() {
    let mut rig = Rig::wanting(8);
    rig.plug(0, 8);
    let told = |rig: &Rig| match rig.events().pop() {
        Some(MemEvent::SharedPlugged { freeing, counters, .. }) => {
            (freeing, counters.plugs, counters.unplugs)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&rig), (Duration::ZERO, 1, 0));
    let time = Duration::from_millis(2);
    rig.host().hook = Box::new(move || std::thread::sleep(time));
    // Two requests that are served together: both times count.
    serve_together(&mut rig, UNPLUG, 2);
    let (freeing, plugs, unplugs) = told(&rig);
    assert!(freeing >= 2 * time && (plugs, unplugs) == (1, 2), "{freeing:?} {plugs} {unplugs}");
    rig.host().hook = Box::new(|| ());
    rig.handle.resize_shared(size(6), None).unwrap();
    assert_eq!(told(&rig), (Duration::ZERO, 1, 2), "a wish frees nothing");
}

#[test]
fn whether_the_driver_puts_the_memory_into_its_node_is_known_while_it_is_up() {
    let mut rig = Rig::new(layout(16), Some(3));
    assert_eq!(rig.handle.driver_takes_node(), Some(false));
    rig.reset();
    assert_eq!(rig.handle.driver_takes_node(), None);
    rig.worker = rig.try_activate(F_UNPLUGGED_INACCESSIBLE | F_ACPI_PXM).unwrap().pop();
    assert_eq!(rig.handle.driver_takes_node(), Some(true));
}

#[test]
fn a_reminder_is_an_interrupt_for_a_driver_that_is_up() {
    let mut rig = Rig::wanting(8);
    let before = rig.config_interrupts();
    rig.handle.remind();
    assert_eq!(rig.config_interrupts(), before + 1);
    rig.reset();
    rig.handle.remind();
    assert_eq!(rig.config_interrupts(), before + 1);
}

/// Requests of one kind for one block each, the first ones, that are all there when the device looks.
fn serve_together(rig: &mut Rig, kind: u16, count: u16) {
    for at in 0..count {
        let place = REQUEST + 32 * u64::from(at);
        rig.write(place, &request(kind, BASE + u64::from(at) * BLOCK, 1));
        let chain = [readable(place, 24), writable(REPLY + 16 * u64::from(at), 10)];
        testing_chain(rig, 2 * at, chain);
    }
    rig.kick();
}

/// A chain of two in the descriptors from `at` on.
fn testing_chain(rig: &Rig, at: u16, [first, second]: [Descriptor; 2]) {
    let first = Descriptor::new(first.addr().0, first.len(), 1, at + 1);
    rig.ring.desc_table().store(at, first.into()).unwrap();
    rig.ring.desc_table().store(at + 1, second.into()).unwrap();
    rig.offer_head(at);
}

#[test]
fn a_partitions_life_with_a_stock_guest_is_told_step_by_step() {
    use PartitionState::{Absent, Plugged, Requested};
    let mut rig = Rig::new(layout(16), None);
    let made = add(&rig, "fn-1", 8).unwrap();
    assert_eq!((made.state, made.requested, made.plugged), (Requested, size(8), size(0)));
    rig.plug(16, 4);
    rig.plug(20, 4);
    let seen = rig.handle.find_partition("fn-1").unwrap();
    assert_eq!((seen.state, seen.plugged, seen.peak), (Plugged, size(8), size(8)));
    assert_eq!((seen.cookie, seen.counters.plugs, seen.hints.used), (Cookie(7), 2, None));
    assert_eq!(rig.handle.partitions(), [seen]);

    rig.handle.remove_partition(made.id).unwrap();
    assert_eq!(rig.config(REQUESTED), 0);
    rig.unplug(16, 8);
    assert_eq!(rig.handle.partitions(), []);
    assert_eq!(rig.handle.find_partition("fn-1"), None);
    let name = || "fn-1".to_string();
    let steps =
        [(name(), Absent, Requested), (name(), Requested, Plugged), (name(), Plugged, Absent)];
    assert_eq!(changes(&rig), steps);
}

#[test]
fn a_partition_that_nobody_took_goes_at_once() {
    let rig = Rig::new(layout(16), None);
    let id = add(&rig, "fn-1", 8).unwrap().id;
    rig.handle.remove_partition(id).unwrap();
    assert_eq!(rig.handle.partitions(), []);
    assert_eq!(changes(&rig).len(), 2);
}

#[test]
fn a_partition_can_be_resized() {
    let mut rig = Rig::new(layout(16), None);
    let id = add(&rig, "fn-1", 8).unwrap().id;
    let before = rig.config_interrupts();
    assert_eq!(rig.handle.resize_partition(id, size(12), None), Ok(Resize::Changed));
    assert_eq!(rig.handle.resize_partition(id, size(12), None), Ok(Resize::Unchanged));
    assert_eq!(rig.config_interrupts(), before + 1);
    assert_eq!(rig.plug(16, 12), ACK);
}

#[test]
fn every_block_is_booked_to_its_owner() {
    let mut rig = Rig::new(layout(16), None);
    rig.handle.resize_shared(size(16), None).unwrap();
    add(&rig, "fn-1", 8).unwrap();
    add(&rig, "fn-2", 8).unwrap();
    assert_eq!(rig.plug(12, 16), ACK);
    let plugged: Vec<_> = rig.handle.partitions().iter().map(|one| one.plugged).collect();
    assert_eq!(plugged, [size(8), size(4)]);
    assert_eq!(rig.handle.look(|books| books.shared().plugged), Blocks::new(4));
}

#[test]
fn a_touched_address_is_traced_to_block_and_owner() {
    let mut rig = Rig::new(layout(16), None);
    add(&rig, "fn-1", 8).unwrap();
    rig.plug(16, 1);
    let at = |block: u64| rig.handle.block_at(BASE + block * BLOCK + 5);
    let view = |block: u64, plugged, owner: Option<&str>| {
        let owner = owner.map(|name| name.parse().unwrap());
        Some(BlockView { block: BASE + block * BLOCK, plugged, owner })
    };
    assert_eq!(at(0), view(0, false, None));
    assert_eq!(at(16), view(16, true, Some("fn-1")));
    assert_eq!(at(17), view(17, false, Some("fn-1")));
    assert_eq!(at(63), view(63, false, None), "beyond the usable size");
    assert_eq!((at(64), rig.handle.block_at(BASE - 1)), (None, None));
}

/// It is not called under the device's lock.
#[test]
fn an_observer_may_look_at_the_device() {
    let slot: Arc<Mutex<Option<MemHandle>>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inner, log) = (Arc::clone(&slot), Arc::clone(&seen));
    let observer = Box::new(move |_| {
        let handle = inner.lock().unwrap().clone();
        log.lock().unwrap().push(handle.unwrap().look(Partitioner::requested_size));
    });
    let host = Rig::wanting(0).host;
    let device = Mem::new(layout(16), None, Box::new(MockHost(host)), observer);
    *slot.lock().unwrap() = Some(device.handle());
    let name = "fn-1".parse().unwrap();
    device.handle().add_partition(name, Cookie(0), size(4), Policy::default(), None).unwrap();
    assert_eq!(*seen.lock().unwrap(), [size(4)]);
}

/// A guest that was asked for a partition could have it plugged before anyone was told of the wish.
#[test]
fn events_of_several_threads_are_told_in_their_order() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    let ((began, begins), (second, seconds)) = (mpsc::channel(), mpsc::channel());
    let seconds = Mutex::new(seconds);
    let observer = Box::new(move |event| {
        let MemEvent::PartitionChanged { partition, .. } = event else { panic!("{event:?}") };
        if partition.name.as_str() == "first" {
            began.send(()).unwrap();
            // As much as the other thread could need to come before.
            let waited = seconds.lock().unwrap().recv_timeout(Duration::from_millis(100));
            assert_eq!(waited, Err(mpsc::RecvTimeoutError::Timeout));
        } else {
            second.send(()).unwrap();
        }
        log.lock().unwrap().push(partition.name.to_string());
    });
    let host = Rig::wanting(0).host;
    let device = Mem::new(layout(16), None, Box::new(MockHost(host)), observer);
    let add = |name: &str| {
        let (name, policy) = (name.parse().unwrap(), Policy::default());
        device.handle().add_partition(name, Cookie(0), size(4), policy, None).unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(|| add("first"));
        begins.recv().unwrap();
        add("second");
    });
    assert_eq!(*told.lock().unwrap(), ["first", "second"]);
}

/// A removal was answered with what a partition had been before its release, as that was not told
/// yet.
#[test]
fn settled_is_when_all_that_has_happened_was_told() {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let (began, begins) = mpsc::channel();
    let observer = Box::new(move |_| {
        began.send(()).unwrap();
        thread::sleep(Duration::from_millis(50));
        count.fetch_add(1, Ordering::Relaxed);
    });
    let host = Rig::wanting(0).host;
    let handle = Mem::new(layout(16), None, Box::new(MockHost(host)), observer).handle();
    thread::scope(|scope| {
        let (name, policy) = ("fn-1".parse().unwrap(), Policy::default());
        let handle = &handle;
        scope.spawn(move || handle.add_partition(name, Cookie(0), size(4), policy, None).unwrap());
        begins.recv().unwrap();
        handle.settle();
        assert_eq!(told.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_handle_outlives_its_device() {
    let rig = Rig::wanting(8);
    let (handle, counters) = (rig.handle.clone(), rig.device.counters());
    drop(rig);
    assert_eq!(handle.look(Partitioner::requested_size), size(8));
    assert_eq!(handle.resize_shared(size(4), None), Ok(Resize::Changed));
    assert!(counters.list().iter().all(|(_, count)| *count == 0));
}
