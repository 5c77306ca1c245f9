//! From a client's configuration to a [`Spec`].
//!
//! Each check reports what is wrong to [`Problems`] and returns some value of the right type. The
//! value never leaves this module when there was a problem.

use std::fmt::Display;
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use log::warn;
use memctl::Bytes;

use super::{
    Affinity, Cpus, InvalidConfig, OnRefusedAccess, Payload, Rng, Spec, Topology, devices, hotplug,
    memory, numa, unsupported,
};
use crate::api::config::{
    self, AffinityConfig, CpusConfig, MemoryConfig, PayloadConfig, PlatformConfig, RngConfig,
    TopologyConfig, VmConfig,
};
use crate::kvm::cpuid;

/// Cloud Hypervisor's limit, so that a client sees the same one.
const MAX_PCI_SEGMENTS: u64 = 96;
/// What the kernel's CPU set holds by default.
const MAX_HOST_CPUS: usize = 1024;

impl TryFrom<&VmConfig> for Spec {
    type Error = InvalidConfig;

    /// Checks everything, opening each file it names. Called before a VM is created; reads files
    /// but changes nothing.
    fn try_from(config: &VmConfig) -> Result<Self, InvalidConfig> {
        let mut problems = Problems::default();
        unsupported::check(config, &mut problems);
        let cpus = cpus(&config.cpus, &mut problems);
        let described = memory::described(&config.memory, &mut problems);
        let zones = memory::zones(&config.memory, &described, cpus.max_phys_bits, &mut problems);
        let mut nodes = numa::nodes(&config.numa, &zones, cpus.max, &mut problems);
        let mem_devices = hotplug::devices(&config.memory, &described, &zones, &mut problems);
        hotplug::fits(&mem_devices, &zones, cpus.max_phys_bits, &mut problems);
        let only = numa::only(&zones, cpus.max);
        let spec = Self {
            mem_devices: hotplug::placed(mem_devices, &mut nodes, only, &mut problems),
            refused_access: refused_access(&config.memory),
            zones,
            nodes,
            overcommit: config.memory.overcommit,
            payload: payload(&config.payload, &mut problems),
            serial: devices::serial(&config.serial, &mut problems),
            console: devices::console(&config.console, &config.serial, &mut problems),
            disks: devices::disks(&config.disks, cpus.boot, &mut problems),
            rng: rng(&config.rng, &mut problems),
            cpus,
        };
        platform(&config.platform, &mut problems);
        if problems.0.is_empty() { Ok(spec) } else { Err(InvalidConfig { problems: problems.0 }) }
    }
}

/// What is wrong with a configuration so far.
#[derive(Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    /// Adds a problem with the field at the JSON path `path`.
    pub(super) fn add(&mut self, path: impl Display, problem: impl Display) {
        self.0.push(format!("{path}: {problem}"));
    }

    /// `size`, with a problem where it is no multiple of `unit`.
    pub(super) fn multiple(&mut self, path: impl Display, size: u64, unit: Bytes) -> Bytes {
        let size = Bytes::new(size);
        if !size.is_multiple_of(unit) {
            let problem = format!("{} is no multiple of {unit}; round it", size.as_u64());
            self.add(path, problem);
        }
        size
    }

    /// Adds a problem for each of `requests` that is made, below `prefix`.
    pub(super) fn unsupported(&mut self, prefix: &str, requests: &[(&str, bool)]) {
        for (field, _) in requests.iter().filter(|(_, requested)| *requested) {
            self.add(format_args!("{prefix}{field}"), "not supported yet; leave it out");
        }
    }

    /// `value` as a smaller type, brought into `allowed` with a problem where it lies outside.
    pub(super) fn range<T: TryFrom<u64> + Default>(
        &mut self,
        path: impl Display,
        value: u64,
        allowed: RangeInclusive<u64>,
    ) -> T {
        let (low, high) = allowed.into_inner();
        let clamped = value.clamp(low, high);
        if clamped != value {
            self.add(path, format_args!("{value} is out of range; use {low} to {high}"));
        }
        T::try_from(clamped).unwrap_or_default()
    }

    /// Adds a problem when the file cannot be opened for reading. Returns it otherwise.
    pub(super) fn readable(&mut self, path: impl Display, file: &Path) -> Option<File> {
        File::open(file).map_err(|error| self.cannot_open(path, file, &error)).ok()
    }

    /// Adds the problem that `file` could not be opened.
    pub(super) fn cannot_open(&mut self, path: impl Display, file: &Path, error: &std::io::Error) {
        // Without the number that io::Error puts behind the text.
        let text = error.to_string();
        let error = text.split_once(" (os error").map_or(text.as_str(), |(text, _)| text);
        self.add(path, format_args!("cannot open {}: {error}", file.display()));
    }
}

