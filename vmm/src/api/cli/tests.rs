//! Command lines to launches.

use clap::error::ErrorKind;
use serde_json::json;

use super::*;
use crate::api::config::CharModeConfig;

fn launch(line: &[&str]) -> Launch {
    Cli::try_parse_from([&["tessera"], line].concat()).unwrap().launch().unwrap()
}

fn config(line: &[&str]) -> Value {
    let config = launch(&[&["--kernel", "/k"], line].concat()).config.unwrap();
    serde_json::to_value(config).unwrap()
}

fn usage(line: &[&str]) -> ErrorKind {
    let error = Cli::try_parse_from([&["tessera"], line].concat()).unwrap_err();
    assert_eq!(error.exit_code(), if error.use_stderr() { 2 } else { 0 });
    error.kind()
}

/// The error and what caused it.
fn problem(line: &[&str]) -> String {
    let cli = Cli::try_parse_from([&["tessera"], line].concat()).unwrap();
    let error = cli.launch().unwrap_err();
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

fn value_problem(option: &str, value: &str) -> String {
    problem(&["--kernel", "/k", option, value])
}

#[test]
fn only_a_socket_waits_for_a_vm() {
    for (text, endpoint) in [
        ("/run/s", Endpoint::Path("/run/s".into())),
        ("path=/run/s", Endpoint::Path("/run/s".into())),
        ("fd=7", Endpoint::Fd(7)),
    ] {
        let expected = Launch { api_socket: Some(endpoint), ..Launch::default() };
        assert_eq!(launch(&["--api-socket", text]), expected);
    }
}

#[test]
fn options_of_a_vm_need_a_payload() {
    for option in ["--cpus", "--memory", "--disk", "--serial", "--cmdline", "--initramfs"] {
        let line = ["--api-socket", "s", option, "x"];
        assert_eq!(usage(&line), ErrorKind::MissingRequiredArgument, "{option}");
    }
    assert_eq!(usage(&[]), ErrorKind::MissingRequiredArgument);
    assert_eq!(usage(&["-v"]), ErrorKind::MissingRequiredArgument);
    assert_eq!(usage(&["--kernel", "k", "--nope"]), ErrorKind::UnknownArgument);
    assert_eq!(usage(&["--kernel", "k", "stray"]), ErrorKind::UnknownArgument);
}

/// The option is named, however it is written, and nothing else is told.
#[test]
fn options_that_only_cloud_hypervisor_has_are_not_supported_yet() {
    let read = |line: &[&str]| {
        let words = ["tessera", "--api-socket", "s"].iter().chain(line);
        Cli::read(words.map(|word| (*word).into())).unwrap_err()
    };
    for (line, option) in [
        (&["--net", "tap=tap0,mac="][..], "--net"),
        (&["--vsock=cid=3,socket=/s"], "--vsock"),
        (&["--disk", "path=a", "--firmware", "f"], "--firmware"),
        (&["--landlock"], "--landlock"),
    ] {
        let error = read(line);
        assert_eq!(error.exit_code(), 2);
        let expected = format!("error: {option} is not supported yet; leave it out\n");
        assert_eq!(error.to_string(), expected);
    }
    assert!(read(&["--nets"]).to_string().contains("unexpected argument '--nets'"));
    let help = read(&["--help"]);
    assert_eq!(help.exit_code(), 0);
    assert!(!help.to_string().contains("--net"), "{help}");
}

/// Scripts for Cloud Hypervisor say it either way, and it is on unless they do.
#[test]
fn a_filter_that_is_not_there_cannot_be_asked_for() {
    assert!(launch(&["--kernel", "k", "--seccomp", "false"]).config.is_some());
    for text in ["true", "log", "errno", "x"] {
        assert_eq!(
            problem(&["--api-socket", "s", "--seccomp", text]),
            format!(
                "--seccomp: {text:?} is not supported yet: no system call is filtered; use \
                 --seccomp false"
            )
        );
    }
}

#[test]
fn keys_that_only_cloud_hypervisor_has_are_not_supported_yet() {
    for (option, key) in [
        ("--disk", "bw_size"),
        ("--disk", "ops_refill_time"),
        ("--cpus", "features"),
        ("--memory", "file"),
        ("--memory-zone", "reserve"),
        ("--numa", "device_id"),
        ("--rng", "id"),
        ("--platform", "iommu_segments"),
    ] {
        let expected = format!("{option}: {key}: not supported yet; leave it out");
        assert_eq!(value_problem(option, &format!("{key}=1")), expected);
    }
}

#[test]
fn version_is_a_name_and_a_number() {
    assert_eq!(usage(&["-V"]), ErrorKind::DisplayVersion);
    let text = Cli::try_parse_from(["tessera", "-V"]).unwrap_err().to_string();
    assert_eq!(text, format!("tessera v{}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(usage(&["--help"]), ErrorKind::DisplayHelp);
}

#[test]
fn options_become_fields() {
    let line = [
        "--cpus",
        "boot=2,max=4,topology=2:2:1:1,max_phys_bits=40,affinity=[0@[1,2],1@[4-6,9]]",
        "--memory",
        "size=1G,shared=on,hugepages=on,hugepage_size=2M,prefault=on,thp=off,mergeable=true,\
         hotplug_method=virtio-mem,hotplug_size=4G,hotplugged_size=1G,partitions=8G",
        "--cmdline",
        "-x console=ttyS0",
        "--initramfs",
        "/i",
        "--rng",
        "src=/dev/random",
        "--platform",
        "serial_number=1,uuid=2,oem_strings=[a,b]",
    ];
    let config = config(&line);
    assert_eq!(config["cpus"]["boot_vcpus"], 2);
    assert_eq!(config["cpus"]["max_vcpus"], 4);
    let topology = json!({"threads_per_core": 2, "cores_per_die": 2, "dies_per_package": 1,
                          "packages": 1});
    assert_eq!(config["cpus"]["topology"], topology);
    assert_eq!(config["cpus"]["max_phys_bits"], 40);
    let affinity =
        json!([{"vcpu": 0, "host_cpus": [1, 2]}, {"vcpu": 1, "host_cpus": [4, 5, 6, 9]}]);
    assert_eq!(config["cpus"]["affinity"], affinity);
    assert_eq!(config["memory"]["size"], 1 << 30);
    assert_eq!(config["memory"]["hugepage_size"], 2 << 20);
    for (field, value) in [("shared", true), ("hugepages", true), ("prefault", true)] {
        assert_eq!(config["memory"][field], value, "{field}");
    }
    assert_eq!(config["memory"]["hotplug_method"], "VirtioMem");
    assert_eq!(config["memory"]["hotplug_size"], 4u64 << 30);
    assert_eq!(config["memory"]["hotplugged_size"], 1 << 30);
    let partitions = &config["memory"]["partitions"];
    assert_eq!((&partitions["size"], &partitions["max"]), (&json!(8u64 << 30), &json!(64)));
    assert_eq!(config["memory"]["thp"], false);
    assert_eq!(config["memory"]["mergeable"], true);
    assert_eq!(config["payload"]["kernel"], "/k");
    assert_eq!(config["payload"]["cmdline"], "-x console=ttyS0");
    assert_eq!(config["payload"]["initramfs"], "/i");
    assert_eq!(config["rng"]["src"], "/dev/random");
    assert_eq!(config["platform"]["system_serial_number"], "1");
    assert_eq!(config["platform"]["system_uuid"], "2");
    assert_eq!(config["platform"]["oem_strings"], json!(["a", "b"]));
}

#[test]
fn partitions_have_keys_of_their_own() {
    let keys = "[mode=auto,size=8G,max=7,prepare=1G,slots=2,slot_size=512M]";
    let config = config(&["--memory", &format!("partitions={keys},size=1G")]);
    let partitions = json!({"mode": "auto", "size": 8u64 << 30, "max": 7, "prepare": 1 << 30,
                            "slots": 2, "slot_size": 512 << 20});
    assert_eq!(config["memory"]["partitions"], partitions);
    assert_eq!(
        value_problem("--memory", "partitions=[min=1]"),
        "--memory: partitions: unknown key \"min\"; valid keys are mode, size, max, prepare, slots, \
         slot_size"
    );
}

#[test]
fn zones_and_nodes_are_lists() {
    let one = "id=a,size=1G,shared=on,hugepages=on,hugepage_size=2M,host_numa_node=1,\
               hotplug_size=4G,hotplugged_size=1G,prefault=on";
    let node = "guest_numa_id=1,cpus=[0-2,5],distances=[0@15,2@25],memory_zones=[a,b]";
    let config = config(&[
        "--memory",
        "size=0,hotplug_method=virtio-mem",
        "--memory-zone",
        one,
        "id=b,size=2G",
        "--numa",
        node,
        "guest_numa_id=2,memory_zones=c",
    ]);
    let zone = json!({"id": "a", "size": 1u64 << 30, "file": null, "shared": true, "hugepages": true,
        "hugepage_size": 2 << 20, "host_numa_node": 1, "hotplug_size": 4u64 << 30,
        "hotplugged_size": 1 << 30, "prefault": true});
    assert_eq!((&config["memory"]["size"], &config["memory"]["zones"][0]), (&json!(0), &zone));
    assert_eq!(config["memory"]["zones"][1]["id"], "b");
    let distances = json!([{"destination": 0, "distance": 15}, {"destination": 2, "distance": 25}]);
    let node = &config["numa"][0];
    assert_eq!((&node["guest_numa_id"], &node["distances"]), (&json!(1), &distances));
    assert_eq!((&node["cpus"], &node["memory_zones"]), (&json!([0, 1, 2, 5]), &json!(["a", "b"])));
    assert_eq!(config["numa"][1]["memory_zones"], json!(["c"]));
    assert_eq!(
        value_problem("--numa", "distances=[1]"),
        r#"--numa: distances: "1" is not of the form NODE@DISTANCE"#
    );
}

#[test]
fn disks_are_several_values_or_the_option_again() {
    let a = "path=/a,readonly=on,direct=on,num_queues=2,queue_size=256,id=root,serial=s1";
    let lines: [&[&str]; 2] =
        [&["--disk", a, "path=/b,image_type=raw"], &["--disk", a, "--disk", "path=/b"]];
    for line in lines {
        let config = config(line);
        let disks = config["disks"].as_array().unwrap();
        assert_eq!(disks.len(), 2);
        for (field, value) in [
            ("path", json!("/a")),
            ("readonly", json!(true)),
            ("direct", json!(true)),
            ("num_queues", json!(2)),
            ("queue_size", json!(256)),
            ("id", json!("root")),
            ("serial", json!("s1")),
        ] {
            assert_eq!(disks[0][field], value, "{field}");
        }
        assert_eq!(disks[1]["path"], "/b");
    }
}

#[test]
fn character_devices_have_modes() {
    let modes = [
        ("off", "Off"),
        ("null", "Null"),
        ("tty", "Tty"),
        ("pty", "Pty"),
        ("file=/f", "File"),
        ("socket=/s", "Socket"),
    ];
    for (text, mode) in modes {
        let config = config(&["--serial", text, "--console", text]);
        assert_eq!(config["serial"]["mode"], mode);
        assert_eq!(config["console"]["mode"], mode);
    }
    assert_eq!(config(&["--serial", "file=/f=g"])["serial"]["file"], "/f=g");
    assert_eq!(config(&["--serial", "socket=/s"])["serial"]["socket"], "/s");
}

#[test]
fn options_override_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.json");
    let text = json!({
        "cpus": {"boot_vcpus": 2, "max_phys_bits": 40},
        "memory": null,
        "payload": {"kernel": "/old", "cmdline": "old"},
        "serial": {"mode": "File", "file": "/log"},
        "disks": [{"path": "/old"}, {"path": "/old"}],
    });
    std::fs::write(&file, text.to_string()).unwrap();
    let file = file.to_str().unwrap();

    let unchanged = launch(&["--config", file]).config.unwrap();
    assert_eq!(unchanged.cpus.boot_vcpus, 2);
    assert_eq!(unchanged.disks.len(), 2);

    let line = ["--config", file, "--kernel", "/new", "--cpus", "boot=4", "--memory", "size=1G"];
    let line = [&line[..], &["--serial", "tty", "--disk", "path=/new"]].concat();
    let config = launch(&line).config.unwrap();
    assert_eq!((config.cpus.boot_vcpus, config.cpus.max_phys_bits), (4, 40));
    assert_eq!(config.memory.size, 1 << 30);
    assert_eq!(config.payload.kernel.unwrap(), Path::new("/new"));
    assert_eq!(config.payload.cmdline.unwrap(), "old");
    assert_eq!((config.serial.mode, config.serial.file), (CharModeConfig::Tty, None));
    assert_eq!(config.disks.len(), 1);
}

#[test]
fn unknown_keys_are_errors_that_list_the_valid_ones() {
    assert_eq!(
        value_problem("--rng", "foo=1"),
        r#"--rng: unknown key "foo"; valid keys are src, iommu"#
    );
    assert_eq!(
        value_problem("--serial", "teletype"),
        r#"--serial: "teletype" does not exist; use off|null|tty|pty|file=F|socket=F"#
    );
    assert_eq!(
        value_problem("--console", "teletype"),
        r#"--console: "teletype" does not exist; use off|null|tty|pty|file=F"#
    );
}

#[test]
fn values_that_cannot_be_read_are_explained() {
    let cases = [
        ("--cpus", "boot=two", r#"--cpus: boot: "two" is not a number"#),
        ("--cpus", "boot=+2", r#"--cpus: boot: "+2" is not a number"#),
        ("--cpus", "boot=", r#"--cpus: boot: "" is not a number"#),
        (
            "--cpus",
            "topology=1:2",
            r#"--cpus: topology: "1:2" is not of the form THREADS:CORES:DIES:PACKAGES"#,
        ),
        ("--cpus", "affinity=[1]", r#"--cpus: affinity: "1" is not of the form VCPU@[CPU,..]"#),
        (
            "--cpus",
            "affinity=[0@[0-18446744073709551615]]",
            r#"--cpus: affinity: "0-18446744073709551615" is not a range of CPUs"#,
        ),
        (
            "--memory",
            "size=1P",
            "--memory: size: \"1P\" is not a size; write a number, alone or followed by K, M, G or T, \
             as in 512M or 512MiB",
        ),
        (
            "--memory",
            "size=99999999999G",
            r#"--memory: size: "99999999999G" is a size over 2^64 bytes"#,
        ),
        ("--memory", "shared=1", r#"--memory: shared: "1" is not a switch; use on or off"#),
        (
            "--memory",
            "partitions=on",
            "--memory: partitions: \"on\" is not a size; write a number, alone or followed by K, M, G \
             or T, as in 512M or 512MiB",
        ),
        (
            "--memory",
            "refused_access=ask",
            r#"--memory: refused_access: "ask" does not exist; use stop or report"#,
        ),
        (
            "--memory",
            "hotplug_method=x",
            r#"--memory: hotplug_method: "x" does not exist; use acpi or virtio-mem"#,
        ),
    ];
    for (option, value, expected) in cases {
        assert_eq!(value_problem(option, value), expected);
    }
}

#[test]
fn numbers_out_of_range_are_named_by_field() {
    assert_eq!(
        value_problem("--cpus", "boot=4294967296"),
        "in the configuration: cpus.boot_vcpus: invalid value: integer `4294967296`, expected u32"
    );
}

#[test]
fn endpoints_that_make_no_sense_are_errors() {
    assert_eq!(problem(&["--api-socket", "fd=x"]), r#"--api-socket: fd: "x" is not a descriptor"#);
    assert_eq!(
        problem(&["--api-socket", "fd=-1"]),
        r#"--api-socket: fd: "-1" is not a descriptor"#
    );
    assert_eq!(problem(&["--api-socket", "path="]), "--api-socket: the path is empty");
    let line = ["--api-socket", "s", "--event-monitor", "fd=x"];
    assert_eq!(problem(&line), r#"--event-monitor: fd: "x" is not a descriptor"#);
}

#[test]
fn file_that_is_no_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.json");
    let file = file.to_str().unwrap();
    assert_eq!(problem(&["--config", file]), format!("--config {file}: the file cannot be read"));
    std::fs::write(file, "{").unwrap();
    assert_eq!(problem(&["--config", file]), format!("--config {file}: not valid JSON"));
    std::fs::write(file, r#"{"disks":{}}"#).unwrap();
    let expected = "in the configuration: disks: invalid type: map, expected a sequence";
    assert_eq!(problem(&["--config", file]), expected);
}

#[test]
fn logging_is_asked_for_with_letters() {
    let cli = Cli::try_parse_from(["tessera", "--kernel", "k", "-vv", "--log-file", "l"]).unwrap();
    assert_eq!(cli.verbosity(), 2);
    assert_eq!(cli.log_file(), Some(Path::new("l")));
}
