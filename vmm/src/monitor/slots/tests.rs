//! Partitions in slots, without a guest.

use std::sync::Arc;
use std::time::Duration;

use devices::virtio::mem::{Mem, Observer};
use memctl::{Cookie, Geometry, Layout, Partitioner, Policy};

use super::super::testing::{Host, removed};
use super::*;
use crate::api::{Endpoint, Release};
use crate::machine::spec::Memory;
use crate::monitor::memory::Listeners;

/// Two slots of 256 MiB, and the devices of a machine with them.
struct Rig {
    devices: Vec<MemDevice>,
    handles: Vec<MemHandle>,
    listeners: Listeners,
    takes_node: Option<bool>,
}

impl Rig {
    /// The test plays the guest, through [`Rig::plugs`].
    fn new() -> Self {
        let devices: Vec<_> = (0..2).map(device).collect();
        let listeners = Listeners {
            events: EventMonitor::default(),
            waiting: Arc::default(),
            slots: Arc::new(SlotTable(Mutex::new(vec![None, None]))),
        };
        let handles = handles(&devices, |_| Box::new(|_| ()));
        Self { devices, handles, listeners, takes_node: Some(true) }
    }

    /// The devices tell themselves what the guest has: nothing.
    fn without_guest() -> Self {
        let rig = Self::new();
        let observer = |slot| rig.listeners.observer(Some(slot), "__slot");
        Self { handles: handles(&rig.devices, observer), ..rig }
    }

    /// Another machine, as after a reboot.
    fn reboot(self) -> Self {
        let slots = Arc::new(self.listeners.slots.renewed());
        let listeners = Listeners { slots, ..self.listeners };
        let handles = handles(&self.devices, |_| Box::new(|_| ()));
        Self { handles, listeners, ..self }
    }

    fn slots(&self) -> Slots<'_> {
        Slots {
            slots: self.devices.iter().zip(&self.handles).collect(),
            table: &self.listeners.slots,
            waiting: &self.listeners.waiting,
            host_free: Box::new(|_| None),
            events: &self.listeners.events,
            takes_node: Box::new(|_| self.takes_node),
        }
    }

    /// The guest has so many MiB of a slot.
    fn plugs(&self, slot: usize, mib: u64) {
        let Listeners { events, waiting, slots } = &self.listeners;
        let (plugged, freeing) = (Bytes::mib(mib), Duration::from_millis(1));
        let counters = Counters { plugs: 3, unplugs: 2 };
        let requested = |books: &Partitioner| books.geometry().bytes(books.shared().requested);
        let requested = self.handles[slot].look(requested);
        let moved = Moved { requested, plugged, counters, freeing };
        slots.moved(slot, moved, waiting, events);
    }

    fn states(&self) -> Vec<(String, PartitionState, u64)> {
        let list = self.slots().list().into_iter();
        list.map(|one| (one.id, one.state, one.plugged >> 20)).collect()
    }
}

fn device(number: u16) -> MemDevice {
    MemDevice {
        id: format!("__slot{number}"),
        size: Bytes::mib(256),
        block: Bytes::mib(2),
        memory: Memory::plain(),
        node: Some(number + 1),
        role: Role::Slot,
    }
}

fn handles(devices: &[MemDevice], observer: impl Fn(usize) -> Observer) -> Vec<MemHandle> {
    let handle = |(slot, device): (usize, &MemDevice)| {
        let start = (4 + slot as u64) << 30;
        let geometry = Geometry::new(start, device.block, device.size).unwrap();
        let layout = Layout::shared_only(geometry);
        Mem::new(layout, device.node, Box::new(Host), observer(slot)).handle()
    };
    devices.iter().enumerate().map(handle).collect()
}

fn wish(name: &str, mib: u64) -> Wish {
    let (name, cookie) = (name.parse().unwrap(), Cookie(9));
    Wish { name, cookie, size: Bytes::mib(mib), policy: Policy::default() }
}

fn removal(name: &str, seconds: u64) -> Removal {
    let timeout = Duration::from_secs(seconds);
    Removal { name: name.parse().unwrap(), timeout, evacuate: false }
}

fn shown(reply: Result<Reply, ApiError>) -> PartitionReply {
    match reply.unwrap() {
        Reply::Partition(shown) => *shown,
        other => panic!("{other:?}"),
    }
}

fn problem(result: Result<Reply, ApiError>) -> String {
    result.unwrap_err().to_string()
}

