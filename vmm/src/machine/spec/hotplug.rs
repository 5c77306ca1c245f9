//! Checks of memory that comes and goes.

use std::fmt::Display;
use std::ops::RangeInclusive;

use log::warn;
use memctl::{Bytes, Geometry};

use super::check::Problems;
use super::memory::{self, Described};
use super::numa;
use super::{MemDevice, Node, PARTITIONS_ID, Role, Zone};
use crate::api::config::{HotplugMethod, MemoryConfig, PartitionsConfig, PartitionsMode};
use crate::arch::x86_64::layout;

/// Identifier of the device that makes the only zone grow; for one of several, a prefix.
const ONLY_ID: &str = "__mem";
/// Identifier of a slot's device, before its number.
const SLOT_ID: &str = "__slot";
/// The least that Linux makes memory of, at addresses that are multiples of it.
const LINUX_BLOCK: Bytes = Bytes::mib(128);
/// With more nodes, Linux takes long to make control groups.
const SLOTS: RangeInclusive<u64> = 1..=16;
/// More would make placing a partition slow.
const MAX_PARTITIONS: u64 = 4096;

/// The memory devices behind RAM: one for each zone that can grow, then the partitions'.
pub(super) fn devices(
    config: &MemoryConfig,
    described: &[Described],
    zones: &[Zone],
    problems: &mut Problems,
) -> Vec<MemDevice> {
    let grow = described.iter().zip(zones).enumerate();
    let grow = grow.filter_map(|(index, (described, its))| zone(described, its, index, problems));
    let mut devices: Vec<_> = grow.collect();
    if !devices.is_empty() && config.hotplug_method == HotplugMethod::Acpi {
        let problem = "Acpi, the default, cannot add memory here; use VirtioMem (virtio-mem on the \
                       command line)";
        problems.add("memory.hotplug_method", problem);
    }
    // What says nothing asks for nothing.
    let asked = config.partitions.as_ref().filter(|asked| **asked != PartitionsConfig::default());
    devices.extend(asked.into_iter().flat_map(|asked| partitions(asked, &zones[0], problems)));
    devices
}

/// The device that makes zone number `index` grow.
fn zone(
    described: &Described,
    zone: &Zone,
    index: usize,
    problems: &mut Problems,
) -> Option<MemDevice> {
    let Described { path, config } = described;
    let block = block(zone);
    let most = config.hotplug_size.unwrap_or_default();
    let most = room(format_args!("{path}.hotplug_size"), most, block, problems);
    let at_boot = config.hotplugged_size.unwrap_or_default();
    let plugged_at_boot = problems.multiple(format_args!("{path}.hotplugged_size"), at_boot, block);
    if plugged_at_boot > most {
        let problem = format!("{plugged_at_boot} is over {path}.hotplug_size, {most}; lower it");
        problems.add(format_args!("{path}.hotplugged_size"), problem);
    }
    let id = match described.is_named() {
        true => format!("{ONLY_ID}_{}", zone.id),
        false => ONLY_ID.to_owned(),
    };
    let (memory, role) = (zone.memory.clone(), Role::Zone { zone: index, plugged_at_boot });
    let device = MemDevice { id, size: most, block, memory, node: None, role };
    (most != Bytes::ZERO).then_some(device)
}

/// The devices of partitions, which are made of what `zone` is made of: the channel's, then slots.
fn partitions(config: &PartitionsConfig, zone: &Zone, problems: &mut Problems) -> Vec<MemDevice> {
    let default = PartitionsConfig::default();
    let &PartitionsConfig { mode, size, max, prepare, slots: count, slot_size } = config;
    let for_channel = (size, max, prepare) != (default.size, default.max, default.prepare);
    let for_slots = (count, slot_size) != (default.slots, default.slot_size);
    let mut refused = |problem| {
        problems.add("memory.partitions.mode", problem);
        Vec::new()
    };
    match mode {
        PartitionsMode::Channel if for_slots => {
            refused("channel has no slots; leave slots and slot_size out, or use numa or auto")
        }
        PartitionsMode::Numa if for_channel => {
            refused("numa has slots alone; leave size, max and prepare out, or use auto")
        }
        PartitionsMode::Channel => vec![channel(config, zone, problems)],
        PartitionsMode::Numa => slots(config, zone, problems),
        PartitionsMode::Auto => {
            [vec![channel(config, zone, problems)], slots(config, zone, problems)].concat()
        }
    }
}

