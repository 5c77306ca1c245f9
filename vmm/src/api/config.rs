//! The JSON of a virtual machine: the body of `vm.create`, the file of `--config`, and the
//! `config` of `vm.info`.
//!
//! A mirror of Cloud Hypervisor's `VmConfig`: same names, same defaults, nothing checked beyond
//! the types. [`crate::machine::spec::Spec`] is what comes out of checking.

mod memory;
mod parse;
mod sections;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use memory::{
    DistanceConfig, HotplugMethod, MemoryConfig, NumaConfig, PartitionsConfig, PartitionsMode,
    RefusedAccess, ZoneConfig,
};
pub use parse::ConfigError;
pub(super) use parse::{body_from_json, object_from_file};
pub use sections::Section;

/// A virtual machine as a client describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmConfig {
    /// Virtual CPUs.
    pub cpus: CpusConfig,
    /// RAM.
    pub memory: MemoryConfig,
    /// What the guest boots.
    pub payload: PayloadConfig,
    /// Block devices.
    pub disks: Vec<DiskConfig>,
    /// Entropy source.
    pub rng: RngConfig,
    /// The 16550 serial port.
    pub serial: CharConfig,
    /// The virtio console.
    pub console: CharConfig,
    /// Machine-wide settings.
    pub platform: PlatformConfig,
    /// A watchdog device.
    pub watchdog: bool,
    /// A device through which the guest reports a panic.
    pub pvpanic: bool,
    /// Restrict the monitor's file accesses with Landlock.
    pub landlock_enable: bool,
    /// Files that Landlock leaves accessible.
    pub landlock_rules: Section,
    /// Network devices.
    pub net: Section,
    /// Shared file systems.
    pub fs: Section,
    /// Persistent-memory devices.
    pub pmem: Section,
    /// The socket device.
    pub vsock: Section,
    /// The memory balloon.
    pub balloon: Section,
    /// NUMA nodes.
    pub numa: Vec<NumaConfig>,
    /// Host devices passed through with VFIO.
    pub devices: Section,
    /// Devices of other processes, through vfio-user.
    pub user_devices: Section,
    /// vDPA devices.
    pub vdpa: Section,
    /// Devices of other processes, through vhost-user.
    pub generic_vhost_user: Section,
    /// A trusted platform module.
    pub tpm: Section,
    /// Further PCI segments.
    pub pci_segments: Section,
    /// Rate limiters that several disks share.
    pub rate_limit_groups: Section,
    /// Memory shared between guests.
    pub ivshmem: Section,
    /// The debug port.
    pub debug_console: CharConfig,
    /// A virtual IOMMU.
    pub iommu: bool,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            cpus: CpusConfig::default(),
            memory: MemoryConfig::default(),
            payload: PayloadConfig::default(),
            disks: Vec::new(),
            rng: RngConfig::default(),
            serial: CharConfig::new(CharModeConfig::Null),
            console: CharConfig::new(CharModeConfig::Tty),
            platform: PlatformConfig::default(),
            watchdog: false,
            pvpanic: false,
            landlock_enable: false,
            landlock_rules: Section::default(),
            net: Section::default(),
            fs: Section::default(),
            pmem: Section::default(),
            vsock: Section::default(),
            balloon: Section::default(),
            numa: Vec::new(),
            devices: Section::default(),
            user_devices: Section::default(),
            vdpa: Section::default(),
            generic_vhost_user: Section::default(),
            tpm: Section::default(),
            pci_segments: Section::default(),
            rate_limit_groups: Section::default(),
            ivshmem: Section::default(),
            debug_console: CharConfig::new(CharModeConfig::Off),
            iommu: false,
        }
    }
}

/// Virtual CPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpusConfig {
    /// How many the guest starts with.
    pub boot_vcpus: u32,
    /// How many it may ever have; `boot_vcpus` when not given.
    pub max_vcpus: u32,
    /// How they are arranged.
    pub topology: Option<TopologyConfig>,
    /// Upper limit of the guest's physical-address width, in bits.
    pub max_phys_bits: u32,
    /// Host CPUs for vCPU threads.
    pub affinity: Option<Vec<AffinityConfig>>,
    /// Whether the guest sees the host's virtualization extensions.
    pub nested: bool,
    /// Optional CPU features.
    pub features: Section,
    /// Hyper-V enlightenments.
    pub kvm_hyperv: bool,
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 0,
            topology: None,
            max_phys_bits: 46,
            affinity: None,
            nested: true,
            features: Section::default(),
            kvm_hyperv: false,
        }
    }
}