/// Who watches was not told that it was requested.
#[test]
fn a_guest_that_plugs_before_its_asker_goes_on_was_asked_first() {
    let (mut rig, folder) = (Rig::new(), tempfile::tempdir().unwrap());
    let path = folder.path().join("events");
    rig.listeners.events = EventMonitor::start(&Endpoint::Path(path.clone())).unwrap();
    let plugs = |_: &str| {
        let Listeners { events, waiting, slots } = &rig.listeners;
        let (size, counters) = (Bytes::mib(128), Counters::default());
        let moved = Moved { requested: size, plugged: size, counters, freeing: Duration::ZERO };
        slots.moved(0, moved, waiting, events);
        None
    };
    Slots { host_free: Box::new(plugs), ..rig.slots() }.add(wish("a", 128)).unwrap();
    drop(rig);
    let told = std::fs::read_to_string(path).unwrap();
    let states: Vec<_> = told.lines().map(|line| line.contains(r#""state":"plugged""#)).collect();
    assert_eq!(states, [false, true], "{told}");
    assert!(told.contains(r#""from":"absent","#) && told.contains(r#""state":"requested""#));
}

/// The slot was free, and its next partition had memory that it had not asked for.
#[test]
fn a_slot_is_not_free_before_its_device_knows_that_nothing_is_wanted() {
    let rig = Rig::new();
    rig.slots().add(wish("a", 128)).unwrap();
    rig.plugs(0, 128);
    // A removal begins; the guest gives all back and takes some again before the device hears.
    rig.listeners.slots.set_requested(0, Bytes::ZERO);
    rig.plugs(0, 0);
    assert_eq!(rig.states(), [("a".into(), PartitionState::Plugged, 0)]);
    rig.plugs(0, 64);
    rig.slots().remove(&removal("a", 0)).unwrap_err();
    assert_eq!(rig.states(), [("a".into(), PartitionState::Plugged, 64)]);
    rig.plugs(0, 0);
    assert!(rig.states().is_empty());
}

#[test]
fn a_partition_is_a_node_until_the_guest_has_given_it_back() {
    let rig = Rig::new();
    let added = shown(rig.slots().add(wish("a", 128)));
    assert_eq!((added.node, added.number, added.extents[0].addr), (Some(1), None, 4 << 30));
    assert_eq!((added.size, added.cookie), (128 << 20, 9));
    assert_eq!(added.release, Release::Manual, "it does not go by itself");
    rig.plugs(0, 64);
    assert_eq!(rig.states(), [("a".into(), PartitionState::Requested, 64)]);
    rig.plugs(0, 128);
    assert_eq!(rig.states(), [("a".into(), PartitionState::Plugged, 128)]);
    rig.slots().resize(&"a".parse().unwrap(), Bytes::mib(256)).unwrap();
    rig.plugs(0, 192);
    assert_eq!(rig.states(), [("a".into(), PartitionState::Plugged, 192)], "it grows");
    rig.slots().resize(&"a".parse().unwrap(), Bytes::mib(128)).unwrap();
    rig.plugs(0, 128);

    let removing = rig.slots().remove(&removal("a", 60));
    rig.plugs(0, 2);
    assert_eq!(rig.states().len(), 1);
    rig.plugs(0, 0);
    assert_eq!(rig.states(), []);
    let gone = removed(removing);
    assert!(gone.state == PartitionState::Absent && gone.removal_us.is_some());
    assert_eq!((gone.node, gone.number), (Some(1), None));
    assert_eq!((gone.plugs, gone.unplugs, gone.peak), (3, 2, 192 << 20));
    assert_eq!(gone.last_release_us, Some(3000), "a millisecond each time");
    assert_eq!(shown(rig.slots().add(wish("b", 2))).node, Some(1), "the slot is free again");
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_slot_free() {
    let rig = Rig::new();
    let slots = rig.slots();
    assert!(problem(slots.add(wish("a", 258))).contains("size: 258 MiB does not fit a slot"));
    assert!(problem(slots.add(wish("a", 0))).contains("does not fit a slot"));
    assert!(problem(slots.add(wish("a", 3))).contains("size: 3 MiB is not a whole number"));
    assert_eq!(rig.states(), []);
    slots.add(wish("a", 2)).unwrap();
    assert!(problem(slots.add(wish("a", 2))).contains("there is a partition a already"));
    slots.add(wish("b", 2)).unwrap();
    assert!(problem(slots.add(wish("c", 2))).contains("all 2 slots are taken"));
    let name = "c".parse().unwrap();
    assert!(problem(slots.resize(&name, Bytes::mib(2))).contains("no partition c"));
    assert!(problem(slots.remove(&removal("c", 0))).contains("no partition c"));
}

#[test]
fn what_does_not_come_back_is_told_with_its_node_and_where_to_look() {
    let rig = Rig::new();
    rig.slots().add(wish("a", 2)).unwrap();
    rig.slots().add(wish("b", 128)).unwrap();
    rig.plugs(1, 128);
    let stuck = || rig.slots().list()[1].stuck >> 20;
    let text = problem(rig.slots().remove(&removal("b", 0)));
    assert!(text.contains("has not given back 128 MiB of node 2"), "{text}");
    assert!(text.contains("tessera-function check 2"), "{text}");
    assert_eq!(stuck(), 0, "it was asked just now");
    rig.plugs(1, 64);
    // As when the client's patience is over.
    rig.slots().remove(&removal("b", 0)).unwrap_err();
    assert_eq!(stuck(), 64);
    rig.plugs(1, 32);
    assert_eq!(stuck(), 0, "it moves");
}

#[test]
fn a_guest_that_makes_no_node_is_a_conflict_that_says_what_to_do() {
    for (takes_node, part) in [
        (Some(false), "has no NUMA nodes, and a partition in a slot is one: boot it without"),
        (None, "driver for this memory is not up"),
    ] {
        let rig = Rig { takes_node, ..Rig::new() };
        let error = rig.slots().add(wish("a", 2)).unwrap_err();
        assert!(error.kind == ErrorKind::WrongState && error.to_string().contains(part));
        assert_eq!(rig.states(), []);
    }
}

#[test]
fn a_command_line_can_leave_a_guest_without_nodes() {
    assert!(numa_off("quiet numa=off") && numa_off("acpi=off\tquiet"));
    assert!(!numa_off("quiet numa=offset fake.numa=off"));
}

#[test]
fn a_slot_is_not_filled_for_one_partition() {
    let policy = Policy { prefault: true, keep: true };
    let text = problem(Rig::new().slots().add(Wish { policy, ..wish("a", 2) }));
    assert!(text.starts_with("prefault: ") && text.contains("memory.prefault"), "{text}");
}

#[test]
fn another_size_is_another_wish() {
    let rig = Rig::new();
    rig.slots().add(wish("a", 2)).unwrap();
    let name = "a".parse().unwrap();
    let resize = |mib| rig.slots().resize(&name, Bytes::mib(mib));
    assert!(matches!(resize(2), Ok(Reply::Done)));
    assert_eq!(shown(resize(4)).size, 4 << 20);
    assert_eq!(rig.handles[0].look(Partitioner::requested_size), Bytes::mib(4));
    assert!(problem(resize(0)).contains("does not fit a slot"));
}

#[test]
fn a_partition_that_nobody_has_taken_goes_at_once() {
    let rig = Rig::without_guest();
    rig.slots().add(wish("a", 2)).unwrap();
    let gone = removed(rig.slots().remove(&removal("a", 0)));
    assert_eq!((gone.state, gone.size), (PartitionState::Absent, 0));
    assert_eq!(rig.states(), []);
}

/// The last of it comes back just before a client asks for it again, or for another size of it,
/// which was plugged into the free slot.
#[test]
fn a_slot_that_emptied_just_before_it_was_asked_for_anything_is_left_alone() {
    let rig = Rig::new();
    let name = "a".parse().unwrap();
    rig.slots().add(wish("a", 2)).unwrap();
    rig.plugs(0, 2);
    rig.slots().remove(&removal("a", 0)).unwrap_err();
    let (slot, found) = rig.listeners.slots.find(&name).unwrap();
    rig.plugs(0, 0);
    let slots = rig.slots();
    let asked = slots.ask_back(&removal("a", 1), slot, &found);
    assert_eq!(problem(asked), "there is no partition a");
    let resized = slots.want(slot, &name, Bytes::mib(4));
    assert_eq!(resized.unwrap_err().to_string(), "there is no partition a");
    assert_eq!(rig.handles[0].look(Partitioner::requested_size), Bytes::ZERO);
}

/// The guest gave all back before another size was wanted, and that is told only now.
#[test]
fn an_old_message_does_not_free_a_slot_that_is_wanted() {
    let rig = Rig::new();
    rig.slots().add(wish("a", 2)).unwrap();
    rig.plugs(0, 2);
    rig.slots().remove(&removal("a", 0)).unwrap_err();
    shown(rig.slots().resize(&"a".parse().unwrap(), Bytes::mib(4)));
    rig.plugs(0, 0);
    assert_eq!(rig.states(), [("a".into(), PartitionState::Requested, 0)]);
    let text = problem(rig.slots().removal_outcome(&"a".parse().unwrap()));
    assert!(text.contains("stays"), "{text}");
}

#[test]
fn a_reboot_keeps_what_is_wanted_in_its_slot() {
    let rig = Rig::new();
    rig.slots().add(wish("a", 2)).unwrap();
    rig.slots().add(wish("b", 4)).unwrap();
    rig.plugs(0, 2);
    rig.plugs(1, 4);
    rig.slots().remove(&removal("a", 0)).unwrap_err();
    let rig = rig.reboot();
    rig.slots().renew();
    assert_eq!(rig.states(), [("b".into(), PartitionState::Requested, 0)]);
    assert_eq!(rig.handles[1].look(Partitioner::requested_size), Bytes::mib(4));
    assert_eq!(rig.slots().list()[0].node, Some(2));
}
