//! Partitions, between the API's words and their memory device's.
//!
//! The books are the device's. What is kept here is who waits for a removal: the guest carries it
//! out when it can, on the device's thread, and the answer goes out from there.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use devices::sync::lock;
use devices::virtio::mem::{MemError, MemHandle, PartitionView};
use log::error;
use memctl::{
    Bytes, Cookie, HostError, PartitionId, PartitionName, PartitionState, Policy, Resize,
};

use super::memory::refused;
use crate::api::{
    ApiError, ErrorKind, EventMonitor, PartitionReply, Pending, Promise, Reply, Request, micros,
};
use crate::machine::spec::PARTITIONS_ID;

/// What a client wants of a new partition.
pub(super) struct Wish {
    pub(super) name: PartitionName,
    pub(super) cookie: Cookie,
    pub(super) size: Bytes,
    pub(super) policy: Policy,
}

/// What a client wants when it removes a partition.
pub(super) struct Removal {
    pub(super) name: PartitionName,
    pub(super) timeout: Duration,
    pub(super) evacuate: bool,
}

/// What the host can still give through the memory device with an id; `None` to promise anything.
pub(super) type HostFree<'a> = Box<dyn Fn(&str) -> Option<Bytes> + 'a>;

/// Where partitions are: in the region of a guest with the channel, or each in a slot.
pub(super) trait Home {
    /// Asks the guest to take a new one.
    ///
    /// # Errors
    /// The guest can't, the name is taken, or there is no room in the VM or on the host.
    fn add(&self, wish: Wish) -> Result<Reply, ApiError>;

    /// Wants one to have another size. Nothing to say when it has it.
    ///
    /// # Errors
    /// There is none of that name, or no room in the VM or on the host.
    fn resize(&self, name: &PartitionName, size: Bytes) -> Result<Reply, ApiError>;

    /// Wants one back: answers later when the client waits, and at once what has come of it so far
    /// when it does not.
    ///
    /// # Errors
    /// There is none of that name; or it is still there and nobody waits.
    fn remove(&self, removal: &Removal) -> Result<Reply, ApiError>;

    /// Why a partition is still there whose removal a client has waited for. Asks for nothing: it
    /// may be wanted again by now.
    ///
    /// # Errors
    /// Always.
    fn removal_outcome(&self, name: &PartitionName) -> Result<Reply, ApiError>;
}

/// The partitions of one machine, in a region of their own.
pub(super) struct Partitions<'a> {
    pub(super) memory: &'a MemHandle,
    pub(super) waiting: &'a Waiting,
    pub(super) host_free: HostFree<'a>,
}

impl Home for Partitions<'_> {
    fn add(&self, wish: Wish) -> Result<Reply, ApiError> {
        if !self.memory.channel_is_up() {
            let text = "the guest's kernel does not speak the partition channel, or has not got \
                        that far: boot one with Tessera's patches (guest-kernel-patches/), or use \
                        vm.resize, which any guest follows";
            return Err(ApiError::new(ErrorKind::WrongState, text));
        }
        let Wish { name, cookie, size, policy } = wish;
        let added =
            self.memory.add_partition(name, cookie, size, policy, (self.host_free)(PARTITIONS_ID));
        Ok(self.shown(&added.map_err(refused("size"))?))
    }

    fn resize(&self, name: &PartitionName, size: Bytes) -> Result<Reply, ApiError> {
        let partition = self.find(name)?;
        let resized =
            self.memory.resize_partition(partition.id, size, (self.host_free)(PARTITIONS_ID));
        // The guest may have given it back since it was found.
        let resized = resized.map_err(|error| match error {
            MemError::Refused(HostError::Unknown(_)) => unknown(name),
            other => refused("size")(other),
        })?;
        match resized {
            Resize::Unchanged => Ok(Reply::Done),
            Resize::Changed => Ok(self.shown(&partition)),
        }
    }

    fn remove(&self, removal: &Removal) -> Result<Reply, ApiError> {
        self.ask_back(removal, self.find(&removal.name)?.id)
    }

    fn removal_outcome(&self, name: &PartitionName) -> Result<Reply, ApiError> {
        let left = self.find(name)?;
        Err(if left.requested == Bytes::ZERO { still_there(&left) } else { wanted_again(name) })
    }
}

impl Partitions<'_> {
    fn find(&self, name: &PartitionName) -> Result<PartitionView, ApiError> {
        self.memory.find_partition(name.as_str()).ok_or_else(|| unknown(name))
    }

    /// Wants back a partition that was found a moment ago: the guest may have given it back since.
    fn ask_back(&self, removal: &Removal, id: PartitionId) -> Result<Reply, ApiError> {
        // First the promise, then the wish: the guest may be quick.
        let pending = self.waiting.add(removal, id);
        let moved = if removal.evacuate { self.memory.ask_evacuation(id) } else { Ok(()) };
        moved.and_then(|()| self.memory.remove_partition(id)).map_err(|error| match error {
            MemError::Refused(HostError::Unknown(_)) => unknown(&removal.name),
            other => refused("id")(other),
        })?;
        let left = self.memory.find_partition(removal.name.as_str());
        match left.filter(|left| left.id == id) {
            Some(left) if removal.timeout == Duration::ZERO => return Err(still_there(&left)),
            Some(_) => {}
            // Its end may be on its way: who has no patience gets it too.
            None => self.memory.settle(),
        }
        Ok(Reply::Pending(pending))
    }

    /// A partition as it is now, or as it was when it is gone by now.
    fn shown(&self, view: &PartitionView) -> Reply {
        let now = self.memory.look(|books| {
            let partition = books.partition(view.id)?;
            Some(PartitionReply::new(partition, books.geometry()))
        });
        Reply::Partition(now.unwrap_or_else(|| view.into()).into())
    }
}