fn cpus(config: &CpusConfig, problems: &mut Problems) -> Cpus {
    let boot = problems.range("cpus.boot_vcpus", config.boot_vcpus.into(), 1..=254);
    let max = match config.max_vcpus {
        0 => boot,
        max => problems.range("cpus.max_vcpus", max.into(), u64::from(boot)..=254),
    };
    if max > boot {
        warn!("configuration: cpus.max_vcpus: no vCPU can be added; boot_vcpus is what there is");
    }
    let affinity = config.affinity.as_deref().unwrap_or_default();
    Cpus {
        boot,
        max,
        topology: config.topology.as_ref().map(|config| topology(config, max, problems)),
        affinity: self::affinity(affinity, max, problems),
        max_phys_bits: problems.range("cpus.max_phys_bits", config.max_phys_bits.into(), 36..=52),
    }
}

fn topology(config: &TopologyConfig, max: u8, problems: &mut Problems) -> Topology {
    let mut count = |name, value: u32| {
        problems.range(format_args!("cpus.topology.{name}"), value.into(), 1..=254)
    };
    let topology = Topology {
        threads_per_core: count("threads_per_core", config.threads_per_core),
        cores_per_die: count("cores_per_die", config.cores_per_die),
        dies_per_package: count("dies_per_package", config.dies_per_package),
        packages: count("packages", config.packages),
    };
    let product = topology.vcpus();
    if product != u32::from(max) {
        let problem =
            format!("makes {product} vCPUs, but cpus.max_vcpus is {max}; make them equal");
        problems.add("cpus.topology", problem);
    } else {
        // Each level starts at a bit of its own, so odd counts leave gaps; 255 is the broadcast.
        let last = cpuid::Topology::from(topology).apic_id(product - 1);
        if last > 254 {
            let problem = format!("needs APIC ids up to {last}, above 254; use powers of two");
            problems.add("cpus.topology", problem);
        }
    }
    topology
}

fn affinity(config: &[AffinityConfig], max: u8, problems: &mut Problems) -> Vec<Affinity> {
    let mut list: Vec<Affinity> = Vec::new();
    for (index, entry) in config.iter().enumerate() {
        let path = format!("cpus.affinity[{index}]");
        let last = u64::from(max).saturating_sub(1);
        let vcpu = problems.range(format_args!("{path}.vcpu"), entry.vcpu.into(), 0..=last);
        if entry.host_cpus.is_empty() {
            problems.add(format_args!("{path}.host_cpus"), "empty; name at least one host CPU");
        }
        if let Some(cpu) = entry.host_cpus.iter().find(|cpu| **cpu >= MAX_HOST_CPUS) {
            let problem = format!("{cpu} is out of range; use 0 to {}", MAX_HOST_CPUS - 1);
            problems.add(format_args!("{path}.host_cpus"), problem);
        }
        if list.iter().any(|other| other.vcpu == vcpu && u32::from(vcpu) == entry.vcpu) {
            let problem = format!("vCPU {vcpu} is listed twice; list each once");
            problems.add(format_args!("{path}.vcpu"), problem);
        }
        // One entry per vCPU is kept, so that a long list cannot make this search slow.
        if list.len() < usize::from(max) {
            list.push(Affinity { vcpu, host_cpus: entry.host_cpus.clone() });
        }
    }
    list
}

fn refused_access(config: &MemoryConfig) -> OnRefusedAccess {
    match config.refused_access {
        config::RefusedAccess::Stop => OnRefusedAccess::Stop,
        config::RefusedAccess::Report => OnRefusedAccess::Report,
    }
}

fn payload(config: &PayloadConfig, problems: &mut Problems) -> Payload {
    match &config.kernel {
        Some(kernel) => drop(problems.readable("payload.kernel", kernel)),
        None if config.firmware.is_some() => {}
        None => problems.add("payload.kernel", "missing; name a vmlinux or a bzImage"),
    }
    if let Some(initramfs) = &config.initramfs {
        problems.readable("payload.initramfs", initramfs);
    }
    let cmdline = config.cmdline.clone().unwrap_or_default();
    if cmdline.contains('\0') {
        problems.add("payload.cmdline", "contains a NUL character; remove it");
    }
    Payload {
        kernel: config.kernel.clone().unwrap_or_default(),
        initramfs: config.initramfs.clone(),
        cmdline,
    }
}

fn rng(config: &RngConfig, problems: &mut Problems) -> Rng {
    problems.readable("rng.src", &config.src);
    Rng { src: PathBuf::from(&config.src) }
}

/// Nothing of it is in a machine; what can be taken is taken with a warning.
fn platform(config: &PlatformConfig, problems: &mut Problems) {
    let segments = u64::from(config.num_pci_segments);
    problems.range::<u16>("platform.num_pci_segments", segments, 1..=MAX_PCI_SEGMENTS);
    if segments > 1 {
        warn!("configuration: platform.num_pci_segments: segments over the first stay empty");
    }
    let named = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if named(&config.system_serial_number)
        || named(&config.system_uuid)
        || config.oem_strings.as_ref().is_some_and(|all| !all.is_empty())
    {
        warn!("configuration: platform: the guest is not shown serial number, UUID, OEM strings");
    }
}