/// The device of all partitions of a guest with the channel.
fn channel(config: &PartitionsConfig, zone: &Zone, problems: &mut Problems) -> MemDevice {
    let block = block(zone);
    let size = room("memory.partitions.size", config.size, block, problems);
    let prepare = problems.multiple("memory.partitions.prepare", config.prepare, block);
    if size == Bytes::ZERO {
        let problem = "0 bytes; say how much all partitions together can have";
        problems.add("memory.partitions.size", problem);
    } else if prepare > size {
        let problem = format!("{prepare} is over memory.partitions.size, {size}; lower it");
        problems.add("memory.partitions.prepare", problem);
    }
    let max = problems.range("memory.partitions.max", u64::from(config.max), 1..=MAX_PARTITIONS);
    let role = Role::Partitions { max, prepare };
    let (id, memory) = (PARTITIONS_ID.to_owned(), zone.memory.clone());
    MemDevice { id, size, block, memory, node: None, role }
}

/// The devices, each in the node of its memory: a zone's, the first, or one of its own above all
/// others. Slots make a node of all the rest where the client asked for no nodes.
pub(super) fn placed(
    mut devices: Vec<MemDevice>,
    nodes: &mut Vec<Node>,
    all: Node,
    problems: &mut Problems,
) -> Vec<MemDevice> {
    if nodes.is_empty() && devices.iter().any(|device| device.role == Role::Slot) {
        nodes.push(all);
    }
    let mut free = nodes.iter().map(|node| node.number + 1).max().unwrap_or_default();
    for device in &mut devices {
        let zone = match device.role {
            Role::Zone { zone, .. } => zone,
            Role::Partitions { .. } => 0,
            Role::Slot => {
                device.node = Some(free);
                free += 1;
                continue;
            }
        };
        let node = nodes.iter().find(|node| node.zones.contains(&zone));
        device.node = node.map(|node| node.number);
    }
    if u64::from(free) > numa::NUMBERS.end() + 1 {
        let problem = "the slots' nodes come after numa's, and end at 63; lower guest_numa_id";
        problems.add("memory.partitions.slots", problem);
    }
    devices
}

/// The devices of partitions that are a NUMA node each.
fn slots(config: &PartitionsConfig, zone: &Zone, problems: &mut Problems) -> Vec<MemDevice> {
    let block = block(zone);
    let count: u64 = problems.range("memory.partitions.slots", config.slots.into(), SLOTS);
    let size = room("memory.partitions.slot_size", config.slot_size, block, problems);
    if size == Bytes::ZERO {
        problems.add("memory.partitions.slot_size", "0 bytes; say how much a slot holds");
    }
    let slot = |number| MemDevice {
        id: format!("{SLOT_ID}{number}"),
        size,
        block,
        memory: zone.memory.clone(),
        node: None,
        role: Role::Slot,
    };
    (0..count).map(slot).collect()
}

/// The size of a device's room, in blocks of `block`. Where Linux can't use the end, a warning.
fn room(path: impl Display, size: u64, block: Bytes, problems: &mut Problems) -> Bytes {
    let rest = size % LINUX_BLOCK.as_u64();
    if rest != 0 {
        let rest = Bytes::new(rest);
        warn!(
            "configuration: {path}: Linux can't use the last {rest}; make it a multiple of \
             {LINUX_BLOCK}"
        );
    }
    problems.multiple(path, size, block)
}

fn block(zone: &Zone) -> Bytes {
    zone.memory.backing.page().max(Geometry::MIN_BLOCK)
}

/// Whether the rooms of `devices` fit behind RAM.
pub(super) fn fits(
    devices: &[MemDevice],
    zones: &[Zone],
    max_phys_bits: u8,
    problems: &mut Problems,
) {
    // RAM that is too large by itself is a problem named already.
    let ram = memory::total(zones).filter(|total| total.as_u64() >> max_phys_bits == 0);
    let Some(ram) = ram.filter(|_| !devices.is_empty()) else { return };
    let sizes = devices.iter().map(|device| device.size);
    if layout::hotplug(&layout::ram(ram), sizes, max_phys_bits).is_none() {
        let problem = format!(
            "size, hotplug_size and partitions.size together are over the {max_phys_bits} bits of \
             cpus.max_phys_bits; lower one"
        );
        return problems.add("memory", problem);
    }
    let most = Geometry::MAX_BLOCKS;
    for MemDevice { id, size, block, .. } in devices {
        if size.as_u64() / block.as_u64() > most.as_u64() {
            let problem = format!("{size} for {id} is over {most} of {block}; lower it");
            problems.add("memory", problem);
        }
    }
}
