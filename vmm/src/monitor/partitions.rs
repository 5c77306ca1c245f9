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
mod tests;
