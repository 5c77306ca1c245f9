//! Configurations to specs, and the exact words for those that are refused.

mod memory;

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::api::config::VmConfig;

/// Files a configuration can name, in a directory of their own.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["kernel", "initramfs", "disk"] {
            std::fs::write(dir.path().join(name), "some content").unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// The spec of a configuration with a kernel and `fields`.
    fn spec(&self, fields: Value) -> Result<Spec, Vec<String>> {
        let mut json = json!({"payload": {"kernel": self.path("kernel")}});
        json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let config = VmConfig::from_value(json).unwrap();
        Spec::try_from(&config).map_err(|error| error.problems)
    }
}

fn spec(fields: Value) -> Result<Spec, Vec<String>> {
    Files::new().spec(fields)
}

/// Asserts that `fields` have exactly one problem.
fn assert_refused(fields: Value, problem: &str) {
    assert_eq!(spec(fields.clone()), Err(vec![problem.to_owned()]), "{fields}");
}

#[test]
fn kernel_alone_is_enough() {
    let files = Files::new();
    let spec = files.spec(json!({})).unwrap();
    let expected = Spec {
        cpus: Cpus { boot: 1, max: 1, topology: None, affinity: Vec::new(), max_phys_bits: 46 },
        zones: vec![Zone { id: "mem0".into(), size: Bytes::mib(512), memory: Memory::plain() }],
        mem_devices: Vec::new(),
        nodes: Vec::new(),
        refused_access: OnRefusedAccess::Stop,
        overcommit: false,
        payload: Payload {
            kernel: files.path("kernel").into(),
            initramfs: None,
            cmdline: String::new(),
        },
        serial: CharMode::Null,
        console: CharMode::Tty,
        disks: Vec::new(),
        rng: Rng { src: "/dev/urandom".into() },
    };
    assert_eq!(spec, expected);
}

#[test]
fn everything_that_exists_can_be_asked_for() {
    let files = Files::new();
    let spec = files.spec(json!({
        "cpus": {"boot_vcpus": 2, "max_vcpus": 4, "max_phys_bits": 40,
                 "topology": {"threads_per_core": 2, "cores_per_die": 2, "dies_per_package": 1,
                              "packages": 1},
                 "affinity": [{"vcpu": 1, "host_cpus": [0, 1023]}]},
        "memory": {"size": 4u64 << 30, "hugepages": true, "hugepage_size": 1 << 30, "shared": true,
                   "prefault": true, "thp": false, "mergeable": true, "reserve": true,
                   "hotplug_method": "VirtioMem", "hotplug_size": 0, "zones": []},
        "serial": {"mode": "Socket", "socket": "/s"},
        "console": {"mode": "File", "file": "/f"},
        "disks": [{"path": files.path("disk"), "readonly": true, "direct": true, "num_queues": 2,
                   "queue_size": 32768, "serial": "a serial of 20 bytes", "image_type": "Raw"}],
        "platform": {"num_pci_segments": 2, "system_serial_number": "1", "oem_strings": ["a"]},
    }));
    let spec = spec.unwrap();
    assert_eq!(spec.cpus.topology.unwrap().vcpus(), 4);
    assert_eq!(spec.cpus.affinity, [Affinity { vcpu: 1, host_cpus: vec![0, 1023] }]);
    let memory = &spec.zones[0].memory;
    assert_eq!(memory.backing, Backing::Hugetlb { page: Bytes::gib(1), shared: true });
    assert!(memory.prefault && memory.mergeable && memory.reserve);
    assert_eq!(spec.serial, CharMode::Socket("/s".into()));
    assert_eq!(spec.console, CharMode::File("/f".into()));
    assert_eq!(spec.disks[0].queue_size, 32768);
    assert_eq!(spec.disks[0].serial.len(), 20);
}

#[test]
fn all_problems_are_reported_at_once() {
    let fields = json!({
        "cpus": {"boot_vcpus": 255},
        "memory": {"size": 0},
        "watchdog": true,
        "disks": [{}],
    });
    let problems = [
        "watchdog: not supported yet; leave it out",
        "cpus.boot_vcpus: 255 is out of range; use 1 to 254",
        "cpus.max_vcpus: 255 is out of range; use 254 to 254",
        "memory.size: 0 bytes; give the guest some memory",
        "disks[0].path: missing; name a raw image or a block device",
    ];
    assert_eq!(spec(fields).unwrap_err(), problems);
}

