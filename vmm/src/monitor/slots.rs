//! Partitions for guests without the channel: each is a NUMA node of the guest's with a memory
//! device of its own, a *slot*. A stock kernel plugs and unplugs it as plain memory; what runs there
//! is the business of the guest's cpusets.
//!
//! ```text
//!            add              all of it plugged             remove, all of it unplugged
//!   (free) -------> Requested -----------------> Plugged ------------------------------> (free)
//! ```
//! The table is the monitor's: which partition is in which slot. It survives a reboot with the wishes
//! in it, and a partition keeps its slot, so node numbers are stable. What is plugged, the devices
//! tell; on their threads the table moves on. No device is called with its lock held; what happens is
//! told with it held, so in its order: a guest may have plugged before whoever asked it goes on.
//!
//! The guest says nothing about who uses a node, so none goes by itself when it is empty: each is
//! kept until it is removed, whatever its wish says. A removal makes the guest move what is left
//! there, asked to or not, which takes its time and can fail; all that is seen of it here is memory
//! that does not come back.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use devices::sync::lock;
use devices::virtio::mem::{MemHandle, PartitionView};
use log::error;
use memctl::{Bytes, Counters, Hints, PartitionId, PartitionName, PartitionState, Policy, Resize};

use super::memory::refused;
use super::partitions::{Home, HostFree, Removal, Waiting, Wish, changed, unknown, wanted_again};
use crate::api::{ApiError, ErrorKind, EventMonitor, ExtentReply, PartitionReply, Reply};
use crate::machine::spec::{MemDevice, Role, Spec};

/// Which partition is in which slot.
#[derive(Default)]
pub(super) struct SlotTable(Mutex<Vec<Option<Held>>>);

/// A slot that is taken.
#[derive(Clone)]
struct Held {
    view: PartitionView,
    /// The counters of its device when the partition came.
    before: Counters,
}

/// What a slot's device tells when its memory comes or goes.
#[derive(Clone, Copy)]
pub(super) struct Moved {
    /// What the device wants the guest to have.
    pub(super) requested: Bytes,
    pub(super) plugged: Bytes,
    /// Since the device was made.
    pub(super) counters: Counters,
    /// How long the host took to free what came back with this.
    pub(super) freeing: Duration,
}

/// The slots of one machine.
pub(super) struct Slots<'a> {
    /// Each with its device.
    pub(super) slots: Vec<(&'a MemDevice, &'a MemHandle)>,
    pub(super) table: &'a SlotTable,
    pub(super) waiting: &'a Waiting,
    pub(super) host_free: HostFree<'a>,
    pub(super) events: &'a EventMonitor,
    pub(super) takes_node: TakesNode<'a>,
}

/// Whether the guest makes a NUMA node of a slot's memory; `None` when its driver is not up.
pub(super) type TakesNode<'a> = Box<dyn Fn(&MemHandle) -> Option<bool> + 'a>;

/// Whether a guest's command line makes its kernel have no NUMA nodes.
pub(super) fn numa_off(cmdline: &str) -> bool {
    cmdline.split_ascii_whitespace().any(|word| ["numa=off", "acpi=off"].contains(&word))
}

/// The devices that are slots, in their order.
pub(super) fn devices(spec: &Spec) -> impl Iterator<Item = &MemDevice> {
    spec.mem_devices.iter().filter(|device| matches!(device.role, Role::Slot))
}

impl SlotTable {
    /// A table for the slots of `spec`, all free.
    pub(super) fn new(spec: &Spec) -> Self {
        Self(Mutex::new(devices(spec).map(|_| None).collect()))
    }

    /// The same for a fresh machine: what is wanted has to be plugged again, the rest is gone.
    pub(super) fn renewed(&self) -> Self {
        let wanted = |held: &Held| {
            let fresh = (held.view.requested != Bytes::ZERO).then(|| held.view.clone())?;
            let (state, plugged) = (PartitionState::Requested, Bytes::ZERO);
            let view = PartitionView { state, plugged, counters: Counters::default(), ..fresh };
            Some(Held { view, before: Counters::default() })
        };
        let slots = self.lock().iter().map(|slot| slot.as_ref().and_then(wanted)).collect();
        Self(Mutex::new(slots))
    }

