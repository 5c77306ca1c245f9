//! What a virtual machine consists of, validated.
//!
//! A [`Spec`] is complete: defaults are filled in, every number is in its range, every file that
//! is read could be opened when it was checked. `Spec::try_from(&VmConfig)` is the only way to one, and
//! reports all problems at once.

mod check;
mod devices;
mod hotplug;
mod memory;
mod numa;
mod unsupported;

use std::path::PathBuf;

use memctl::Bytes;

/// Identifier of the virtio console in the device tree.
pub const CONSOLE_ID: &str = "__console";
/// Identifier of the entropy device in the device tree.
pub const RNG_ID: &str = "__rng";
/// Identifier of the partitions' memory device in the device tree.
pub const PARTITIONS_ID: &str = "__partitions";

/// A virtual machine that can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Virtual CPUs.
    pub cpus: Cpus,
    /// RAM that the guest boots with, in the order of its addresses; at least one zone.
    pub zones: Vec<Zone>,
    /// Memory that comes and goes while the VM runs, in the order of its addresses.
    pub mem_devices: Vec<MemDevice>,
    /// What becomes of the VM when it reaches for closed memory.
    pub refused_access: OnRefusedAccess,
    /// NUMA nodes, each number once. Empty where the guest knows of none; else each zone and each
    /// vCPU is in one.
    pub nodes: Vec<Node>,
    /// Whether the guest may be promised more than the host has.
    pub overcommit: bool,
    /// What the guest boots.
    pub payload: Payload,
    /// The 16550 at COM1; [`CharMode::Null`] unless asked otherwise.
    pub serial: CharMode,
    /// The virtio console; [`CharMode::Tty`] unless asked otherwise, never a socket. Not on the
    /// terminal when `serial` is.
    pub console: CharMode,
    /// Block devices, in PCI order. Their ids are unique.
    pub disks: Vec<Disk>,
    /// The entropy device, which every VM has.
    pub rng: Rng,
}

impl Spec {
    /// All the RAM that the guest boots with.
    pub fn ram(&self) -> Bytes {
        let sizes = self.zones.iter().map(|zone| zone.size.as_u64());
        Bytes::new(sizes.sum())
    }
}

/// Virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// How many the guest starts with, 1 to 254.
    pub boot: u8,
    /// How many it may ever have, `boot` to 254.
    pub max: u8,
    /// How they are arranged; a product of `max`. `None` leaves each a package-less core of one
    /// socket.
    pub topology: Option<Topology>,
    /// Host CPUs that vCPU threads are held to; at most one entry per vCPU.
    pub affinity: Vec<Affinity>,
    /// Upper limit of the guest's physical-address width in bits, 36 to 52. The host's own width
    /// is another.
    pub max_phys_bits: u8,
}

/// The arrangement of vCPUs; no count is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Hardware threads of one core.
    pub threads_per_core: u8,
    /// Cores of one die.
    pub cores_per_die: u8,
    /// Dies of one package.
    pub dies_per_package: u8,
    /// Packages (sockets) of the machine.
    pub packages: u8,
}

impl Topology {
    /// How many vCPUs it arranges; fits, because each factor is below 256.
    pub const fn vcpus(self) -> u32 {
        self.threads_per_core as u32
            * self.cores_per_die as u32
            * self.dies_per_package as u32
            * self.packages as u32
    }
}

/// The host CPUs one vCPU may run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The vCPU's index, below [`Cpus::max`].
    pub vcpu: u8,
    /// Host CPU numbers below 1024, at least one.
    pub host_cpus: Vec<usize>,
}

/// RAM that the guest boots with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Identifier; unique.
    pub id: String,
    /// How much: a whole number of pages of the backing.
    pub size: Bytes,
    /// What it is made of.
    pub memory: Memory,
}

/// What guest memory is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Where its pages come from.
    pub backing: Backing,
    /// Fill the page tables before the guest gets it.
    pub prefault: bool,
    /// Ask the host for transparent huge pages.
    pub thp: bool,
    /// Let the host merge equal pages (`MADV_MERGEABLE`).
    pub mergeable: bool,
    /// Count the memory against the host's overcommit limit (no `MAP_NORESERVE`), or reserve its
    /// huge pages; those of memory that comes and goes are taken when it comes.
    pub reserve: bool,
    /// The host's NUMA node that it is taken from, where one is asked for; it exists.
    pub host_node: Option<u16>,
}

