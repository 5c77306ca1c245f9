//! Partitions in their own region, without a guest.

use std::sync::Arc;

use devices::virtio::mem::{Mem, MemEvent};
use memctl::{Blocks, Geometry, Layout};

use super::super::testing::{Host, removed};
use super::*;
use crate::api::Endpoint;

/// A memory device with room for 1 GiB of partitions, whose driver is not up.
fn memory() -> MemHandle {
    memory_told_to(&Arc::default())
}

/// The same; it tells who waits.
fn memory_told_to(waiting: &Arc<Waiting>) -> MemHandle {
    let waiting = Arc::clone(waiting);
    let observer = move |event| {
        let MemEvent::PartitionChanged { partition, from } = event else { return };
        changed(&partition, from, &waiting, &EventMonitor::default());
    };
    let geometry = Geometry::new(4 << 30, Bytes::mib(2), Bytes::gib(1)).unwrap();
    let layout = Layout { geometry, shared_area: Blocks::ZERO, max_partitions: 4 };
    Mem::new(layout, None, Box::new(Host), Box::new(observer)).handle()
}

fn partitions<'a>(
    memory: &'a MemHandle,
    waiting: &'a Waiting,
    free: Option<Bytes>,
) -> Partitions<'a> {
    Partitions { memory, waiting, host_free: Box::new(move |_| free) }
}

fn wish(name: &str, size: Bytes) -> Wish {
    let (name, cookie) = (name.parse().unwrap(), Cookie(9));
    Wish { name, cookie, size, policy: Policy { keep: true, prefault: false } }
}

fn removal(name: &str, seconds: u64) -> Removal {
    let timeout = Duration::from_secs(seconds);
    Removal { name: name.parse().unwrap(), timeout, evacuate: true }
}

fn problem(result: Result<Reply, ApiError>) -> (ErrorKind, String) {
    let error = result.unwrap_err();
    (error.kind, error.to_string())
}

#[test]
fn a_guest_without_the_channel_is_told_apart_and_what_to_do() {
    let (memory, waiting) = (memory(), Waiting::default());
    let partitions = partitions(&memory, &waiting, None);
    let (kind, text) = problem(partitions.add(wish("a", Bytes::mib(2))));
    assert_eq!(kind, ErrorKind::WrongState);
    assert!(text.contains("partition channel") && text.contains("vm.resize"), "{text}");
}

#[test]
fn what_cannot_be_names_the_field_or_the_partition() {
    let (memory, waiting) = (memory(), Waiting::default());
    renew(&memory, vec![wish("a", Bytes::mib(4)), wish("c", Bytes::mib(4))]);
    let free = partitions(&memory, &waiting, None);
    let full = partitions(&memory, &waiting, Some(Bytes::mib(6)));
    let resize = |name: &str, size| free.resize(&name.parse().unwrap(), size);
    assert!(matches!(resize("a", Bytes::mib(4)), Ok(Reply::Done)));
    for (result, kind, part) in [
        (resize("a", Bytes::mib(3)), ErrorKind::Invalid, "size: 3 MiB is not a whole"),
        (resize("a", Bytes::ZERO), ErrorKind::Invalid, "size: a partition has at least"),
        (resize("b", Bytes::mib(2)), ErrorKind::NotFound, "there is no partition b"),
        (
            resize("a", Bytes::gib(2)),
            ErrorKind::Invalid,
            "size: a partition can have at most 1 GiB",
        ),
        (resize("a", Bytes::gib(1)), ErrorKind::WrongState, "no room for 1020 MiB more"),
        (
            full.resize(&"a".parse().unwrap(), Bytes::mib(8)),
            ErrorKind::WrongState,
            "has 6 MiB free: make room on the host, or create the VM with memory.overcommit",
        ),
        (free.remove(&removal("b", 1)), ErrorKind::NotFound, "there is no partition b"),
    ] {
        let (its, text) = problem(result);
        assert!(its == kind && text.contains(part), "{its:?}: {text}");
    }
}

#[test]
fn a_partition_that_nobody_has_taken_goes_at_once() {
    let waiting = Arc::default();
    let memory = memory_told_to(&waiting);
    renew(&memory, vec![wish("a", Bytes::mib(4))]);
    let gone = removed(partitions(&memory, &waiting, None).remove(&removal("a", 0)));
    assert_eq!((gone.state, gone.size), (PartitionState::Absent, 0));
    assert!(gone.removal_us.is_some() && memory.partitions().is_empty());
}

#[test]
fn who_waits_for_a_removal_is_answered_when_the_partition_is_gone() {
    let (memory, waiting) = (memory(), Waiting::default());
    renew(&memory, vec![wish("a", Bytes::mib(4)), wish("b", Bytes::mib(4))]);
    let views = memory.partitions();
    let partitions = partitions(&memory, &waiting, None);
    let pending = [(); 2].map(|()| partitions.waiting.add(&removal("a", 60), views[0].id));
    let gone = |view: &PartitionView| {
        let gone = PartitionView { state: PartitionState::Absent, ..view.clone() };
        changed(&gone, view.state, &waiting, &EventMonitor::default());
    };
    gone(&views[1]);
    // One that had the name before.
    gone(&PartitionView { id: PartitionId(77), ..views[0].clone() });
    assert_eq!(waiting.lock().len(), 2);
    gone(&views[0]);
    for pending in pending {
        let reply = removed(Ok(Reply::Pending(pending)));
        assert!(reply.id == "a" && reply.removal_us.is_some());
    }
    assert!(waiting.lock().is_empty());
}

