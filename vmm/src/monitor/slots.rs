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
//! tell; on their threads the table moves on. No device is called with its lock held.

use std::sync::{Mutex, MutexGuard, PoisonError};

use devices::virtio::mem::{MemHandle, PartitionView};
use log::error;
use memctl::{Bytes, Counters, Hints, PartitionId, PartitionName, PartitionState, Resize};

use super::memory::refused;
use super::partitions::{
    Home, HostFree, Removal, Waiting, Wish, changed, gone, still_there, unknown,
};
use crate::api::{ApiError, ErrorKind, EventMonitor, ExtentReply, PartitionReply, Reply};
use crate::machine::spec::{MemDevice, Role, Spec};

/// Which partition is in which slot.
#[derive(Default)]
pub(super) struct SlotTable(Mutex<Vec<Option<PartitionView>>>);

/// The slots of one machine.
pub(super) struct Slots<'a> {
    /// Each with its device.
    pub(super) slots: Vec<(&'a MemDevice, &'a MemHandle)>,
    pub(super) table: &'a SlotTable,
    pub(super) waiting: &'a Waiting,
    pub(super) host_free: HostFree<'a>,
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
        let wanted = |view: &PartitionView| {
            let fresh = (view.requested != Bytes::ZERO).then(|| view.clone())?;
            let (state, plugged) = (PartitionState::Requested, Bytes::ZERO);
            Some(PartitionView { state, plugged, ..fresh })
        };
        let slots = self.lock().iter().map(|slot| slot.as_ref().and_then(wanted)).collect();
        Self(Mutex::new(slots))
    }

    /// The device of a slot has or wants another amount of memory. On the device's thread, or on
    /// that of who wants it.
    pub(super) fn moved(
        &self,
        slot: usize,
        (requested, plugged): (Bytes, Bytes),
        waiting: &Waiting,
        events: &EventMonitor,
    ) {
        let mut slots = self.lock();
        let Some(entry) = slots.get_mut(slot) else { return };
        let Some(view) = entry else { return };
        let from = view.state;
        view.plugged = plugged;
        view.peak = view.peak.max(plugged);
        view.state = match (requested, plugged) {
            (Bytes::ZERO, Bytes::ZERO) => PartitionState::Absent,
            (wanted, has) if has < wanted => PartitionState::Requested,
            _ => PartitionState::Plugged,
        };
        let now = view.clone();
        if now.state == PartitionState::Absent {
            *entry = None;
        }
        drop(slots);
        if now.state != from {
            changed(&now, from, waiting, events);
        }
    }

    fn find(&self, name: &PartitionName) -> Option<(usize, PartitionView)> {
        let slots = self.lock();
        let mut held = slots.iter().enumerate();
        held.find_map(|(slot, view)| Some((slot, view.clone().filter(|its| its.name == *name)?)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<PartitionView>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Home for Slots<'_> {
    fn add(&self, wish: Wish) -> Result<Reply, ApiError> {
        let conflict = |text: String| Err(ApiError::new(ErrorKind::WrongState, text));
        let Wish { name, cookie, size, policy } = wish;
        let slot = {
            let mut slots = self.table.lock();
            if slots.iter().flatten().any(|view| view.name == name) {
                return conflict(format!("there is a partition {name} already"));
            }
            let Some(slot) = slots.iter().position(Option::is_none) else {
                return conflict(format!("all {} slots are taken", slots.len()));
            };
            slots[slot] = Some(PartitionView {
                id: PartitionId(slot as u32),
                name: name.clone(),
                cookie,
                state: PartitionState::Requested,
                requested: size,
                plugged: Bytes::ZERO,
                peak: Bytes::ZERO,
                policy,
                evacuate: false,
                hints: Hints::default(),
                last_release: None,
                last_released: Bytes::ZERO,
                counters: Counters::default(),
            });
            slot
        };
        if let Err(error) = self.want(slot, size) {
            self.table.lock()[slot] = None;
            return Err(error);
        }
        self.shown(slot, &name)
    }

    fn resize(&self, name: &PartitionName, size: Bytes) -> Result<Reply, ApiError> {
        let (slot, _) = self.table.find(name).ok_or_else(|| unknown(name))?;
        if self.want(slot, size)? == Resize::Unchanged {
            return Ok(Reply::Done);
        }
        self.shown(slot, name)
    }

    fn remove(&self, removal: &Removal) -> Result<Reply, ApiError> {
        let name = &removal.name;
        let (slot, view) = self.table.find(name).ok_or_else(|| unknown(name))?;
        let pending = self.waiting.add(removal);
        self.ask(slot, Bytes::ZERO, None)?;
        if let Some(pending) = pending {
            return Ok(Reply::Pending(pending));
        }
        match self.table.find(name) {
            Some((_, left)) => Err(still_there(&left)),
            None => Ok(gone(&view)),
        }
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
        let shown = |(slot, view): (usize, Option<PartitionView>)| Some(self.reply(slot, &view?));
        slots.into_iter().enumerate().filter_map(shown).collect()
    }

    /// Asks the guest of a fresh machine for what its last one was asked for.
    pub(super) fn renew(&self) {
        let wanted: Vec<_> = self.table.lock().iter().cloned().enumerate().collect();
        for (slot, view) in wanted.into_iter().filter_map(|(slot, view)| Some((slot, view?))) {
            if let Err(problem) = self.ask(slot, view.requested, None) {
                error!("partition {} does not come back: {problem}", view.name);
            }
        }
    }

    /// Wants a slot to have `size`, which is not nothing.
    fn want(&self, slot: usize, size: Bytes) -> Result<Resize, ApiError> {
        let (device, _) = self.slots[slot];
        if size == Bytes::ZERO || size > device.size {
            let (least, most) = (device.block, device.size);
            let problem = format!("{size} does not fit a slot; use {least} to {most}");
            return Err(ApiError::field("size", problem));
        }
        self.ask(slot, size, (self.host_free)(&device.id))
    }

    fn ask(&self, slot: usize, size: Bytes, free: Option<Bytes>) -> Result<Resize, ApiError> {
        let (_, memory) = self.slots[slot];
        let wanted = memory.resize_shared(size, free).map_err(refused("size"))?;
        if let Some(view) = &mut self.table.lock()[slot] {
            view.requested = size;
        }
        Ok(wanted)
    }

    fn shown(&self, slot: usize, name: &PartitionName) -> Result<Reply, ApiError> {
        let (_, view) = self.table.find(name).ok_or_else(|| unknown(name))?;
        Ok(Reply::Partition(self.reply(slot, &view).into()))
    }

    fn reply(&self, slot: usize, view: &PartitionView) -> PartitionReply {
        let (device, memory) = self.slots[slot];
        let (addr, size) = (memory.look(|books| books.geometry().addr()), device.size.as_u64());
        PartitionReply {
            node: device.node,
            extents: vec![ExtentReply { addr, size }],
            ..view.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use devices::virtio::mem::{Mem, Observer};
    use memctl::{Cookie, Geometry, Layout, Policy};

    use super::super::testing::{Host, Nobody};
    use super::*;
    use crate::machine::spec::{Backing, Memory};
    use crate::monitor::memory::Listeners;

    /// Two slots of 256 MiB, and the devices of a machine with them.
    struct Rig {
        devices: Vec<MemDevice>,
        handles: Vec<MemHandle>,
        listeners: Listeners,
    }

    impl Rig {
        /// The test plays the guest, through [`Rig::plugs`].
        fn new() -> Self {
            let devices: Vec<_> = (0..2).map(device).collect();
            let listeners = Listeners {
                events: EventMonitor::default(),
                waiting: Arc::default(),
                slots: Arc::new(SlotTable(Mutex::new(vec![None; 2]))),
            };
            let handles = handles(&devices, |_| Box::new(|_| ()));
            Self { devices, handles, listeners }
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
            }
        }

        /// The guest has so many MiB of a slot.
        fn plugs(&self, slot: usize, mib: u64) {
            let requested = self.handles[slot].sizes().requested;
            let Listeners { events, waiting, slots } = &self.listeners;
            slots.moved(slot, (requested, Bytes::mib(mib)), waiting, events);
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
            memory: Memory {
                backing: Backing::Anonymous,
                prefault: false,
                thp: true,
                mergeable: false,
                reserve: false,
                host_node: None,
            },
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

    #[test]
    fn a_partition_is_a_node_until_the_guest_has_given_it_back() {
        let rig = Rig::new();
        let added = shown(rig.slots().add(wish("a", 128)));
        assert_eq!((added.node, added.extents[0].addr), (Some(1), 4 << 30));
        assert_eq!((added.size, added.cookie), (128 << 20, 9));
        rig.plugs(0, 64);
        assert_eq!(rig.states(), [("a".into(), PartitionState::Requested, 64)]);
        rig.plugs(0, 128);
        assert_eq!(rig.states(), [("a".into(), PartitionState::Plugged, 128)]);

        let Reply::Pending(pending) = rig.slots().remove(&removal("a", 60)).unwrap() else {
            panic!("not waited for")
        };
        assert!(problem(rig.slots().remove(&removal("a", 0))).contains("partition a is plugged"));
        rig.plugs(0, 2);
        assert_eq!(rig.states().len(), 1);
        rig.plugs(0, 0);
        assert_eq!(rig.states(), []);
        let gone = shown(pending.wait(&Nobody));
        assert!(gone.state == PartitionState::Absent && gone.removal_us.is_some());
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
    fn another_size_is_another_wish() {
        let rig = Rig::new();
        rig.slots().add(wish("a", 2)).unwrap();
        let name = "a".parse().unwrap();
        let resize = |mib| rig.slots().resize(&name, Bytes::mib(mib));
        assert!(matches!(resize(2), Ok(Reply::Done)));
        assert_eq!(shown(resize(4)).size, 4 << 20);
        assert_eq!(rig.handles[0].sizes().requested, Bytes::mib(4));
        assert!(problem(resize(0)).contains("does not fit a slot"));
    }

    #[test]
    fn a_partition_that_nobody_has_taken_goes_at_once() {
        let rig = Rig::without_guest();
        rig.slots().add(wish("a", 2)).unwrap();
        let gone = shown(rig.slots().remove(&removal("a", 0)));
        assert_eq!((gone.state, gone.size), (PartitionState::Absent, 0));
        assert_eq!(rig.states(), []);
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
        assert_eq!(rig.handles[1].sizes().requested, Bytes::mib(4));
        assert_eq!(rig.slots().list()[0].node, Some(2));
    }
}
