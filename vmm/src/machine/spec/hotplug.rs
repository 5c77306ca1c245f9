//! Checks of memory that comes and goes.

use memctl::{Bytes, Geometry};

use super::check::Problems;
use super::{Hotplug, Memory};
use crate::api::config::{HotplugMethod, MemoryConfig};
use crate::arch::x86_64::layout;

/// More would make placing a partition slow.
const MAX_PARTITIONS: u64 = 4096;
/// What the layout aligns each room to.
const ALIGNMENT: u64 = 1 << 30;

/// The room for memory besides `memory`; `None` where the configuration asks for none.
pub(super) fn hotplug(
    config: &MemoryConfig,
    memory: &Memory,
    max_phys_bits: u8,
    problems: &mut Problems,
) -> Option<Hotplug> {
    let block = memory.backing.page().max(Geometry::MIN_BLOCK);
    let mut whole_blocks = |field: &str, size: u64| {
        let size = Bytes::new(size);
        if !size.is_multiple_of(block) {
            let problem = format!("{} is no multiple of {block}; round it", size.as_u64());
            problems.add(format_args!("memory.{field}"), problem);
        }
        size
    };
    let partitions = config.partitions.as_ref();
    let room = partitions.map_or(0, |partitions| partitions.region_size);
    let mut hotplug = Hotplug {
        block,
        shared: whole_blocks("hotplug_size", config.hotplug_size.unwrap_or_default()),
        plugged_at_boot: whole_blocks(
            "hotplugged_size",
            config.hotplugged_size.unwrap_or_default(),
        ),
        partitions: whole_blocks("partitions.region_size", room),
        max_partitions: 0,
    };
    if let Some(partitions) = partitions.filter(|_| room != 0) {
        let max = u64::from(partitions.max);
        hotplug.max_partitions = problems.range("memory.partitions.max", max, 1..=MAX_PARTITIONS);
    }
    shared(config, &hotplug, problems);
    fits(&hotplug, memory.size, max_phys_bits, problems);
    (hotplug.shared.max(hotplug.partitions) != Bytes::ZERO).then_some(hotplug)
}

fn shared(config: &MemoryConfig, hotplug: &Hotplug, problems: &mut Problems) {
    let Hotplug { shared, plugged_at_boot, .. } = *hotplug;
    if plugged_at_boot > shared {
        let problem = format!("{plugged_at_boot} is over memory.hotplug_size, {shared}; lower it");
        problems.add("memory.hotplugged_size", problem);
    }
    if shared != Bytes::ZERO && config.hotplug_method == HotplugMethod::Acpi {
        let problem = "Acpi, the default, cannot add memory here; use VirtioMem (virtio-mem on the \
                       command line)";
        problems.add("memory.hotplug_method", problem);
    }
}

/// Whether RAM of `size` and the rooms behind it fit.
fn fits(hotplug: &Hotplug, size: Bytes, max_phys_bits: u8, problems: &mut Problems) {
    let Hotplug { block, shared, partitions, .. } = *hotplug;
    // RAM that is too large by itself is a problem named already.
    if size.as_u64() >> max_phys_bits != 0 || shared.max(partitions) == Bytes::ZERO {
        return;
    }
    let ram_end = layout::ram(size).last().map_or(0, |range| range.end);
    let fits = layout::pci_memory_64(ram_end, max_phys_bits).is_some_and(|free| {
        let shared_end = free.start.checked_add(shared.as_u64());
        shared_end
            .and_then(|end| {
                end.checked_next_multiple_of(ALIGNMENT)?.checked_add(partitions.as_u64())
            })
            .is_some_and(|end| end <= free.end)
    });
    let most = Geometry::MAX_BLOCKS;
    if !fits {
        let problem = format!(
            "size, hotplug_size and partitions.region_size together are over the {max_phys_bits} \
             bits of cpus.max_phys_bits; lower one"
        );
        problems.add("memory", problem);
    } else if hotplug.room().as_u64() / block.as_u64() > most.as_u64() {
        let problem = format!(
            "hotplug_size and partitions.region_size together are over {most} of {block}; lower one"
        );
        problems.add("memory", problem);
    }
}