#[cfg(test)]
impl Memory {
    /// What it is made of unless asked otherwise.
    pub(crate) fn plain() -> Self {
        Self {
            backing: Backing::Anonymous,
            prefault: false,
            thp: true,
            mergeable: false,
            reserve: false,
            host_node: None,
        }
    }
}

/// A NUMA node of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number, below 64: its proximity domain in ACPI's words.
    pub number: u16,
    /// Its vCPUs, by index.
    pub cpus: Vec<u8>,
    /// Its RAM: indices of [`Spec::zones`].
    pub zones: Vec<usize>,
    /// How far it is to nodes whose distance is not the usual 20: their numbers, and 11 to 255.
    pub distances: Vec<(u16, u8)>,
}

/// A virtio-mem device and its room. All rooms together fit the guest's physical addresses behind
/// RAM, each aligned to 1 GiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemDevice {
    /// Identifier in the device tree; unique.
    pub id: String,
    /// The most that can be plugged: at least one block, at most
    /// [`memctl::Geometry::MAX_BLOCKS`].
    pub size: Bytes,
    /// Size of a block: a power of two from 2 MiB up, at least a page of the backing.
    pub block: Bytes,
    /// What is plugged is made of this.
    pub memory: Memory,
    /// The NUMA node that its memory belongs to, where there are any.
    pub node: Option<u16>,
    /// Whose memory it is.
    pub role: Role,
}

/// What a memory device is for. Sizes are whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// More memory for one of [`Spec::zones`].
    Zone {
        /// Its index.
        zone: usize,
        /// How much of it the guest is given when it boots.
        plugged_at_boot: Bytes,
    },
    /// All partitions.
    Partitions {
        /// The most at a time, at least one.
        max: u32,
        /// For how much of the room the guest is to have its bookkeeping ready.
        prepare: Bytes,
    },
    /// One partition at a time, of a guest without the channel. Its [`MemDevice::node`] is there,
    /// and nothing else in it.
    Slot,
}

/// What becomes of a VM that reaches, or sends a device, to memory it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRefusedAccess {
    /// It ends with that error.
    Stop,
    /// It goes on if it can.
    Report,
}

impl Role {
    /// Whether it is to make zone number `zone` grow.
    pub fn is_of_zone(&self, zone: usize) -> bool {
        matches!(self, Self::Zone { zone: its, .. } if *its == zone)
    }
}

/// Where guest pages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// A memfd that other processes can map.
    Shared,
    /// The host's pool of huge pages.
    Hugetlb {
        /// Size of one page: 2 MiB or 1 GiB.
        page: Bytes,
        /// Whether other processes can map it.
        shared: bool,
    },
}

impl Backing {
    /// The smallest unit the backing hands out.
    pub const fn page(self) -> Bytes {
        match self {
            Self::Anonymous | Self::Shared => Bytes::kib(4),
            Self::Hugetlb { page, .. } => page,
        }
    }
}

/// What the guest boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// An ELF `vmlinux` or a `bzImage`; could be opened.
    pub kernel: PathBuf,
    /// An initial RAM disk; could be opened.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line, without NUL; may be empty.
    pub cmdline: String,
}

/// What a character device is connected to on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CharMode {
    /// There is no such device.
    Off,
    /// Output vanishes and input never comes.
    Null,
    /// The monitor's standard input and output.
    Tty,
    /// A pseudo-terminal made for it.
    Pty,
    /// Output goes to this file, made anew; no input.
    File(PathBuf),
    /// A unix socket made here; one client at a time.
    Socket(PathBuf),
}

/// A virtio block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Identifier in the device tree; unique.
    pub id: String,
    /// A raw image file or a block device; could be opened.
    pub path: PathBuf,
    /// Refuse the guest's writes.
    pub readonly: bool,
    /// Bypass the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Number of request queues, 1 to [`Cpus::boot`].
    pub queues: u16,
    /// Entries of each queue, a power of two, 1 to 32768.
    pub queue_size: u16,
    /// What the guest reads as the device's identity: at most 20 printable ASCII bytes.
    pub serial: String,
}

/// The virtio entropy device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    /// Where entropy comes from; could be opened.
    pub src: PathBuf,
}

/// A configuration that no machine can be built from. One line per problem: the JSON path of the
/// field, what is wrong, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct InvalidConfig {
    /// At least one.
    pub problems: Vec<String>,
}

#[cfg(test)]
mod tests;
