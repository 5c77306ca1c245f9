//! Checks of the RAM that a guest boots with.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;

use memctl::{Bytes, PartitionName};

use super::check::Problems;
use super::{Backing, Memory, Zone};
use crate::api::config::{MemoryConfig, ZoneConfig};

/// What the only zone is called where the configuration names none, as in Cloud Hypervisor.
const ONLY_ZONE: &str = "mem0";
/// More would be more memory devices than the bus has slots.
const MAX_ZONES: usize = 16;
/// What zones are aligned to, so that the host can use huge pages in each.
const ALIGNMENT: Bytes = Bytes::mib(2);

/// A zone as the client described it.
pub(super) struct Described<'a> {
    /// Where in the JSON.
    pub(super) path: String,
    pub(super) config: Cow<'a, ZoneConfig>,
}

impl Described<'_> {
    /// Whether it is one of `memory.zones`, and not `memory` itself.
    pub(super) fn is_named(&self) -> bool {
        matches!(self.config, Cow::Borrowed(_))
    }
}

/// The zones as described, at least one: `memory.zones`, or `memory` itself as the only one.
pub(super) fn described<'a>(
    config: &'a MemoryConfig,
    problems: &mut Problems,
) -> Vec<Described<'a>> {
    if config.zones.is_empty() {
        let zone = ZoneConfig {
            id: ONLY_ZONE.to_owned(),
            size: config.size,
            file: None,
            shared: config.shared,
            hugepages: config.hugepages,
            hugepage_size: config.hugepage_size,
            host_numa_node: None,
            hotplug_size: config.hotplug_size,
            hotplugged_size: config.hotplugged_size,
            prefault: config.prefault,
        };
        return vec![Described { path: "memory".to_owned(), config: Cow::Owned(zone) }];
    }
    said_once(config, problems);
    if config.zones.len() > MAX_ZONES {
        let problem = format!("{} zones; use at most {MAX_ZONES}", config.zones.len());
        problems.add("memory.zones", problem);
    }
    let zones = config.zones.iter().take(MAX_ZONES).enumerate();
    zones
        .map(|(index, zone)| Described {
            path: format!("memory.zones[{index}]"),
            config: Cow::Borrowed(zone),
        })
        .collect()
}

/// What zones say for themselves can't be said for all of them.
fn said_once(config: &MemoryConfig, problems: &mut Problems) {
    if config.size != 0 {
        problems.add("memory.size", "memory.zones say how much there is; set it to 0");
    }
    let fields = [
        ("shared", config.shared),
        ("hugepages", config.hugepages),
        ("hugepage_size", config.hugepage_size.is_some()),
        ("hotplug_size", config.hotplug_size.is_some()),
        ("hotplugged_size", config.hotplugged_size.is_some()),
    ];
    for (field, _) in fields.iter().filter(|(_, given)| *given) {
        problems.add(format_args!("memory.{field}"), "say it for each of memory.zones instead");
    }
}

/// The zones, whose sum fits in `max_phys_bits` of addresses.
pub(super) fn zones(
    config: &MemoryConfig,
    described: &[Described],
    max_phys_bits: u8,
    problems: &mut Problems,
) -> Vec<Zone> {
    let mut ids = BTreeSet::new();
    let zones = described.iter().map(|one| zone(config, one, &mut ids, problems));
    let zones: Vec<_> = zones.collect();
    if total(&zones).is_none_or(|total| total.as_u64() >> max_phys_bits != 0) {
        let (path, size) = match &zones[..] {
            [zone] => (format!("{}.size", described[0].path), zone.size.to_string()),
            _ => ("memory.zones".to_owned(), "the sum of all sizes".to_owned()),
        };
        let bits = format_args!("the {max_phys_bits} bits of cpus.max_phys_bits");
        let problem = format!("{size} is over {bits}; lower it");
        problems.add(path, problem);
    }
    zones
}

/// All RAM; `None` for more than there can be.
pub(super) fn total(zones: &[Zone]) -> Option<Bytes> {
    zones.iter().try_fold(Bytes::ZERO, |sum, zone| sum.checked_add(zone.size))
}

fn zone<'a>(
    memory: &MemoryConfig,
    described: &'a Described,
    ids: &mut BTreeSet<&'a str>,
    problems: &mut Problems,
) -> Zone {
    let Described { path, config } = described;
    let id = config.id.as_str();
    if let Err(problem) = PartitionName::from_str(id) {
        problems.add(format_args!("{path}.id"), problem);
    } else if !ids.insert(id) {
        problems
            .add(format_args!("{path}.id"), format_args!("{id} is taken; each id is used once"));
    }
    let backing = backing(path, config, problems);
    let unit = if described.is_named() { backing.page().max(ALIGNMENT) } else { backing.page() };
    let size = problems.multiple(format_args!("{path}.size"), config.size, unit);
    if size == Bytes::ZERO {
        problems.add(format_args!("{path}.size"), "0 bytes; give the guest some memory");
    }
    let memory = Memory {
        backing,
        prefault: config.prefault || memory.prefault,
        thp: memory.thp,
        mergeable: memory.mergeable,
        reserve: memory.reserve,
        host_node: config.host_numa_node.map(|node| host_node(path, node, problems)),
    };
    Zone { id: id.to_owned(), size, memory }
}

fn host_node(path: &str, node: u32, problems: &mut Problems) -> u16 {
    if !Path::new(&format!("/sys/devices/system/node/node{node}")).exists() {
        let problem = format!("this host has no NUMA node {node}; see /sys/devices/system/node");
        problems.add(format_args!("{path}.host_numa_node"), problem);
    }
    u16::try_from(node).unwrap_or_default()
}

fn backing(path: &str, config: &ZoneConfig, problems: &mut Problems) -> Backing {
    let page = config.hugepage_size.map_or(Bytes::mib(2), Bytes::new);
    let field = format!("{path}.hugepage_size");
    if ![Bytes::mib(2), Bytes::gib(1)].contains(&page) {
        let problem = format!("{page} is no huge page of x86-64; use 2 MiB or 1 GiB");
        problems.add(&field, problem);
    }
    match (config.hugepages, config.shared) {
        (true, shared) => Backing::Hugetlb { page, shared },
        (false, _) if config.hugepage_size.is_some() => {
            problems.add(&field, format_args!("needs {path}.hugepages; turn that on"));
            Backing::Anonymous
        }
        (false, true) => Backing::Shared,
        (false, false) => Backing::Anonymous,
    }
}