#[test]
fn cpus_out_of_range_are_refused() {
    let refused = |cpus: Value, problem| assert_refused(json!({ "cpus": cpus }), problem);
    refused(json!({"boot_vcpus": 0}), "cpus.boot_vcpus: 0 is out of range; use 1 to 254");
    refused(
        json!({"boot_vcpus": 4, "max_vcpus": 3}),
        "cpus.max_vcpus: 3 is out of range; use 4 to 254",
    );
    refused(
        json!({"boot_vcpus": 1, "max_phys_bits": 64}),
        "cpus.max_phys_bits: 64 is out of range; use 36 to 52",
    );
    let topology = |threads| {
        json!({"boot_vcpus": 4, "topology": {"threads_per_core": threads, "cores_per_die": 1,
                                             "dies_per_package": 1, "packages": 2}})
    };
    assert!(spec(json!({ "cpus": topology(2) })).is_ok());
    refused(topology(1), "cpus.topology: makes 2 vCPUs, but cpus.max_vcpus is 4; make them equal");
    let sparse = json!({"boot_vcpus": 243, "topology": {"threads_per_core": 3, "cores_per_die": 9,
        "dies_per_package": 1, "packages": 9}});
    refused(sparse, "cpus.topology: needs APIC ids up to 546, above 254; use powers of two");
    let problems = spec(json!({ "cpus": topology(0) })).unwrap_err();
    assert_eq!(problems[0], "cpus.topology.threads_per_core: 0 is out of range; use 1 to 254");
}

#[test]
fn affinity_names_each_vcpu_once_and_real_host_cpus() {
    let refused = |affinity: Value, problem| {
        assert_refused(json!({"cpus": {"boot_vcpus": 2, "affinity": affinity}}), problem);
    };
    refused(
        json!([{"vcpu": 2, "host_cpus": [0]}]),
        "cpus.affinity[0].vcpu: 2 is out of range; use 0 to 1",
    );
    refused(
        json!([{"vcpu": 1, "host_cpus": [0]}, {"vcpu": 1, "host_cpus": [1]}]),
        "cpus.affinity[1].vcpu: vCPU 1 is listed twice; list each once",
    );
    refused(
        json!([{"vcpu": 0, "host_cpus": []}]),
        "cpus.affinity[0].host_cpus: empty; name at least one host CPU",
    );
    refused(
        json!([{"vcpu": 0, "host_cpus": [0, 1024]}]),
        "cpus.affinity[0].host_cpus: 1024 is out of range; use 0 to 1023",
    );
}

#[test]
fn payload_must_be_there() {
    let files = Files::new();
    let problems = |payload| files.spec(json!({ "payload": payload })).unwrap_err();
    let missing = "payload.kernel: missing; name a vmlinux or a bzImage";
    assert_eq!(problems(json!({})), [missing]);
    let nowhere = files.path("nowhere");
    assert_eq!(
        problems(json!({"kernel": nowhere})),
        [format!("payload.kernel: cannot open {nowhere}: No such file or directory")]
    );
    assert_eq!(
        problems(json!({"kernel": files.path("kernel"), "initramfs": nowhere})),
        [format!("payload.initramfs: cannot open {nowhere}: No such file or directory")]
    );
    assert_eq!(
        problems(json!({"kernel": files.path("kernel"), "cmdline": "a\0b"})),
        ["payload.cmdline: contains a NUL character; remove it"]
    );
    let firmware = problems(json!({"firmware": "/f"}));
    assert_eq!(firmware, ["payload.firmware: not supported yet; leave it out"]);
    let rng = files.spec(json!({"rng": {"src": nowhere}})).unwrap_err();
    assert_eq!(rng, [format!("rng.src: cannot open {nowhere}: No such file or directory")]);
}

#[test]
fn character_devices_that_cannot_be_are_refused() {
    let tty = json!({"mode": "Tty"});
    let off = json!({"mode": "Off"});
    assert_refused(
        json!({"serial": tty, "console": tty}),
        "console.mode: serial.mode is Tty too; turn one of them Off",
    );
    assert!(spec(json!({"serial": tty, "console": off})).is_ok());
    assert_refused(
        json!({"serial": {"mode": "File"}, "console": off}),
        "serial.file: missing; mode File needs a path",
    );
    assert_refused(
        json!({"serial": {"mode": "Socket", "socket": ""}}),
        "serial.socket: missing; mode Socket needs a path",
    );
    assert_refused(
        json!({"console": {"mode": "Socket", "socket": "/s"}}),
        "console.mode: Socket is for the serial port only; use another",
    );
}

