//! A VM between two machines, without one.

use devices::virtio::mem::Mem;
use memctl::{Cookie, Geometry, Layout, Policy};

use super::super::testing::{Host, VmFiles};
use super::*;
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
