//! The keys of each option, and how their values are read.

use memctl::Bytes;
use serde_json::{Map, Value, json};

use super::keys::{Key, OptionError, Read, Table, items};

/// The most CPUs one range can name, so that a range cannot take all memory.
const MAX_RANGE: u64 = 1024;

const fn key(name: &'static str, field: &'static str, read: Read) -> Key {
    Key { name, field, read }
}

/// A key named like its field.
const fn same(name: &'static str, read: Read) -> Key {
    key(name, name, read)
}

/// `--cpus`.
pub(super) const CPUS: Table = Table {
    option: "--cpus",
    keys: &[
        key("boot", "boot_vcpus", number),
        key("max", "max_vcpus", number),
        same("topology", topology),
        same("max_phys_bits", number),
        same("affinity", affinity),
        same("nested", switch),
        same("kvm_hyperv", switch),
    ],
    unsupported: &["features", "core_scheduling", "profile"],
};

/// `--memory`.
pub(super) const MEMORY: Table = Table {
    option: "--memory",
    keys: &[
        same("size", size),
        same("mergeable", switch),
        same("shared", switch),
        same("hugepages", switch),
        same("hugepage_size", size),
        same("prefault", switch),
        same("reserve", switch),
        same("thp", switch),
        same("hotplug_method", hotplug_method),
        same("hotplug_size", size),
        same("hotplugged_size", size),
        same("partitions", partitions),
        same("refused_access", refused_access),
        same("overcommit", switch),
    ],
    unsupported: &["file"],
};

/// `--memory-zone`.
pub(super) const ZONE: Table = Table {
    option: "--memory-zone",
    keys: &[
        same("id", text),
        same("size", size),
        same("file", text),
        same("shared", switch),
        same("hugepages", switch),
        same("hugepage_size", size),
        same("host_numa_node", number),
        same("hotplug_size", size),
        same("hotplugged_size", size),
        same("prefault", switch),
    ],
    unsupported: &["reserve", "mergeable"],
};

/// `--numa`.
pub(super) const NUMA: Table = Table {
    option: "--numa",
    keys: &[
        same("guest_numa_id", number),
        same("cpus", numbers),
        same("distances", distances),
        same("memory_zones", texts),
    ],
    unsupported: &["device_id", "pci_segments"],
};

/// `partitions` of `--memory`.
const PARTITIONS: Table = Table {
    option: "partitions",
    keys: &[
        same("mode", text),
        same("size", size),
        same("max", number),
        same("prepare", size),
        same("slots", number),
        same("slot_size", size),
    ],
    unsupported: &[],
};

/// `--disk`.
pub(super) const DISK: Table = Table {
    option: "--disk",
    keys: &[
        same("path", text),
        same("readonly", switch),
        same("direct", switch),
        same("num_queues", number),
        same("queue_size", number),
        same("id", text),
        same("serial", text),
        same("image_type", image_type),
        same("iommu", switch),
        same("vhost_user", switch),
        key("socket", "vhost_socket", text),
        same("pci_segment", number),
        same("backing_files", switch),
    ],
    unsupported: &[
        "bw_size",
        "bw_one_time_burst",
        "bw_refill_time",
        "ops_size",
        "ops_one_time_burst",
        "ops_refill_time",
        "rate_limit_group",
        "queue_affinity",
        "sparse",
        "lock_granularity",
        "pci_device_id",
    ],
};

/// `--rng`.
pub(super) const RNG: Table = Table {
    option: "--rng",
    keys: &[same("src", text), same("iommu", switch)],
    unsupported: &["id", "pci_segment", "pci_device_id"],
};

/// `--platform`.
pub(super) const PLATFORM: Table = Table {
    option: "--platform",
    keys: &[
        same("num_pci_segments", number),
        key("serial_number", "system_serial_number", text),
        key("uuid", "system_uuid", text),
        same("oem_strings", texts),
    ],
    unsupported: &[
        "iommu_segments",
        "iommu_address_width",
        "iommufd",
        "iommufd_fd",
        "vfio_p2p_dma",
        "tdx",
        "sev_snp",
    ],
};

/// `--serial` and `--console`: one of `modes`, with a path where it needs one. A socket is left to
/// the check of the VM.
///
/// # Errors
/// The mode does not exist.
pub(super) fn character(
    option: &'static str,
    modes: &str,
    text: &str,
) -> Result<Value, OptionError> {
    let device = match text.split_once('=').unwrap_or((text, "")) {
        ("off", "") => json!({ "mode": "Off" }),
        ("null", "") => json!({ "mode": "Null" }),
        ("tty", "") => json!({ "mode": "Tty" }),
        ("pty", "") => json!({ "mode": "Pty" }),
        ("file", path) => json!({ "mode": "File", "file": path }),
        ("socket", path) => json!({ "mode": "Socket", "socket": path }),
        _ => {
            let problem = format!("{text:?} does not exist; use {modes}");
            return Err(OptionError::new(option, problem));
        }
    };
    Ok(device)
}

