//! The one VM of this process: its configuration, and the machine while it runs.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::virtio::mem::MemHandle;
use log::info;
use memctl::{Bytes, PartitionName};
use vmm_sys_util::epoll::Epoll;

use super::memory::Listeners;
use super::partitions::{self, Home, HostFree, Partitions, Removal, Wish};
use super::slots::{self, SlotTable, Slots};
use super::{Error, memory, refused};
use crate::api::config::{CharConfig, VmConfig};
use crate::api::{
    ApiError, Counters, DeviceNode, ErrorKind, EventMonitor, InfoReply, Reply, Request, VmState,
};
use crate::machine::chardev::CharDevice;
use crate::machine::spec::{PARTITIONS_ID, Spec};
use crate::machine::{self, Attached, Builder, Characters, Machine, Signals, Surroundings};

/// A VM from `vm.create` to `vm.delete`. Owned by the monitor.
pub(super) struct Instance {
    config: VmConfig,
    spec: Spec,
    characters: Characters,
    signals: Arc<Signals>,
    serial: Arc<Epoll>,
    events: EventMonitor,
    machine: Option<Machine>,
    /// Who waits for its guest, and is told of its memory.
    listeners: Listeners,
}

impl Instance {
    /// Checks `config` and opens what its serial port and console are connected to.
    pub(super) fn new(
        mut config: VmConfig,
        signals: Arc<Signals>,
        serial: Arc<Epoll>,
        events: EventMonitor,
    ) -> Result<Self, Error> {
        let spec = Spec::try_from(&config)?;
        let characters = Characters::open(&spec)?;
        show_pty(&characters.serial, &mut config.serial);
        show_pty(&characters.console, &mut config.console);
        let (waiting, slots) = (Arc::default(), Arc::new(SlotTable::new(&spec)));
        let listeners = Listeners { events: events.clone(), waiting, slots };
        let machine = None;
        Ok(Self { config, spec, characters, signals, serial, events, machine, listeners })
    }

    /// Carries out a request to an existing VM: the transitions drawn in [`super`].
    pub(super) fn call(&mut self, request: Request) -> Result<Reply, ApiError> {
        match (&mut self.machine, request) {
            (_, Request::Info) => return Ok(Reply::Info(Box::new(self.info()))),
            (_, Request::Resize { desired_ram }) => self.resize(desired_ram)?,
            (_, Request::ResizeZone { id, desired_ram }) => self.resize_zone(&id, desired_ram)?,
            (_, Request::Partitions) => return Ok(self.partitions()),
            (_, Request::AddPartition { id: name, size, policy, cookie }) => {
                return self.home(&name)?.add(Wish { name, cookie, size, policy });
            }
            (_, Request::ResizePartition { id, size }) => return self.home(&id)?.resize(&id, size),
            (_, Request::RemovePartition { id: name, timeout, evacuate }) => {
                return self.home(&name)?.remove(&Removal { name, timeout, evacuate });
            }
            (_, Request::RemovalOutcome { id }) => return self.home(&id)?.removal_outcome(&id),
            (Some(machine), Request::Counters) => return Ok(Reply::Counters(counters(machine))),
            (None, Request::Boot) => self.boot().map_err(internal)?,
            (Some(machine), Request::Pause) if !machine.is_paused() => {
                machine.pause();
                self.events.event("vm", "paused", &[]);
            }
            (Some(machine), Request::Resume) if machine.is_paused() => {
                machine.resume().map_err(internal)?;
                self.events.event("vm", "resumed", &[]);
            }
            (Some(_), Request::Shutdown) => self.shutdown(),
            (Some(_), Request::Reboot) => self.reboot(VmState::Running).map_err(internal)?,
            (Some(machine), Request::PowerButton) => machine.press_power_button(),
            (Some(machine), Request::Nmi) => machine.nmi(),
            (_, request) => return Err(self.not_now(&request)),
        }
        Ok(Reply::Done)
    }

    /// Builds the machine and lets it run.
    pub(super) fn boot(&mut self) -> Result<(), machine::Error> {
        self.boot_to(VmState::Running, Vec::new())
    }

    fn boot_to(&mut self, state: VmState, wishes: Vec<Wish>) -> Result<(), machine::Error> {
        self.events.event("vm", "booting", &[]);
        let around = Surroundings {
            signals: &self.signals,
            characters: &self.characters,
            serial: &self.serial,
            memory_observer: &|id| {
                let slot = slots::devices(&self.spec).position(|device| device.id == id);
                self.listeners.observer(slot, id)
            },
        };
        let mut machine = Builder::build(&self.spec, around)?;
        if let Some(memory) = machine.memory(PARTITIONS_ID) {
            partitions::renew(memory, wishes);
        }
        self.slots(&machine).renew();
        if state == VmState::Running {
            machine.resume()?;
        }
        self.machine = Some(machine);
        self.events.event("vm", "booted", &[]);
        Ok(())
    }