/// The arrangement of vCPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopologyConfig {
    /// Hardware threads of one core.
    pub threads_per_core: u32,
    /// Cores of one die.
    pub cores_per_die: u32,
    /// Dies of one package.
    pub dies_per_package: u32,
    /// Packages of the machine.
    pub packages: u32,
}

/// The host CPUs of one vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AffinityConfig {
    /// Index of the vCPU.
    pub vcpu: u32,
    /// Host CPU numbers.
    pub host_cpus: Vec<usize>,
}

/// What the guest boots.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PayloadConfig {
    /// Firmware image.
    pub firmware: Option<PathBuf>,
    /// Kernel image.
    pub kernel: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: Option<String>,
    /// Initial RAM disk.
    pub initramfs: Option<PathBuf>,
    /// Image of a confidential guest.
    pub igvm: Option<PathBuf>,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskConfig {
    /// Image file or block device.
    pub path: Option<PathBuf>,
    /// Refuse writes.
    pub readonly: bool,
    /// Bypass the host's page cache.
    pub direct: bool,
    /// Put the device behind the virtual IOMMU.
    pub iommu: bool,
    /// Number of request queues.
    pub num_queues: u32,
    /// Entries of each queue.
    pub queue_size: u32,
    /// Let another process serve it.
    pub vhost_user: bool,
    /// The socket of that process.
    pub vhost_socket: Option<String>,
    /// Limits on bandwidth and operations.
    pub rate_limiter_config: Section,
    /// A limiter shared with other disks.
    pub rate_limit_group: Option<String>,
    /// Identifier.
    pub id: Option<String>,
    /// PCI segment.
    pub pci_segment: u32,
    /// Identity the guest can read.
    pub serial: Option<String>,
    /// Host CPUs for the queues.
    pub queue_affinity: Section,
    /// Follow the backing files of an image.
    pub backing_files: bool,
    /// Format of the image: `Raw`, `Qcow2`, ...
    pub image_type: Option<String>,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            path: None,
            readonly: false,
            direct: false,
            iommu: false,
            num_queues: 1,
            queue_size: 128,
            vhost_user: false,
            vhost_socket: None,
            rate_limiter_config: Section::default(),
            rate_limit_group: None,
            id: None,
            pci_segment: 0,
            serial: None,
            queue_affinity: Section::default(),
            backing_files: false,
            image_type: None,
        }
    }
}

/// The entropy source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RngConfig {
    /// File that random bytes are read from.
    pub src: PathBuf,
    /// Put the device behind the virtual IOMMU.
    pub iommu: bool,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self { src: PathBuf::from("/dev/urandom"), iommu: false }
    }
}

/// What a character device is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CharModeConfig {
    /// No device.
    Off,
    /// A new pseudo-terminal.
    Pty,
    /// The monitor's terminal.
    Tty,
    /// A file.
    File,
    /// A unix socket.
    Socket,
    /// Nothing.
    Null,
}

/// A character device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CharConfig {
    /// What it is connected to.
    pub mode: CharModeConfig,
    /// For [`CharModeConfig::File`].
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// For [`CharModeConfig::Socket`].
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// Put the device behind the virtual IOMMU.
    #[serde(default)]
    pub iommu: bool,
}

impl CharConfig {
    /// A device in a mode that needs no path.
    pub const fn new(mode: CharModeConfig) -> Self {
        Self { mode, file: None, socket: None, iommu: false }
    }
}

/// Machine-wide settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlatformConfig {
    /// Number of PCI segments.
    pub num_pci_segments: u32,
    /// Segments behind the virtual IOMMU.
    pub iommu_segments: Section,
    /// Serial number for SMBIOS.
    #[serde(alias = "serial_number")]
    pub system_serial_number: Option<String>,
    /// UUID for SMBIOS.
    #[serde(alias = "uuid")]
    pub system_uuid: Option<String>,
    /// OEM strings for SMBIOS.
    pub oem_strings: Option<Vec<String>>,
    /// A guest protected by Intel TDX.
    pub tdx: bool,
    /// A guest protected by AMD SEV-SNP.
    pub sev_snp: bool,
}

impl Default for PlatformConfig {
    fn default() -> Self {
        Self {
            num_pci_segments: 1,
            iommu_segments: Section::default(),
            system_serial_number: None,
            system_uuid: None,
            oem_strings: None,
            tdx: false,
            sev_snp: false,
        }
    }
}
