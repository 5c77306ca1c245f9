//! From a [`Spec`] to a [`Machine`].

use std::error::Error as StdError;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use devices::bus::Bus;
use devices::guest_memory::GuestMemory;
use devices::pci::{Apertures, PciRoot};
use devices::platform::power::{Events, PowerRegisters};
use devices::platform::rtc::Rtc;
use devices::serial::SerialPort;
use devices::virtio::block::{Block, BlockOptions};
use devices::virtio::console::{Console, ConsoleHandle};
use devices::virtio::device::VirtioDevice;
use devices::virtio::mem::{Mem, Observer};
use devices::virtio::rng::Rng;
use devices::virtio::transport::VirtioPci;
use memctl::{Blocks, Geometry, Layout};
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chardev::{CharDevice, CharError};
use super::refusals::Refusals;
use super::spec::{self, Node, Role, Spec};
use super::table::{Attached, Model, SerialEvents, Table};
use super::{Error, Machine, Signals};
use crate::arch::x86_64::{acpi, boot, layout, registers, reset_vector};
use crate::disk;
use crate::kvm::cpuid::{self, Topology};
use crate::kvm::vcpu::{Buses, VcpuState, Vcpus};
use crate::kvm::{Vm, VmHandle};
use crate::memory::{self, GuestRam, HotplugMemory, Room};

/// What a machine's serial port and console are connected to. Opened before the first boot and kept
/// over reboots, so that a pseudo-terminal's client stays connected.
pub struct Characters {
    /// For COM1; `None` where the VM has none.
    pub serial: Option<CharDevice>,
    /// For the virtio console; `None` where the VM has none.
    pub console: Option<CharDevice>,
}

impl Characters {
    /// Opens both.
    ///
    /// # Errors
    /// A terminal, file or socket can't be opened.
    pub fn open(spec: &Spec) -> Result<Self, CharError> {
        let (serial, console) = (CharDevice::open(&spec.serial)?, CharDevice::open(&spec.console)?);
        Ok(Self { serial, console })
    }
}

/// What a machine is connected to. It outlives any one machine.
pub struct Surroundings<'a> {
    /// What the machine tells the monitor.
    pub signals: &'a Signals,
    /// What serial port and console are connected to.
    pub characters: &'a Characters,
    /// The serial port's descriptors are added here.
    pub serial: &'a Arc<Epoll>,
    /// Makes who is told when memory of the device with this id changes hands; called on a device
    /// thread.
    pub memory_observer: &'a dyn Fn(&str) -> Observer,
}

/// A machine under construction.
pub struct Builder<'a> {
    spec: &'a Spec,
    signals: &'a Signals,
    vm: Arc<Vm>,
    memory: Arc<GuestMemory>,
    ram: Vec<Range<u64>>,
    rooms: Vec<Range<u64>>,
    physical_bits: u8,
    memory_64: Option<Range<u64>>,
    ports: Bus,
    pci: Arc<PciRoot>,
    devices: Table,
    refusals: Arc<Refusals>,
}

impl<'a> Builder<'a> {
    /// Builds the machine that `spec` describes, paused.
    ///
    /// # Errors
    /// KVM, the host, or a file of the payload; nothing is left behind.
    pub fn build(spec: &'a Spec, around: Surroundings<'a>) -> Result<Machine, Error> {
        let (mut builder, hotplug) = Self::new(spec, around.signals)?;
        let power = builder.power()?;
        let serial = builder.serial(around.characters, around.serial)?;
        let console = builder.console(around.characters)?;
        builder.rng()?;
        for disk in &spec.disks {
            builder.disk(disk)?;
        }
        for (index, memory) in hotplug.into_iter().enumerate() {
            builder.mem_device(index, memory, around.memory_observer)?;
        }
        let (vm, memory) = (Arc::clone(&builder.vm), Arc::clone(&builder.memory));
        let refusals = Arc::clone(&builder.refusals);
        let (vcpus, devices) = builder.finish(serial.is_some())?;
        Ok(Machine {
            vcpus,
            devices,
            serial,
            console,
            refusals,
            power,
            vm,
            memory,
            stopped_clock: None,
            paused: true,
        })
    }

    /// The machine's memory and empty buses. Also returns, for each memory device, the means to open
    /// and close its room.
    fn new(spec: &'a Spec, signals: &'a Signals) -> Result<(Self, Vec<HotplugMemory>), Error> {
        let vm = Vm::new()?;
        let physical_bits = cpuid::physical_bits(vm.supported_cpuid(), spec.cpus.max_phys_bits);
        let ram = layout::ram(spec.ram());
        let sizes = spec.mem_devices.iter().map(|device| device.size);
        let rooms = layout::hotplug(&ram, sizes, physical_bits).ok_or(memory::Error::TooLarge)?;
        let GuestRam { memory, hotplug } = memory::allocate(&plan(spec, &rooms), vm.readers())?;
        vm.map_memory(&memory)?;
        let memory_end = ram.iter().chain(&rooms).last().map_or(0, |range| range.end);
        let memory_64 = layout::pci_memory_64(memory_end, physical_bits);
        let pci = PciRoot::new(Apertures {
            low: layout::PCI_MEMORY_32,
            high: memory_64.clone().unwrap_or(0..0),
        });
        let refusals = Refusals::new(clone(&signals.refused)?);
        refusals.watch(&memory);
        let this = Self {
            spec,
            signals,
            vm,
            memory,
            ram,
            rooms,
            physical_bits,
            memory_64,
            ports: Bus::default(),
            pci,
            devices: Table::default(),
            refusals,
        };
        Ok((this, hotplug))
    }

