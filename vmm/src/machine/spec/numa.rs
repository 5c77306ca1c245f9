//! Checks of the guest's NUMA nodes.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::check::Problems;
use super::{Node, Zone};
use crate::api::config::{DistanceConfig, NumaConfig};

/// What Linux is built for: CONFIG_NODES_SHIFT=6.
pub(super) const NUMBERS: RangeInclusive<u64> = 0..=63;
/// Of two different nodes; 10 is the distance of a node to itself.
const DISTANCES: RangeInclusive<u64> = 11..=255;

/// The nodes. vCPUs and zones that no node names belong to the first.
pub(super) fn nodes(
    configs: &[NumaConfig],
    zones: &[Zone],
    vcpus: u8,
    problems: &mut Problems,
) -> Vec<Node> {
    let most = NUMBERS.end() + 1;
    if configs.len() as u64 > most {
        problems.add("numa", format_args!("{} nodes; use at most {most}", configs.len()));
        return Vec::new();
    }
    let numbers: Vec<u32> = configs.iter().map(|config| config.guest_numa_id).collect();
    let mut taken = Taken::default();
    let node = |(index, config)| {
        let path = format!("numa[{index}]");
        if numbers[..index].contains(&numbers[index]) {
            let problem = format!("{} is taken; each number is used once", numbers[index]);
            problems.add(format_args!("{path}.guest_numa_id"), problem);
        }
        taken.node(&path, config, (zones, vcpus, &numbers), problems)
    };
    let mut nodes: Vec<Node> = configs.iter().enumerate().map(node).collect();
    if let Some(first) = nodes.first_mut() {
        let cpus = (0..vcpus).filter(|&cpu| !taken.cpus.contains(&cpu.into()));
        first.cpus.extend(cpus);
        first.zones.extend((0..zones.len()).filter(|zone| !taken.zones.contains(zone)));
    }
    nodes
}

/// The node of a machine that has no other.
pub(super) fn only(zones: &[Zone], vcpus: u8) -> Node {
    let (cpus, zones) = ((0..vcpus).collect(), (0..zones.len()).collect());
    Node { number: 0, cpus, zones, distances: Vec::new() }
}

/// What some node has.
#[derive(Default)]
struct Taken {
    cpus: BTreeSet<u32>,
    zones: BTreeSet<usize>,
}

impl Taken {
    fn node(
        &mut self,
        path: &str,
        config: &NumaConfig,
        (zones, vcpus, numbers): (&[Zone], u8, &[u32]),
        problems: &mut Problems,
    ) -> Node {
        let number = u64::from(config.guest_numa_id);
        let mut cpus = Vec::new();
        for &cpu in &config.cpus {
            match u8::try_from(cpu).ok().filter(|&cpu| cpu < vcpus) {
                None => problems.add(
                    format_args!("{path}.cpus"),
                    format_args!("there is no vCPU {cpu}; use 0 to {}", vcpus.saturating_sub(1)),
                ),
                Some(_) if !self.cpus.insert(cpu) => {
                    problems.add(format_args!("{path}.cpus"), taken("vCPU", cpu));
                }
                Some(cpu) => cpus.push(cpu),
            }
        }
        let mut its = Vec::new();
        for id in &config.memory_zones {
            let field = format_args!("{path}.memory_zones");
            match zones.iter().position(|zone| zone.id == *id) {
                None => {
                    let problem = "use an id of memory.zones";
                    problems.add(field, format_args!("there is no memory zone {id:?}; {problem}"));
                }
                Some(zone) if !self.zones.insert(zone) => problems.add(field, taken("zone", id)),
                Some(zone) => its.push(zone),
            }
        }
        Node {
            number: problems.range(format_args!("{path}.guest_numa_id"), number, NUMBERS),
            cpus,
            zones: its,
            distances: distances(path, config, numbers, problems),
        }
    }
}

fn taken(what: &str, which: impl std::fmt::Display) -> String {
    format!("{what} {which} is in a node already; name it once")
}

fn distances(
    path: &str,
    config: &NumaConfig,
    numbers: &[u32],
    problems: &mut Problems,
) -> Vec<(u16, u8)> {
    let mut distances = Vec::new();
    for (index, &DistanceConfig { destination, distance }) in config.distances.iter().enumerate() {
        let path = format!("{path}.distances[{index}]");
        if destination == config.guest_numa_id || !numbers.contains(&destination) {
            let problem =
                format!("there is no other node {destination}; use another guest_numa_id");
            problems.add(format_args!("{path}.destination"), problem);
        }
        let distance = problems.range(format_args!("{path}.distance"), distance.into(), DISTANCES);
        distances.extend(u16::try_from(destination).ok().map(|number| (number, distance)));
    }
    distances
}
