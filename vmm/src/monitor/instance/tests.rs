//! A VM between two machines, without one.

use devices::virtio::mem::Mem;
use memctl::{Cookie, Geometry, Layout, Policy};

use std::time::Duration;

use super::super::slots::Moved;
use super::super::testing::{Host, VmFiles, removed};
use super::*;
use crate::api::Endpoint;
use crate::machine::spec::MemDevice;

fn instance(files: &VmFiles) -> Instance {
    let (signals, serial) = (Signals::new().unwrap(), Epoll::new().unwrap());
    let events = EventMonitor::default();
    Instance::new(files.config(), Arc::new(signals), Arc::new(serial), events).unwrap()
}

impl Instance {
    /// Does `act` with the slots of a machine.
    fn with_slots<T>(&self, act: impl FnOnce(&Slots<'_>) -> T) -> T {
        let handle = |device: &MemDevice| {
            let geometry = Geometry::new(4 << 30, device.block, device.size).unwrap();
            let layout = Layout::shared_only(geometry);
            Mem::new(layout, device.node, Box::new(Host), Box::new(|_| ())).handle()
        };
        let handles: Vec<_> = slots::devices(&self.spec).map(handle).collect();
        let Listeners { waiting, slots: table, events } = &self.listeners;
        act(&Slots {
            slots: slots::devices(&self.spec).zip(&handles).collect(),
            table,
            waiting,
            host_free: Box::new(|_| None),
            events,
            takes_node: Box::new(|_| Some(true)),
        })
    }
}

/// A channel's partitions are forgotten with the machine that held them.
#[test]
fn a_reboot_that_fails_forgets_the_partitions_in_slots_too() {
    let files = VmFiles::new();
    let mut vm = instance(&files);
    let (name, cookie) = ("a".parse().unwrap(), Cookie(9));
    let wish = Wish { name, cookie, size: Bytes::mib(64), policy: Policy::default() };
    vm.with_slots(|slots| slots.add(wish)).unwrap();
    assert_eq!(vm.with_slots(|slots| slots.list().len()), 1);
    assert!(vm.reboot(VmState::Running).is_err(), "it has no kernel");
    assert!(vm.with_slots(|slots| slots.list().is_empty()));
}

/// The client was told of a conflict, and who watches of nothing.
#[test]
fn a_partition_that_goes_with_its_machine_is_told_to_who_waits_and_who_watches() {
    let (files, folder) = (VmFiles::new(), tempfile::tempdir().unwrap());
    let path = folder.path().join("events");
    let mut vm = instance(&files);
    vm.listeners.events = EventMonitor::start(&Endpoint::Path(path.clone())).unwrap();
    let (name, size) = ("a".parse::<PartitionName>().unwrap(), Bytes::mib(64));
    let wish = Wish { name: name.clone(), cookie: Cookie(9), size, policy: Policy::default() };
    vm.with_slots(|slots| slots.add(wish)).unwrap();
    let Listeners { waiting, slots, events } = &vm.listeners;
    let (counters, freeing) = (Default::default(), Duration::ZERO);
    let moved = Moved { requested: size, plugged: size, counters, freeing };
    slots.moved(0, moved, waiting, events);
    let removal = Removal { name, timeout: Duration::from_secs(60), evacuate: false };
    let removing = vm.with_slots(|slots| slots.remove(&removal));
    vm.reboot(VmState::Running).unwrap_err();
    assert_eq!(removed(removing).id, "a");
    drop(vm);
    let told = std::fs::read_to_string(path).unwrap();
    assert!(told.contains(r#""state":"absent""#), "{told}");
}