/// `--seccomp`: nothing but what is so can be asked for.
///
/// # Errors
/// It is.
pub(super) fn seccomp(text: &str) -> Result<(), OptionError> {
    if text == "false" {
        return Ok(());
    }
    let problem = "not supported yet: no system call is filtered; use --seccomp false";
    Err(OptionError::new("--seccomp", format!("{text:?} is {problem}")))
}

fn text(text: &str) -> Result<Value, String> {
    Ok(text.into())
}

fn texts(text: &str) -> Result<Value, String> {
    items(text).map(Value::from)
}

fn number(text: &str) -> Result<Value, String> {
    integer(text).map(Value::from)
}

fn integer(text: &str) -> Result<u64, String> {
    // `u64::from_str` alone would take a leading plus sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| format!("{text:?} is not a number"))
}

fn size(text: &str) -> Result<Value, String> {
    match text.parse::<Bytes>() {
        Ok(size) => Ok(size.as_u64().into()),
        Err(error) => Err(format!("{text:?} is {error}")),
    }
}

fn switch(text: &str) -> Result<Value, String> {
    match text {
        "on" | "true" => Ok(true.into()),
        "off" | "false" => Ok(false.into()),
        _ => Err(format!("{text:?} is not a switch; use on or off")),
    }
}

fn hotplug_method(text: &str) -> Result<Value, String> {
    match text {
        "acpi" => Ok("Acpi".into()),
        "virtio-mem" => Ok("VirtioMem".into()),
        _ => Err(format!("{text:?} does not exist; use acpi or virtio-mem")),
    }
}

fn refused_access(text: &str) -> Result<Value, String> {
    match text {
        "stop" => Ok("Stop".into()),
        "report" => Ok("Report".into()),
        _ => Err(format!("{text:?} does not exist; use stop or report")),
    }
}

/// `SIZE`, or `[size=SIZE,max=NUMBER,...]`.
fn partitions(text: &str) -> Result<Value, String> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match inner {
        None => Ok(json!({ "size": size(text)? })),
        Some(keys) => {
            PARTITIONS.parse(keys).map(Value::Object).map_err(|error| error.problem().to_owned())
        }
    }
}

/// As in JSON, where the first letter is a capital.
fn image_type(text: &str) -> Result<Value, String> {
    Ok(if text.eq_ignore_ascii_case("raw") { "Raw".into() } else { text.into() })
}

/// `THREADS:CORES:DIES:PACKAGES`.
fn topology(text: &str) -> Result<Value, String> {
    let counts = text.split(':').map(integer).collect::<Result<Vec<_>, _>>()?;
    let fields = ["threads_per_core", "cores_per_die", "dies_per_package", "packages"];
    if counts.len() != fields.len() {
        return Err(format!("{text:?} is not of the form THREADS:CORES:DIES:PACKAGES"));
    }
    let fields = fields.into_iter().map(str::to_owned).zip(counts.into_iter().map(Value::from));
    Ok(Map::from_iter(fields).into())
}

/// `[VCPU@[CPU,FIRST-LAST],...]`.
fn affinity(text: &str) -> Result<Value, String> {
    let entry = |item: &str| {
        let (vcpu, cpus) = item
            .split_once('@')
            .ok_or_else(|| format!("{item:?} is not of the form VCPU@[CPU,..]"))?;
        let vcpu = integer(vcpu)?;
        Ok(json!({ "vcpu": vcpu, "host_cpus": cpu_list(cpus)? }))
    };
    items(text)?.into_iter().map(entry).collect()
}

/// `[NODE@DISTANCE,...]`.
fn distances(text: &str) -> Result<Value, String> {
    let entry = |item: &str| {
        let (node, distance) = item
            .split_once('@')
            .ok_or_else(|| format!("{item:?} is not of the form NODE@DISTANCE"))?;
        Ok(json!({ "destination": integer(node)?, "distance": integer(distance)? }))
    };
    items(text)?.into_iter().map(entry).collect()
}

/// `[NUMBER,FIRST-LAST,...]`.
fn numbers(text: &str) -> Result<Value, String> {
    cpu_list(text).map(Value::from)
}

fn cpu_list(text: &str) -> Result<Vec<u64>, String> {
    let mut cpus = Vec::new();
    for item in items(text)? {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (integer(first)?, integer(last)?);
        if last < first || last - first >= MAX_RANGE {
            return Err(format!("{item:?} is not a range of CPUs"));
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}