    /// Wants the guest to have `desired` of memory, partitions not counted.
    fn resize(&mut self, desired: Bytes) -> Result<(), ApiError> {
        if !self.config.memory.zones.is_empty() {
            let text = "the VM has memory zones; use vm.resize-zone for one of them";
            return Err(ApiError::new(ErrorKind::Invalid, text));
        }
        let plugged = memory::resize(&mut self.spec, self.machine.as_ref(), 0, desired)?;
        self.config.memory.hotplugged_size = Some(plugged.as_u64());
        Ok(())
    }

    /// Wants one of the VM's zones to have `desired` of memory.
    fn resize_zone(&mut self, id: &str, desired: Bytes) -> Result<(), ApiError> {
        let zones = &mut self.config.memory.zones;
        let index = zones.iter().position(|zone| zone.id == id).ok_or_else(|| {
            let use_instead = if zones.is_empty() { "; use vm.resize" } else { "" };
            let text = format!("there is no memory zone {id:?}{use_instead}");
            ApiError::new(ErrorKind::NotFound, text)
        })?;
        let plugged = memory::resize(&mut self.spec, self.machine.as_ref(), index, desired)?;
        zones[index].hotplugged_size = Some(plugged.as_u64());
        Ok(())
    }

    fn partition_memory(&self) -> Option<&MemHandle> {
        self.machine()?.memory(PARTITIONS_ID)
    }

    fn slots<'a>(&'a self, machine: &'a Machine) -> Slots<'a> {
        let Listeners { waiting, slots: table, events } = &self.listeners;
        let slots = slots::devices(&self.spec);
        Slots {
            slots: slots.filter_map(|device| Some((device, machine.memory(&device.id)?))).collect(),
            table,
            waiting,
            host_free: self.host_free(machine),
            events,
            takes_node: Box::new(|memory| {
                let numa = !slots::numa_off(&self.spec.payload.cmdline);
                Some(memory.driver_takes_node()? && numa)
            }),
        }
    }

    fn host_free<'a>(&'a self, machine: &'a Machine) -> HostFree<'a> {
        Box::new(|id| memory::host_free(&self.spec, machine, id))
    }

    /// All partitions; none where the VM does not run.
    fn partitions(&self) -> Reply {
        let mut list = self.partition_memory().map(partitions::list).unwrap_or_default();
        list.extend(self.machine().into_iter().flat_map(|machine| self.slots(machine).list()));
        Reply::Partitions(list)
    }

