//! What a configuration may ask for that this version does not have.
//!
//! Leaving such a request out without a word would give the client another VM than it described.

use super::check::Problems;
use crate::api::config::{CharConfig, DiskConfig, VmConfig};

/// Reports every request for something that does not exist.
pub(super) fn check(config: &VmConfig, problems: &mut Problems) {
    machine_wide(config, problems);
    for (index, disk) in config.disks.iter().enumerate() {
        self::disk(index, disk, problems);
    }
    for (index, zone) in config.memory.zones.iter().enumerate() {
        problems.unsupported(&format!("memory.zones[{index}]."), &[("file", zone.file.is_some())]);
    }
    for (index, node) in config.numa.iter().enumerate() {
        let requests = [
            ("pci_segments", !node.pci_segments.is_empty()),
            ("device_id", node.device_id.is_some()),
        ];
        problems.unsupported(&format!("numa[{index}]."), &requests);
    }
    for (name, device) in [("serial", &config.serial), ("console", &config.console)] {
        character(name, device, problems);
    }
}

fn machine_wide(config: &VmConfig, problems: &mut Problems) {
    use crate::api::config::CharModeConfig::Off;
    let requests = [
        ("cpus.nested", !config.cpus.nested),
        ("cpus.features", !config.cpus.features.is_empty()),
        ("cpus.kvm_hyperv", config.cpus.kvm_hyperv),
        ("payload.firmware", config.payload.firmware.is_some()),
        ("payload.igvm", config.payload.igvm.is_some()),
        ("rng.iommu", config.rng.iommu),
        ("platform.iommu_segments", !config.platform.iommu_segments.is_empty()),
        ("platform.tdx", config.platform.tdx),
        ("platform.sev_snp", config.platform.sev_snp),
        ("watchdog", config.watchdog),
        ("pvpanic", config.pvpanic),
        ("landlock_enable", config.landlock_enable),
        ("net", !config.net.is_empty()),
        ("fs", !config.fs.is_empty()),
        ("pmem", !config.pmem.is_empty()),
        ("vsock", !config.vsock.is_empty()),
        ("balloon", !config.balloon.is_empty()),
        ("devices", !config.devices.is_empty()),
        ("user_devices", !config.user_devices.is_empty()),
        ("vdpa", !config.vdpa.is_empty()),
        ("generic_vhost_user", !config.generic_vhost_user.is_empty()),
        ("tpm", !config.tpm.is_empty()),
        ("pci_segments", !config.pci_segments.is_empty()),
        ("rate_limit_groups", !config.rate_limit_groups.is_empty()),
        ("ivshmem", !config.ivshmem.is_empty()),
        ("debug_console", config.debug_console.mode != Off),
        ("iommu", config.iommu),
    ];
    problems.unsupported("", &requests);
}

fn disk(index: usize, config: &DiskConfig, problems: &mut Problems) {
    let requests = [
        ("iommu", config.iommu),
        ("vhost_user", config.vhost_user),
        ("vhost_socket", config.vhost_socket.is_some()),
        ("rate_limiter_config", !config.rate_limiter_config.is_empty()),
        ("rate_limit_group", config.rate_limit_group.is_some()),
        ("pci_segment", config.pci_segment != 0),
        ("queue_affinity", !config.queue_affinity.is_empty()),
        ("backing_files", config.backing_files),
    ];
    problems.unsupported(&format!("disks[{index}]."), &requests);
}

fn character(name: &str, config: &CharConfig, problems: &mut Problems) {
    problems.unsupported(&format!("{name}."), &[("iommu", config.iommu)]);
}
