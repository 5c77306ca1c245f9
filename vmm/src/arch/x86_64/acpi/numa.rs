//! What belongs to which NUMA node (SRAT, ACPI 6.5, 5.2.16), and how far they are from each other
//! (SLIT, 5.2.17). A node's number is its proximity domain.

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::sdt::Sdt;
use acpi_tables::srat::MemoryAffinity;

use super::{OEM, OEM_TABLE, REVISION, bytes};

/// From a node to itself.
const LOCAL: u8 = 10;
/// From a node to another, unless told otherwise.
const REMOTE: u8 = 20;
/// Signature, length, revision, checksum, and who made the table.
const HEADER: u32 = 36;

/// The guest's NUMA nodes.
pub struct Numa {
    /// The node of each CPU, in the order of their APIC ids.
    pub cpus: Vec<u16>,
    /// The node of each range of memory.
    pub memory: Vec<Affinity>,
    /// From one node to another, where that is not 20.
    pub distances: Vec<(u16, u16, u8)>,
}

/// A range of memory and its node.
pub struct Affinity {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// The node's number.
    pub node: u16,
    /// Whether its memory comes and goes. Linux knows of a node without memory by this alone.
    pub hotplug: bool,
}

impl Numa {
    pub(super) fn srat(&self, apic_ids: &[u8]) -> impl Aml {
        let mut table = Sdt::new(*b"SRAT", HEADER, 3, OEM, OEM_TABLE, REVISION);
        // Reserved to be one, then reserved.
        table.append_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for (&apic_id, node) in apic_ids.iter().zip(&self.cpus) {
            table.append_slice(&processor(apic_id, *node));
        }
        for Affinity { range, node, hotplug } in &self.memory {
            let length = range.end - range.start;
            let memory = MemoryAffinity::new((*node).into(), range.start, length).enabled();
            let memory = if *hotplug { memory.hotpluggable() } else { memory };
            table.append_slice(&bytes(&memory));
        }
        table
    }

    pub(super) fn slit(&self) -> impl Aml {
        let nodes = self.memory.iter().map(|memory| memory.node).chain(self.cpus.iter().copied());
        let count = usize::from(nodes.max().unwrap_or_default()) + 1;
        let mut distances = vec![REMOTE; count * count];
        (0..count).for_each(|node| distances[node * count + node] = LOCAL);
        for &(from, to, distance) in &self.distances {
            let (from, to) = (usize::from(from), usize::from(to));
            if from < count && to < count {
                distances[from * count + to] = distance;
            }
        }
        let mut table = Sdt::new(*b"SLIT", HEADER, 1, OEM, OEM_TABLE, REVISION);
        table.append_slice(&(count as u64).to_le_bytes());
        table.append_slice(&distances);
        table
    }
}

/// The node of a processor with a local APIC.
fn processor(apic_id: u8, node: u16) -> [u8; 16] {
    let [low, high] = node.to_le_bytes();
    let mut entry = [0; 16];
    // Type, length, domain, APIC id, enabled.
    entry[..5].copy_from_slice(&[0, 16, low, apic_id, 1]);
    entry[9] = high;
    entry
}