    /// Where the partition called `name` is, or would be: in a slot when it is in one, or when there
    /// are slots and the guest has no channel.
    fn home(&self, name: &PartitionName) -> Result<Box<dyn Home + '_>, ApiError> {
        let machine = self.machine().ok_or_else(not_booted)?;
        let slots = self.slots(machine);
        let holds = |memory: &MemHandle| memory.find_partition(name.as_str()).is_some();
        let fits = |memory: &&MemHandle| {
            !slots.holds(name) && (slots.none() || memory.channel_is_up() || holds(memory))
        };
        match machine.memory(PARTITIONS_ID).filter(fits) {
            Some(memory) => Ok(Box::new(Partitions {
                memory,
                waiting: &self.listeners.waiting,
                host_free: self.host_free(machine),
            })),
            None if slots.none() => {
                let text = "the VM has no room for partitions; create it with memory.partitions";
                Err(ApiError::new(ErrorKind::WrongState, text))
            }
            None => Ok(Box::new(slots)),
        }
    }

    /// Ends the machine at once and keeps the configuration.
    fn shutdown(&mut self) {
        self.end();
        self.listeners.slots = Arc::new(SlotTable::new(&self.spec));
        info!("the VM was shut down");
        self.events.event("vm", "shutdown", &[]);
    }

    /// Drops the machine and what it said last, and tells who waits for its guest that it is gone.
    fn end(&mut self) {
        self.machine = None;
        self.signals.drain();
        self.listeners.waiting = Arc::default();
    }

    /// The guest's own reboot. It may have asked just before it was paused.
    pub(super) fn reset(&mut self) -> Result<(), machine::Error> {
        self.reboot(self.state())
    }

    /// Replaces the machine by a fresh one in `state`, whose guest is asked for the same partitions.
    fn reboot(&mut self, state: VmState) -> Result<(), machine::Error> {
        self.events.event("vm", "rebooting", &[]);
        // A guest that ran on could give back what is then asked for again.
        if let Some(machine) = &mut self.machine {
            machine.pause();
        }
        let wishes = self.partition_memory().map(partitions::wishes).unwrap_or_default();
        let mut unwanted = self.partition_memory().map(partitions::unwanted).unwrap_or_default();
        unwanted.extend(self.listeners.slots.unwanted());
        self.listeners.slots = Arc::new(self.listeners.slots.renewed());
        // The old machine's memory is given back before the new one's is taken.
        self.machine = None;
        let Listeners { waiting, events, .. } = &self.listeners;
        unwanted.iter().for_each(|one| partitions::ended(one, waiting, events));
        self.end();
        // Where that fails, the VM is shut down, and forgets all of its partitions alike.
        self.boot_to(state, wishes).inspect_err(|_| self.shutdown())?;
        self.events.event("vm", "rebooted", &[]);
        Ok(())
    }

    /// Why a vCPU ended by itself, if one did.
    pub(super) fn fault(&mut self) -> Option<Error> {
        let machine = self.machine.as_mut()?;
        let fault = machine.stop()?;
        Some(refused::fault(machine, fault, &self.events))
    }

    /// Tells of the accesses to closed memory. Returns why the VM is to end, if it is.
    pub(super) fn report_refused(&self) -> Option<Error> {
        refused::report(self.machine.as_ref()?, self.spec.refused_access, &self.events)
    }

    pub(super) fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// The terminal changed its size, or we have it back from the shell.
    pub(super) fn refresh_terminal(&self) {
        let devices = [&self.characters.serial, &self.characters.console];
        devices.into_iter().flatten().for_each(CharDevice::refresh);
        if let (Some(machine), Some(console)) = (&self.machine, &self.characters.console) {
            machine.resize_console(console.window_size());
        }
    }

    fn state(&self) -> VmState {
        match &self.machine {
            None => VmState::Created,
            Some(machine) if machine.is_paused() => VmState::Paused,
            Some(_) => VmState::Running,
        }
    }

    fn not_now(&self, request: &Request) -> ApiError {
        let message = match (request, self.state()) {
            (Request::Resume, VmState::Running) => "the VM is running already",
            (Request::Pause, VmState::Paused) => "the VM is paused already",
            (Request::Boot, _) => "the VM has booted already; vm.reboot or vm.resume it",
            _ => return not_booted(),
        };
        ApiError::new(ErrorKind::WrongState, message)
    }

    fn info(&self) -> InfoReply {
        let machine = self.machine.as_ref();
        let devices = machine.map(Machine::devices).unwrap_or_default();
        let memory = devices.iter().filter_map(|device| device.memory.as_ref());
        let plugged: u64 = memory.map(|memory| memory.plugged().as_u64()).sum();
        InfoReply {
            config: self.config.clone(),
            state: self.state(),
            memory_actual_size: self.spec.ram().as_u64() + plugged,
            device_tree: devices
                .iter()
                .map(|device| (device.id.clone(), self.node(device)))
                .collect(),
        }
    }

    fn node(&self, device: &Attached) -> DeviceNode {
        let Attached { id, address, memory, .. } = device;
        DeviceNode {
            id: id.clone(),
            pci_bdf: address.map(|address| address.to_string()),
            memory: memory.as_ref().map(|memory| memory::region(&self.spec, id, memory)),
            ..DeviceNode::default()
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.end();
    }
}

/// Clients read the path of a pseudo-terminal from the configuration.
fn show_pty(device: &Option<CharDevice>, config: &mut CharConfig) {
    if let Some(path) = device.as_ref().and_then(CharDevice::pty_path) {
        config.file = Some(path.to_owned());
    }
}

fn not_booted() -> ApiError {
    ApiError::new(ErrorKind::WrongState, "the VM has not booted; vm.boot it first")
}

fn internal(error: machine::Error) -> ApiError {
    ApiError::from_error(ErrorKind::Internal, &error).context("the VM could not boot")
}

/// Counters by device, the vCPUs' exits under `_vcpus`, and accesses to closed memory under
/// `_memory`.
fn counters(machine: &Machine) -> Counters {
    let devices = machine.devices().iter().map(|device| (device.id.clone(), device.counters()));
    let exits = ("_vcpus".to_owned(), machine.exits());
    let refused = ("_memory".to_owned(), machine.refused());
    devices
        .chain([exits, refused])
        .map(|(id, counters)| (id, counters.into_iter().collect::<BTreeMap<_, _>>()))
        .collect()
}