    /// The partitions that are to go, and go with their machine.
    pub(super) fn unwanted(&self) -> Vec<PartitionView> {
        let slots = self.lock();
        let held = slots.iter().flatten().map(|held| &held.view);
        held.filter(|view| view.requested == Bytes::ZERO).cloned().collect()
    }

    /// The device of a slot has or wants another amount of memory. On the device's thread, or on
    /// that of who wants it.
    pub(super) fn moved(
        &self,
        slot: usize,
        moved: Moved,
        waiting: &Waiting,
        events: &EventMonitor,
    ) {
        let mut slots = self.lock();
        let Some(entry) = slots.get_mut(slot) else { return };
        let Some(held) = entry else { return };
        held.asked(waiting, events);
        let from = held.view.state;
        held.take(&moved);
        let now = &held.view;
        if now.state != from {
            changed(now, from, waiting, events);
        }
        if now.state == PartitionState::Absent {
            *entry = None;
        }
    }

    /// The guest of a new partition has been asked.
    fn asked(&self, slot: usize, waiting: &Waiting, events: &EventMonitor) {
        let mut slots = self.lock();
        let held = slots.get_mut(slot).and_then(Option::as_mut);
        held.into_iter().for_each(|held| held.asked(waiting, events));
    }

    fn find(&self, name: &PartitionName) -> Option<(usize, PartitionView)> {
        let slots = self.lock();
        let held = slots.iter().enumerate().filter_map(|(slot, held)| Some((slot, held.as_ref()?)));
        let mut named = held.filter(|(_, held)| held.view.name == *name);
        named.next().map(|(slot, held)| (slot, held.view.clone()))
    }

    /// Another size is wanted of the partition in a slot. Returns the last one, and `None` when it
    /// has gone.
    fn set_requested(&self, slot: usize, size: Bytes) -> Option<Bytes> {
        let mut slots = self.lock();
        let held = slots.get_mut(slot)?.as_mut()?;
        Some(std::mem::replace(&mut held.view.requested, size))
    }