#[test]
fn disks_that_cannot_be_are_refused() {
    let files = Files::new();
    let refused = |name: &str, value: Value, problem: &str| {
        let mut disk = json!({"path": files.path("disk")});
        disk[name] = value;
        let problems = files.spec(json!({"disks": [disk]})).unwrap_err();
        assert_eq!(problems, [format!("disks[0].{name}: {problem}")]);
    };
    refused("queue_size", json!(100), "100 is not a power of two; use 1 to 32768");
    refused("queue_size", json!(0), "0 is out of range; use 1 to 32768");
    refused("queue_size", json!(65536), "65536 is out of range; use 1 to 32768");
    refused("num_queues", json!(0), "0 is out of range; use 1 to 1");
    refused("num_queues", json!(2), "2 is out of range; use 1 to 1");
    refused("serial", json!("123456789012345678901"), "21 bytes; use at most 20");
    refused("serial", json!("é"), "use printable ASCII characters");
    refused("image_type", json!("Qcow2"), "Qcow2 is not supported; use Raw");
    refused("id", json!(""), "empty; leave it out or name the disk");
    refused("id", json!("__rng"), "__rng: names with two underscores are reserved");
    let nowhere = files.path("nowhere");
    let missing = format!("cannot open {nowhere}: No such file or directory");
    refused("path", json!(nowhere), &missing);
    let directory = files.path("");
    let problem = format!("{directory} is neither a file nor a block device");
    refused("path", json!(directory), &problem);
}

#[test]
fn qcow2_is_not_mistaken_for_raw() {
    let files = Files::new();
    let path = files.path("qcow2");
    std::fs::write(&path, b"QFI\xfb and so on").unwrap();
    let problems = files.spec(json!({"disks": [{"path": path}]})).unwrap_err();
    let problem = "looks like qcow2; convert it, or say image_type Raw";
    assert_eq!(problems, [format!("disks[0].path: {path} {problem}")]);
    assert!(files.spec(json!({"disks": [{"path": path, "image_type": "Raw"}]})).is_ok());
}

#[test]
fn disks_get_ids_that_nobody_has() {
    let files = Files::new();
    let disk = |id: Option<&str>| json!({"path": files.path("disk"), "id": id});
    let disks = [disk(None), disk(Some("_disk0")), disk(Some("root")), disk(None)];
    let spec = files.spec(json!({ "disks": disks })).unwrap();
    let ids: Vec<&str> = spec.disks.iter().map(|disk| disk.id.as_str()).collect();
    assert_eq!(ids, ["_disk1", "_disk0", "root", "_disk2"]);
    assert_eq!(spec.disks[0].path, Path::new(&files.path("disk")));

    let twice = [disk(Some("root")), disk(Some("root"))];
    let problems = files.spec(json!({ "disks": twice })).unwrap_err();
    assert_eq!(problems, ["disks[1].id: root is taken; each id is used once"]);
}

#[test]
fn number_of_disks_is_bounded() {
    let disks = vec![json!({}); 257];
    assert_refused(json!({ "disks": disks }), "disks: 257 disks; use at most 256");
}

#[test]
fn what_does_not_exist_is_refused_when_asked_for() {
    let cases = [
        ("net", json!({"net": [{"tap": "tap0"}]})),
        ("fs", json!({"fs": [{"tag": "t", "socket": "/s"}]})),
        ("vsock", json!({"vsock": {"cid": 3, "socket": "/s"}})),
        ("balloon", json!({"balloon": {"size": 0}})),
        ("numa[0].device_id", json!({"numa": [{"guest_numa_id": 0, "device_id": "a"}]})),
        ("cpus.nested", json!({"cpus": {"nested": false}})),
        ("cpus.features", json!({"cpus": {"features": {"amx": true}}})),
        ("landlock_enable", json!({"landlock_enable": true})),
        ("pvpanic", json!({"pvpanic": true})),
        ("debug_console", json!({"debug_console": {"mode": "Null"}})),
        ("serial.iommu", json!({"serial": {"mode": "Null", "iommu": true}})),
        ("platform.tdx", json!({"platform": {"tdx": true}})),
    ];
    for (field, fields) in cases {
        assert_refused(fields, &format!("{field}: not supported yet; leave it out"));
    }
    let files = Files::new();
    let limiter = json!({"bandwidth": {"size": 1, "refill_time": 1}});
    for (field, value) in [("rate_limiter_config", limiter), ("pci_segment", json!(1))] {
        let mut disk = json!({"path": files.path("disk")});
        disk[field] = value;
        let problems = files.spec(json!({"disks": [disk]})).unwrap_err();
        assert_eq!(problems, [format!("disks[0].{field}: not supported yet; leave it out")]);
    }
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    let fields = json!({
        "net": [], "fs": null, "watchdog": false, "landlock_rules": [],
        "cpus": {"features": {"amx": false}},
        "memory": {"hotplug_size": 0, "hotplugged_size": 0, "partitions": {"size": 0}},
    });
    assert_eq!(spec(fields).unwrap().mem_devices, []);
}

#[test]
fn message_lists_one_problem_per_line() {
    let error = InvalidConfig { problems: vec!["a: b".into(), "c: d".into()] };
    assert_eq!(error.to_string(), "a: b\nc: d");
}