    /// Sleep, reset and event registers, and the clock.
    fn power(&mut self) -> Result<Arc<Events>, Error> {
        let interrupt = event()?;
        self.vm.connect_line(&interrupt, layout::EVENT_LINE)?;
        let (off, reset) = (clone(&self.signals.power_off)?, clone(&self.signals.reset)?);
        let events = Events::new(interrupt);
        let power = PowerRegisters::new(off, reset, Arc::clone(&events));
        self.ports.insert(layout::POWER_PORTS, Arc::new(power))?;
        self.ports.insert(layout::RTC_PORTS, Arc::new(Mutex::new(Rtc::new())))?;
        Ok(events)
    }

    fn serial(
        &mut self,
        characters: &Characters,
        events: &Arc<Epoll>,
    ) -> Result<Option<SerialEvents>, Error> {
        let Some(device) = &characters.serial else { return Ok(None) };
        let failed = |source| Error::Host { what: "the serial port", source };
        let line = event()?;
        self.vm.connect_line(&line, layout::SERIAL_LINE)?;
        let port = Arc::new(SerialPort::new(line, device.backend()).map_err(failed)?);
        self.ports.insert(layout::SERIAL_PORTS, Arc::clone(&port) as _)?;
        SerialEvents::new(port, Arc::clone(events)).map(Some).map_err(failed)
    }

    fn console(&mut self, characters: &Characters) -> Result<Option<ConsoleHandle>, Error> {
        let Some(device) = &characters.console else { return Ok(None) };
        let console = Console::new(device.backend(), device.window_size());
        let handle = console.handle();
        self.attach(spec::CONSOLE_ID, Box::new(console), Model::default())?;
        Ok(Some(handle))
    }

    fn rng(&mut self) -> Result<(), Error> {
        let source = File::open(&self.spec.rng.src).map_err(device_error(spec::RNG_ID))?;
        self.attach(spec::RNG_ID, Box::new(Rng::new(source)), Model::default())
    }

    fn disk(&mut self, disk: &spec::Disk) -> Result<(), Error> {
        let image =
            disk::open(&disk.path, disk.readonly, disk.direct).map_err(device_error(&disk.id))?;
        let options = BlockOptions {
            name: disk.id.clone(),
            queues: disk.queues,
            queue_size: disk.queue_size,
            serial: disk.serial.clone(),
        };
        let block = Block::new(Box::new(image), options);
        let counters = block.counters();
        self.attach(&disk.id, Box::new(block), Model::counting(move || counters.list()))
    }

    /// The memory device `index`, through which the guest takes and gives back `memory`.
    fn mem_device(
        &mut self,
        index: usize,
        memory: HotplugMemory,
        observer: &dyn Fn(&str) -> Observer,
    ) -> Result<(), Error> {
        let device = &self.spec.mem_devices[index];
        let (id, start) = (&device.id, self.rooms[index].start);
        let geometry = Geometry::new(start, device.block, device.size).map_err(device_error(id))?;
        let layout = match device.role {
            Role::Zone { .. } | Role::Slot => Layout::shared_only(geometry),
            Role::Partitions { max: max_partitions, .. } => {
                Layout { geometry, shared_area: Blocks::ZERO, max_partitions }
            }
        };
        let mem = Mem::new(layout, device.node, Box::new(memory), observer(id));
        let (handle, counters) = (mem.handle(), mem.counters());
        match device.role {
            Role::Zone { plugged_at_boot, .. } => {
                handle.resize_shared(plugged_at_boot, None).map(drop)
            }
            Role::Partitions { prepare, .. } => handle.prepare(prepare),
            Role::Slot => Ok(()),
        }
        .map_err(device_error(id))?;
        let model = Model { memory: Some(handle), ..Model::counting(move || counters.list()) };
        self.attach(id, Box::new(mem), model)
    }

    /// Puts a virtio device on the bus and in the table. All devices take this way.
    fn attach(
        &mut self,
        id: &str,
        device: Box<dyn VirtioDevice>,
        model: Model,
    ) -> Result<(), Error> {
        let handle = Arc::new(VmHandle(Arc::clone(&self.vm)));
        let transport =
            VirtioPci::new(device, Arc::clone(&self.memory), handle).map_err(device_error(id))?;
        let transport = Arc::new(transport);
        let address = self.pci.attach(Arc::clone(&transport) as _).map_err(device_error(id))?;
        let (id, address, device) = (id.to_owned(), Some(address), transport);
        let Model { counters, memory } = model;
        self.devices.add(Attached { id, address, memory, device, counters });
        Ok(())
    }