    /// The partition in a slot is not wanted, and the guest still has some of it: says how much.
    /// `None` when that was known.
    fn stuck(&self, slot: usize) -> Option<PartitionView> {
        let mut slots = self.lock();
        let view = &mut slots.get_mut(slot)?.as_mut()?.view;
        let known = std::mem::replace(&mut view.hints.stuck, view.plugged);
        (known != view.plugged).then(|| view.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Held>>> {
        lock(&self.0)
    }
}

impl Held {
    /// The guest has been asked for it: tells so, the first time.
    fn asked(&mut self, waiting: &Waiting, events: &EventMonitor) {
        let from = self.view.state;
        if from == PartitionState::Absent {
            self.view.state = PartitionState::Requested;
            changed(&self.view, from, waiting, events);
        }
    }

    fn take(&mut self, moved: &Moved) {
        let &Moved { requested, plugged, counters, freeing } = moved;
        let Self { view, before } = self;
        match view.plugged.checked_sub(plugged) {
            // All that came back since something was last plugged is one release.
            Some(back) if back != Bytes::ZERO => {
                let all = view.last_released.as_u64() + back.as_u64();
                view.last_released = Bytes::new(all);
                view.last_release = Some(view.last_release.unwrap_or_default() + freeing);
                view.hints.stuck = Bytes::ZERO;
            }
            Some(_) => {}
            None => (view.last_released, view.last_release) = (Bytes::ZERO, None),
        }
        view.plugged = plugged;
        view.peak = view.peak.max(plugged);
        view.counters.plugs = counters.plugs.saturating_sub(before.plugs);
        view.counters.unplugs = counters.unplugs.saturating_sub(before.unplugs);
        let new = view.state != PartitionState::Plugged;
        // What was wanted when this was told may not be wanted any more.
        view.state = match (view.requested, plugged) {
            (Bytes::ZERO, Bytes::ZERO) if requested == Bytes::ZERO => PartitionState::Absent,
            // Until the device knows, the guest may plug it again: the slot is not free.
            (Bytes::ZERO, Bytes::ZERO) => view.state,
            (_, Bytes::ZERO) => PartitionState::Requested,
            (wanted, has) if new && has < wanted => PartitionState::Requested,
            _ => PartitionState::Plugged,
        };
    }
}

impl Home for Slots<'_> {
    fn add(&self, wish: Wish) -> Result<Reply, ApiError> {
        let Wish { name, cookie, size, policy } = wish;
        if policy.prefault {
            let text = "a slot can't be filled partition by partition; use memory.prefault";
            return Err(ApiError::field("prefault", text));
        }
        let slot = self.free(&name)?;
        self.usable(slot)?;
        let (device, memory) = self.slots[slot];
        let view = PartitionView {
            id: PartitionId(slot as u32),
            node: device.node,
            name: name.clone(),
            cookie,
            state: PartitionState::Absent,
            requested: size,
            plugged: Bytes::ZERO,
            peak: Bytes::ZERO,
            policy: Policy { keep: true, ..policy },
            hints: Hints::default(),
            last_release: None,
            last_released: Bytes::ZERO,
            counters: Counters::default(),
        };
        let before = memory.look(|books| books.shared().counters);
        self.table.lock()[slot] = Some(Held { view, before });
        if let Err(error) = self.want(slot, &name, size) {
            self.table.lock()[slot] = None;
            return Err(error);
        }
        self.table.asked(slot, self.waiting, self.events);
        self.shown(slot, &name)
    }

    fn resize(&self, name: &PartitionName, size: Bytes) -> Result<Reply, ApiError> {
        let (slot, _) = self.table.find(name).ok_or_else(|| unknown(name))?;
        if self.want(slot, name, size)? == Resize::Unchanged {
            return Ok(Reply::Done);
        }
        self.shown(slot, name)
    }

    fn remove(&self, removal: &Removal) -> Result<Reply, ApiError> {
        let name = &removal.name;
        let (slot, found) = self.table.find(name).ok_or_else(|| unknown(name))?;
        self.ask_back(removal, slot, &found)
    }

    fn removal_outcome(&self, name: &PartitionName) -> Result<Reply, ApiError> {
        let (slot, left) = self.table.find(name).ok_or_else(|| unknown(name))?;
        if left.requested != Bytes::ZERO {
            return Err(wanted_again(name));
        }
        self.tell_stuck(slot);
        Err(self.not_back(slot, &left))
    }
}

impl Slots<'_> {
    /// Whether the VM has none.
    pub(super) fn none(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether there is a partition of that name in one of them.
    pub(super) fn holds(&self, name: &PartitionName) -> bool {
        self.table.find(name).is_some()
    }

    /// The partitions that are in slots.
    pub(super) fn list(&self) -> Vec<PartitionReply> {
        let slots = self.table.lock().clone();
        let shown = |(slot, held): (usize, Option<Held>)| Some(self.reply(slot, &held?.view));
        slots.into_iter().enumerate().filter_map(shown).collect()
    }

    /// Asks the guest of a fresh machine for what its last one was asked for.
    pub(super) fn renew(&self) {
        let wanted: Vec<_> = self.table.lock().iter().cloned().enumerate().collect();
        for (slot, held) in wanted.into_iter().filter_map(|(slot, held)| Some((slot, held?))) {
            if let Err(problem) = self.ask(slot, &held.view.name, held.view.requested, None) {
                error!("partition {} does not come back: {problem}", held.view.name);
            }
        }
    }

    /// A slot for a new partition called `name`.
    fn free(&self, name: &PartitionName) -> Result<usize, ApiError> {
        let conflict = |text: String| Err(ApiError::new(ErrorKind::WrongState, text));
        let slots = self.table.lock();
        if slots.iter().flatten().any(|held| held.view.name == *name) {
            return conflict(format!("there is a partition {name} already"));
        }
        match slots.iter().position(Option::is_none) {
            Some(slot) => Ok(slot),
            None => conflict(format!(
                "all {} slots are taken; remove a partition, or make memory.partitions.slots \
                 larger (16 at most) when the VM is created",
                slots.len()
            )),
        }
    }

    /// Whether the guest will make a node of what is plugged in a slot.
    fn usable(&self, slot: usize) -> Result<(), ApiError> {
        let (_, memory) = self.slots[slot];
        let text = match (self.takes_node)(memory) {
            Some(true) => return Ok(()),
            Some(false) => {
                "the guest's kernel has no NUMA nodes, and a partition in a slot is one: boot it \
                 without numa=off, or one built with CONFIG_NUMA and CONFIG_ACPI_NUMA"
            }
            None => {
                "the guest's driver for this memory is not up: its kernel has no virtio-mem, or has \
                 not got that far"
            }
        };
        Err(ApiError::new(ErrorKind::WrongState, text))
    }

    /// Wants back a partition that was found a moment ago: the guest may have given it back since.
    fn ask_back(
        &self,
        removal: &Removal,
        slot: usize,
        found: &PartitionView,
    ) -> Result<Reply, ApiError> {
        let again = found.requested == Bytes::ZERO;
        let pending = self.waiting.add(removal, found.id);
        self.ask(slot, &removal.name, Bytes::ZERO, None)?;
        match self.table.find(&removal.name) {
            Some((_, left)) if removal.timeout == Duration::ZERO => {
                if again {
                    self.tell_stuck(slot);
                }
                return Err(self.not_back(slot, &left));
            }
            Some(_) if again => self.slots[slot].1.remind(),
            // One that has gone was told with the table locked: who asks has its answer.
            _ => {}
        }
        Ok(Reply::Pending(pending))
    }

    /// A removal was asked for again, or its patience is over, and the guest has not given it all.
    fn tell_stuck(&self, slot: usize) {
        let Some(view) = self.table.stuck(slot) else { return };
        let (plugged, node) = (view.plugged.as_u64(), self.slots[slot].0.node.unwrap_or_default());
        let properties: [(&str, &dyn Display); 3] =
            [("id", &view.name), ("node", &node), ("plugged", &plugged)];
        self.events.event("partition", "stuck", &properties);
    }

    /// Why a removal is not done yet.
    fn not_back(&self, slot: usize, left: &PartitionView) -> ApiError {
        let PartitionView { name, plugged, .. } = left;
        let node = self.slots[slot].0.node.unwrap_or_default();
        let text = format!(
            "partition {name}: the guest has not given back {plugged} of node {node} yet; what is \
             left there it must move first. In the guest, `tessera-function check {node}` tells what \
             that is: a process of the function's, files that it read or wrote in memory, or \
             processes that no cpuset keeps away"
        );
        ApiError::new(ErrorKind::WrongState, text)
    }

    /// Wants a slot to have `size`, which is not nothing.
    fn want(&self, slot: usize, name: &PartitionName, size: Bytes) -> Result<Resize, ApiError> {
        let (device, _) = self.slots[slot];
        if size == Bytes::ZERO || size > device.size {
            let (least, most) = (device.block, device.size);
            let problem = format!("{size} does not fit a slot; use {least} to {most}");
            return Err(ApiError::field("size", problem));
        }
        self.ask(slot, name, size, (self.host_free)(&device.id))
    }

    /// Asks the guest for another size of the partition called `name`, which was in a slot a moment
    /// ago.
    fn ask(
        &self,
        slot: usize,
        name: &PartitionName,
        size: Bytes,
        free: Option<Bytes>,
    ) -> Result<Resize, ApiError> {
        let (_, memory) = self.slots[slot];
        // Before the device knows: what the guest did for an earlier wish may be told any time.
        let before = self.table.set_requested(slot, size).ok_or_else(|| unknown(name))?;
        memory.resize_shared(size, free).map_err(|error| {
            self.table.set_requested(slot, before);
            refused("size")(error)
        })
    }

    fn shown(&self, slot: usize, name: &PartitionName) -> Result<Reply, ApiError> {
        let (_, view) = self.table.find(name).ok_or_else(|| unknown(name))?;
        Ok(Reply::Partition(self.reply(slot, &view).into()))
    }

    fn reply(&self, slot: usize, view: &PartitionView) -> PartitionReply {
        let (device, memory) = self.slots[slot];
        let (addr, size) = (memory.look(|books| books.geometry().addr()), device.size.as_u64());
        PartitionReply { extents: vec![ExtentReply { addr, size }], ..view.into() }
    }
}

#[cfg(test)]
mod tests;