/// All partitions, in the order in which they were added.
pub(super) fn list(memory: &MemHandle) -> Vec<PartitionReply> {
    memory.look(|books| {
        let geometry = books.geometry();
        books.partitions().map(|one| PartitionReply::new(one, geometry)).collect()
    })
}

/// There is no partition of that name.
pub(super) fn unknown(name: &PartitionName) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("there is no partition {name}"))
}

/// A removal came to nothing, as somebody wants the partition after all.
pub(super) fn wanted_again(name: &PartitionName) -> ApiError {
    let text = format!("partition {name} was given another size meanwhile, and stays");
    ApiError::new(ErrorKind::WrongState, text)
}

/// The partitions that are wanted, for a fresh machine: those that are to go have gone.
pub(super) fn wishes(memory: &MemHandle) -> Vec<Wish> {
    let wanted = memory.partitions().into_iter().filter(|one| one.requested != Bytes::ZERO);
    let wish = |PartitionView { name, cookie, requested, policy, .. }: PartitionView| Wish {
        name,
        cookie,
        size: requested,
        policy,
    };
    wanted.map(wish).collect()
}

/// The partitions that are to go, and go with their machine.
pub(super) fn unwanted(memory: &MemHandle) -> Vec<PartitionView> {
    let mut all = memory.partitions();
    all.retain(|one| one.requested == Bytes::ZERO);
    all
}

/// Asks the guest of a fresh machine for what its last one was asked for. The host's memory was
/// promised already.
pub(super) fn renew(memory: &MemHandle, wishes: Vec<Wish>) {
    for Wish { name, cookie, size, policy } in wishes {
        if let Err(problem) = memory.add_partition(name.clone(), cookie, size, policy, None) {
            error!("partition {name} does not come back: {problem}");
        }
    }
}

/// Tells of a partition's new state, and answers who waited for its end. On the device's thread.
pub(super) fn changed(
    partition: &PartitionView,
    from: PartitionState,
    waiting: &Waiting,
    events: &EventMonitor,
) {
    let gone = partition.state == PartitionState::Absent;
    if gone {
        // Who waits for the memory comes before who watches.
        waiting.answer(partition);
    }
    let plugged = partition.plugged.as_u64();
    let (what, number) = match partition.node {
        Some(node) => ("node", u32::from(node)),
        None => ("number", partition.id.0),
    };
    let mut properties: Vec<(&str, &dyn Display)> = vec![
        ("id", &partition.name),
        (what, &number),
        ("state", &partition.state),
        ("from", &from),
        ("plugged", &plugged),
    ];
    let release = partition.last_release.map(micros);
    let bytes = partition.last_released.as_u64();
    let id = partition.name.as_str();
    match &release {
        Some(us) if gone => {
            properties.extend([("released", &bytes as &dyn Display), ("release_us", us)]);
            events.end("partition", "released", id, &properties);
        }
        None if gone => events.end("partition", "changed", id, &properties),
        _ => events.state("partition", "changed", id, &properties),
    }
}

/// Tells that a partition went with its machine, as `changed` does. On the monitor's thread.
pub(super) fn ended(last: &PartitionView, waiting: &Waiting, events: &EventMonitor) {
    let (state, plugged) = (PartitionState::Absent, Bytes::ZERO);
    let gone = PartitionView { state, plugged, last_release: None, ..last.clone() };
    changed(&gone, last.state, waiting, events);
}

/// Why a removal is not done yet.
pub(super) fn still_there(partition: &PartitionView) -> ApiError {
    let PartitionView { name, state, plugged, hints, .. } = partition;
    let used = match hints.used {
        Some(used) => format!("{used} of its {plugged} are in use"),
        None => format!("how much of its {plugged} is in use the guest has not said"),
    };
    let text = format!("partition {name} is {state}: {used}; it goes when the guest gives it back");
    ApiError::new(ErrorKind::WrongState, text)
}

/// Clients that wait for a removal. A name belongs to one partition at a time. Filled by the
/// monitor's thread, emptied by the device's.
#[derive(Default)]
pub(super) struct Waiting(Mutex<Vec<Waiter>>);

struct Waiter {
    name: PartitionName,
    /// Tells it from a later partition of that name.
    id: PartitionId,
    since: Instant,
    promise: Promise,
}

impl Waiting {
    /// An answer for when the partition is gone.
    pub(super) fn add(&self, removal: &Removal, id: PartitionId) -> Pending {
        let Removal { name, timeout: patience, .. } = removal;
        let outcome = Request::RemovalOutcome { id: name.clone() };
        let (promise, pending) = Pending::new(*patience, outcome);
        let mut waiters = self.lock();
        // Clients that ran out of patience leave no trace, however often they ask.
        waiters.retain(|waiter| waiter.promise.is_awaited());
        waiters.push(Waiter { name: name.clone(), id, since: Instant::now(), promise });
        pending
    }

    /// A partition has gone, and was `last` as given.
    fn answer(&self, last: &PartitionView) {
        let is_its = |waiter: &mut Waiter| (&waiter.name, waiter.id) == (&last.name, last.id);
        let its = self.lock().extract_if(.., is_its).collect::<Vec<_>>();
        for Waiter { since, promise, .. } in its {
            let removal_us = Some(micros(since.elapsed()));
            let gone = PartitionReply { size: 0, removal_us, ..last.into() };
            promise.keep(Ok(Reply::Partition(gone.into())));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiter>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
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
}