/// The guest gives a partition back by itself when its function ends.
#[test]
fn a_partition_that_went_just_before_it_was_asked_back_is_unknown() {
    let (memory, waiting) = (memory(), Waiting::default());
    renew(&memory, vec![wish("a", Bytes::mib(4))]);
    let partitions = partitions(&memory, &waiting, None);
    let id = memory.partitions()[0].id;
    memory.remove_partition(id).unwrap();
    let asked = partitions.ask_back(&removal("a", 1), id);
    assert_eq!(problem(asked), (ErrorKind::NotFound, "there is no partition a".to_owned()));
}

#[test]
fn a_partition_that_went_just_before_it_was_resized_is_unknown_by_its_name() {
    let (memory, waiting) = (memory(), Waiting::default());
    renew(&memory, vec![wish("a", Bytes::mib(4))]);
    let went = |_: &str| {
        memory.remove_partition(memory.partitions()[0].id).unwrap();
        None
    };
    let host_free = Box::new(went);
    let partitions = Partitions { memory: &memory, waiting: &waiting, host_free };
    let resized = partitions.resize(&"a".parse().unwrap(), Bytes::mib(8));
    assert_eq!(problem(resized), (ErrorKind::NotFound, "there is no partition a".to_owned()));
}

#[test]
fn clients_that_gave_up_leave_no_trace() {
    let waiting = Waiting::default();
    for _ in 0..100 {
        drop(waiting.add(&removal("a", 1), PartitionId(1)));
    }
    assert_eq!(waiting.lock().len(), 1);
}

#[test]
fn a_fresh_machine_is_asked_for_the_partitions_that_are_wanted() {
    let (old, new) = (memory(), memory());
    renew(&old, vec![wish("a", Bytes::mib(4)), wish("b", Bytes::mib(2))]);
    old.resize_partition(old.partitions()[1].id, Bytes::mib(6), None).unwrap();
    renew(&new, wishes(&old));
    let views = new.partitions();
    let sizes: Vec<_> = views.iter().map(|one| (one.name.as_str(), one.requested)).collect();
    assert_eq!(sizes, [("a", Bytes::mib(4)), ("b", Bytes::mib(6))]);
    assert!(views[0].policy.keep && views[0].cookie == Cookie(9));
}

/// The patience of who removes ends after another client has wanted the partition again.
#[test]
fn the_end_of_patience_asks_for_nothing() {
    let (memory, waiting) = (memory(), Waiting::default());
    renew(&memory, vec![wish("a", Bytes::mib(4))]);
    let (name, id) = ("a".parse().unwrap(), memory.partitions()[0].id);
    let partitions = partitions(&memory, &waiting, None);
    let (kind, text) = problem(partitions.removal_outcome(&name));
    assert!(kind == ErrorKind::WrongState && text.contains("stays"), "{text}");
    assert_eq!(memory.partitions()[0].requested, Bytes::mib(4));
    memory.remove_partition(id).unwrap();
    assert_eq!(problem(partitions.removal_outcome(&name)).0, ErrorKind::NotFound);
}

/// Each hint of the guest's was a line, and enough of them hid the lines of all others.
#[test]
fn a_guest_that_flips_a_state_neither_floods_the_events_nor_hides_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let events = EventMonitor::start(&Endpoint::Path(path.clone())).unwrap();
    let (memory, waiting) = (memory(), Waiting::default());
    renew(&memory, vec![wish("a", Bytes::mib(4))]);
    let mut view = memory.partitions().remove(0);
    for flip in 0..10_000 {
        let states = [PartitionState::Bound, PartitionState::Plugged];
        view.state = states[flip % 2];
        changed(&view, states[1 - flip % 2], &waiting, &events);
    }
    events.event("memory", "refused", &[]);
    (view.state, view.last_release) = (PartitionState::Absent, Some(Duration::ZERO));
    changed(&view, PartitionState::Plugged, &waiting, &events);
    drop(events);
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.lines().count() < 200, "{} lines", text.lines().count());
    for told in ["bound", "refused", "released", r#""number":"1""#] {
        assert!(text.contains(told), "{told}: {text}");
    }
}

#[test]
fn what_is_still_in_use_is_said() {
    let memory = memory();
    renew(&memory, vec![wish("a", Bytes::mib(4))]);
    let mut view = memory.partitions().remove(0);
    view.state = PartitionState::Draining;
    view.plugged = Bytes::mib(4);
    let text = |view: &PartitionView| still_there(view).to_string();
    assert!(text(&view).contains("how much of its 4 MiB is in use"), "{}", text(&view));
    view.hints.used = Some(Bytes::mib(1));
    let expected = "partition a is draining: 1 MiB of its 4 MiB are in use";
    assert!(text(&view).starts_with(expected), "{}", text(&view));
}