    /// Loads the payload and makes the vCPUs.
    fn finish(mut self, serial: bool) -> Result<(Vcpus, Table), Error> {
        let given = self.spec.cpus.topology.map(Topology::from);
        let topology = given.unwrap_or_else(|| Topology::flat(self.spec.cpus.max.into()));
        let cpus = u32::from(self.spec.cpus.boot);
        let platform = acpi::Platform {
            apic_ids: (0..cpus).map(|cpu| topology.apic_id(cpu) as u8).collect(),
            pci_memory_64: self.memory_64.clone(),
            serial,
            numa: numa(self.spec, &self.rooms),
        };
        let rsdp = acpi::write(&platform, &self.memory).map_err(Error::Acpi)?;
        reset_vector::write(&self.memory).map_err(Error::Acpi)?;
        let entry = boot::load(&self.spec.payload, &self.memory, &self.ram, rsdp)?;
        let states = (0..cpus).map(|cpu| self.vcpu(cpu, topology, entry)).collect();
        self.ports.insert(layout::PCI_PORTS, self.pci.config_ports())?;
        let mut memory = Bus::default();
        memory.insert(layout::ECAM, self.pci.ecam())?;
        for (range, window) in self.pci.windows() {
            memory.insert(range, window)?;
        }
        self.refusals.stand_in(&self.memory, &mut memory)?;
        let buses = Buses { ports: self.ports, memory };
        let vcpus = Vcpus::start(&self.vm, states, buses, clone(&self.signals.fault)?)?;
        Ok((vcpus, self.devices))
    }

    fn vcpu(&self, cpu: u32, topology: Topology, entry: registers::Entry) -> VcpuState {
        let pinned = self.spec.cpus.affinity.iter().find(|a| u32::from(a.vcpu) == cpu);
        VcpuState {
            cpuid: cpuid::for_vcpu(self.vm.supported_cpuid(), topology, cpu, self.physical_bits),
            msrs: registers::msrs(),
            registers: (cpu == 0).then(|| entry.registers()),
            affinity: pinned.map(|a| a.host_cpus.clone()).unwrap_or_default(),
        }
    }
}

/// All guest memory: the pieces of the zones, then the `rooms` of the memory devices.
fn plan<'a>(spec: &'a Spec, rooms: &[Range<u64>]) -> Vec<Room<'a>> {
    let pieces = layout::zones(spec.zones.iter().map(|zone| zone.size));
    let zones = pieces.into_iter().map(|(zone, range)| {
        let memory = &spec.zones[zone].memory;
        Room { range, memory, block: None }
    });
    let devices = spec.mem_devices.iter().zip(rooms).map(|(device, range)| {
        let (memory, block) = (&device.memory, Some(device.block));
        Room { range: range.clone(), memory, block }
    });
    zones.chain(devices).collect()
}

/// Which memory and which CPUs belong to which NUMA node, if there are any.
fn numa(spec: &Spec, rooms: &[Range<u64>]) -> Option<acpi::Numa> {
    let nodes = &spec.nodes;
    let node_of =
        |has: &dyn Fn(&Node) -> bool| nodes.iter().find(|node| has(node)).map(|node| node.number);
    let pieces = layout::zones(spec.zones.iter().map(|zone| zone.size)).into_iter();
    let ram = pieces.filter_map(|(zone, range)| {
        let node = node_of(&|node| node.zones.contains(&zone))?;
        Some(acpi::Affinity { range, node, hotplug: false })
    });
    let devices = spec.mem_devices.iter().zip(rooms);
    let rooms = devices.filter_map(|(device, range)| {
        let (range, node) = (range.clone(), device.node?);
        Some(acpi::Affinity { range, node, hotplug: true })
    });
    let cpus = (0..spec.cpus.boot).filter_map(|cpu| node_of(&|node| node.cpus.contains(&cpu)));
    let distances = nodes
        .iter()
        .flat_map(|from| from.distances.iter().map(|&(to, distance)| (from.number, to, distance)));
    (!nodes.is_empty()).then(|| acpi::Numa {
        cpus: cpus.collect(),
        memory: ram.chain(rooms).collect(),
        distances: distances.collect(),
    })
}

fn event() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK).map_err(|source| Error::Host { what: "an event", source })
}

fn clone(event: &EventFd) -> Result<EventFd, Error> {
    event.try_clone().map_err(|source| Error::Host { what: "an event", source })
}

fn device_error<E>(id: &str) -> impl Fn(E) -> Error
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    move |error| Error::Device { id: id.to_owned(), source: error.into() }
}
