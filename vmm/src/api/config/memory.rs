//! RAM, what can be added to it, and how it is spread over NUMA nodes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Section;

/// How memory is added at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HotplugMethod {
    /// Whole memory modules, through ACPI.
    #[default]
    Acpi,
    /// Blocks, through virtio-mem.
    VirtioMem,
}

/// What becomes of a VM that reaches for memory it does not have; Cloud Hypervisor does not ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusedAccess {
    /// It ends with that error.
    #[default]
    Stop,
    /// An event tells of it, and it goes on if it can.
    Report,
}

/// RAM; sizes in bytes. What the guest boots with is whole pages of what it is made of, and what
/// comes and goes whole blocks: 2 MiB, or the size of its huge pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryConfig {
    /// What the guest boots with.
    pub size: u64,
    /// Let the host merge equal pages.
    pub mergeable: bool,
    /// How memory is added at run time.
    pub hotplug_method: HotplugMethod,
    /// How much can be added at run time.
    pub hotplug_size: Option<u64>,
    /// How much of that is there at boot.
    pub hotplugged_size: Option<u64>,
    /// Room for partitions, besides all that.
    pub partitions: Option<PartitionsConfig>,
    /// What to do about an access to memory that is not plugged.
    pub refused_access: RefusedAccess,
    /// Let other processes map it.
    pub shared: bool,
    /// Take it from the host's pool of huge pages.
    pub hugepages: bool,
    /// Size of those pages: 2 MiB, unless given, or 1 GiB.
    pub hugepage_size: Option<u64>,
    /// Fill the page tables before the guest starts.
    pub prefault: bool,
    /// Count it against the host's overcommit limit, or reserve its huge pages; those of memory
    /// that comes and goes are taken when it comes.
    pub reserve: bool,
    /// Ask for transparent huge pages.
    pub thp: bool,
    /// Promise the guest more than the host has; Cloud Hypervisor always does.
    pub overcommit: bool,
    /// RAM described zone by zone; `size` is 0 then.
    pub zones: Vec<ZoneConfig>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            mergeable: false,
            hotplug_method: HotplugMethod::Acpi,
            hotplug_size: None,
            hotplugged_size: None,
            partitions: None,
            refused_access: RefusedAccess::Stop,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            reserve: false,
            thp: true,
            overcommit: false,
            zones: Vec::new(),
        }
    }
}

/// A zone of RAM; sizes in bytes, whole multiples of 2 MiB, or of the size of its huge pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZoneConfig {
    /// Identifier: 1 to 64 ASCII letters, digits, dots, dashes, underscores.
    pub id: String,
    /// What the guest boots with; not 0.
    pub size: u64,
    /// File or directory to take it from.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Let other processes map it.
    #[serde(default)]
    pub shared: bool,
    /// Take it from the host's pool of huge pages.
    #[serde(default)]
    pub hugepages: bool,
    /// Size of those pages: 2 MiB, unless given, or 1 GiB.
    #[serde(default)]
    pub hugepage_size: Option<u64>,
    /// The host's NUMA node to take it from.
    #[serde(default)]
    pub host_numa_node: Option<u32>,
    /// How much can be added at run time.
    #[serde(default)]
    pub hotplug_size: Option<u64>,
    /// How much of that is there at boot.
    #[serde(default)]
    pub hotplugged_size: Option<u64>,
    /// Fill the page tables before the guest starts.
    #[serde(default)]
    pub prefault: bool,
}

/// A NUMA node of the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NumaConfig {
    /// Its number.
    pub guest_numa_id: u32,
    /// Its vCPUs.
    #[serde(default)]
    pub cpus: Vec<u32>,
    /// How far others are.
    #[serde(default)]
    pub distances: Vec<DistanceConfig>,
    /// Its memory zones.
    #[serde(default)]
    pub memory_zones: Vec<String>,
    /// Its PCI segments.
    #[serde(default)]
    pub pci_segments: Section,
    /// A device that is a node of its own.
    #[serde(default)]
    pub device_id: Option<String>,
}

/// How far a NUMA node is from another; 10 is the distance to itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistanceConfig {
    /// Number of the other.
    pub destination: u32,
    /// How far it is.
    pub distance: u8,
}

/// How a guest keeps a partition's memory apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionsMode {
    /// Its kernel has the partition channel.
    #[default]
    Channel,
    /// Each is a NUMA node, for any kernel.
    Numa,
    /// The channel where the guest's kernel has it, else nodes: there is room for both.
    Auto,
}

/// Room for partitions; sizes in bytes, whole multiples of a block: 2 MiB, or the size of the huge
/// pages that `memory` is made of. Cloud Hypervisor has none. What the mode does not have is left
/// at its default, and where all is, there is no room.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionsConfig {
    /// How they are kept apart.
    pub mode: PartitionsMode,
    /// With the channel: the most that all partitions together can have; not 0.
    pub size: u64,
    /// With the channel: the most partitions at a time, 1 to 4096.
    pub max: u32,
    /// With the channel: for how much of `size` the guest is to have its bookkeeping ready before
    /// the first partition.
    pub prepare: u64,
    /// With nodes: the most partitions at a time, a node for each; 1 to 16.
    pub slots: u32,
    /// With nodes: the most that one partition can have; not 0.
    pub slot_size: u64,
}

impl Default for PartitionsConfig {
    fn default() -> Self {
        let mode = PartitionsMode::default();
        Self { mode, size: 0, max: 64, prepare: 0, slots: 0, slot_size: 0 }
    }
}
