//! Checks of memory that comes and goes.

use memctl::{Bytes, Geometry};

use super::check::Problems;
use super::{MemDevice, PARTITIONS_ID, Role, Zone};
use crate::api::config::{HotplugMethod, MemoryConfig, PartitionsConfig};
use crate::arch::x86_64::layout;

/// More would make placing a partition slow.
const MAX_PARTITIONS: u64 = 4096;

/// The memory devices behind the RAM of `zones`: one for each zone that can grow, then the
/// partitions'.
pub(super) fn devices(
    config: &MemoryConfig,
    zones: &[Zone],
    max_phys_bits: u8,
    problems: &mut Problems,
) -> Vec<MemDevice> {
    let mut devices = Vec::new();
    devices.extend(zone(config, &zones[0], problems));
    if let Some(config) = config.partitions.as_ref().filter(|config| config.size != 0) {
        devices.push(partitions(config, &zones[0], problems));
    }
    fits(&devices, zones, max_phys_bits, problems);
    devices
}

/// The device that makes a zone grow.
fn zone(config: &MemoryConfig, zone: &Zone, problems: &mut Problems) -> Option<MemDevice> {
    let block = block(zone);
    let mut size = |field: &str, size: Option<u64>| {
        problems.multiple(format_args!("memory.{field}"), size.unwrap_or_default(), block)
    };
    let most = size("hotplug_size", config.hotplug_size);
    let plugged_at_boot = size("hotplugged_size", config.hotplugged_size);
    if plugged_at_boot > most {
        let problem = format!("{plugged_at_boot} is over memory.hotplug_size, {most}; lower it");
        problems.add("memory.hotplugged_size", problem);
    }
    if most != Bytes::ZERO && config.hotplug_method == HotplugMethod::Acpi {
        let problem = "Acpi, the default, cannot add memory here; use VirtioMem (virtio-mem on the \
                       command line)";
        problems.add("memory.hotplug_method", problem);
    }
    let role = Role::Zone { zone: 0, plugged_at_boot };
    let device =
        MemDevice { id: "__mem".into(), size: most, block, memory: zone.memory.clone(), role };
    (most != Bytes::ZERO).then_some(device)
}

/// The device of all partitions, which are made of what `zone` is made of.
fn partitions(config: &PartitionsConfig, zone: &Zone, problems: &mut Problems) -> MemDevice {
    let block = block(zone);
    let size = problems.multiple("memory.partitions.size", config.size, block);
    let prepare = problems.multiple("memory.partitions.prepare", config.prepare, block);
    if prepare > size {
        let problem = format!("{prepare} is over memory.partitions.size, {size}; lower it");
        problems.add("memory.partitions.prepare", problem);
    }
    let max = problems.range("memory.partitions.max", u64::from(config.max), 1..=MAX_PARTITIONS);
    let role = Role::Partitions { max, prepare };
    MemDevice { id: PARTITIONS_ID.into(), size, block, memory: zone.memory.clone(), role }
}

fn block(zone: &Zone) -> Bytes {
    zone.memory.backing.page().max(Geometry::MIN_BLOCK)
}

/// Whether the rooms of `devices` fit behind RAM.
fn fits(devices: &[MemDevice], zones: &[Zone], max_phys_bits: u8, problems: &mut Problems) {
    // RAM that is too large by itself is a problem named already.
    if zones[0].size.as_u64() >> max_phys_bits != 0 || devices.is_empty() {
        return;
    }
    let sizes = devices.iter().map(|device| device.size);
    if layout::hotplug(&layout::ram(zones[0].size), sizes, max_phys_bits).is_none() {
        let problem = format!(
            "size, hotplug_size and partitions.size together are over the {max_phys_bits} bits of \
             cpus.max_phys_bits; lower one"
        );
        return problems.add("memory", problem);
    }
    let most = Geometry::MAX_BLOCKS;
    for MemDevice { id, size, block, .. } in devices {
        if size.as_u64() / block.as_u64() > most.as_u64() {
            let field = if id == PARTITIONS_ID { "partitions.size" } else { "hotplug_size" };
            let problem = format!("{size} is over {most} of {block}; lower it");
            problems.add(format_args!("memory.{field}"), problem);
        }
    }
}
