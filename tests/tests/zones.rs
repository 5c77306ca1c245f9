//! Memory zones, NUMA nodes, and what the host can promise.

use anyhow::Context;
use guest_tests::{Config, MIB, Result, Tessera, Vm, until, within};
use serde_json::{Value, json};

const ONLINE: &str = "memhp_default_state=online_movable";

/// What the guest counts as the memory of a node, in MiB.
fn total(vm: &Tessera, node: u64) -> Result<u64> {
    Ok(vm.on_node(node, "MemTotal")? / MIB)
}

/// Two nodes, each with a vCPU and a zone that can grow by 1 GiB.
fn nodes() -> Result<Tessera> {
    let zone = |id: &str, size: u64| {
        let room = 1024 * MIB;
        json!({"id": id, "size": size, "hotplug_size": room, "host_numa_node": 0})
    };
    let node = |number: u32, zone: &str, distance: u8| {
        json!({"guest_numa_id": number, "cpus": [number], "memory_zones": [zone],
               "distances": [{"destination": 1 - number, "distance": distance}]})
    };
    let memory = json!({"size": 0, "hotplug_method": "VirtioMem",
                        "zones": [zone("near", 256 * MIB), zone("far", 128 * MIB)]});
    let config = Config::vmlinux()?
        .vcpus(2)
        .set("memory", memory)
        .set("numa", json!([node(0, "near", 15), node(1, "far", 25)]))
        .cmdline(ONLINE);
    let vm = Vm::from(config).boot()?;
    vm.shell("true")?;
    Ok(vm)
}

#[test]
fn zones_belong_to_their_nodes_and_grow_on_their_own() -> Result<()> {
    let vm = nodes()?;
    let node = |file: &str| vm.shell(&format!("cat /sys/devices/system/node/{file}"));
    assert_eq!(node("online")?, "0-1");
    assert_eq!((node("node0/cpulist")?, node("node1/cpulist")?), ("0".into(), "1".into()));
    assert_eq!(
        (node("node0/distance")?, node("node1/distance")?),
        ("10 15".into(), "25 10".into())
    );
    let (near, far) = (total(&vm, 0)?, total(&vm, 1)?);
    // Linux takes its bounce buffers, 64 MiB, from the last node.
    assert!((128..256).contains(&near) && (32..128).contains(&far), "{near} and {far} MiB");

    let resize = |id: &str, size: u64| {
        let body = json!({"id": id, "desired_ram": size});
        vm.api().put_json("vm.resize-zone", &body)
    };
    for size in [640, 128] {
        resize("far", size * MIB)?.expect(204)?;
        vm.reaches((256 + size) * MIB)?;
        let region = vm.info()?["device_tree"]["__mem_far"]["memory"].clone();
        assert_eq!(region["plugged"], (size - 128) * MIB);
        // Linux makes memory of a block after it has taken it.
        let expected = far + size - 128;
        until("node 1 to have it", within(30), || {
            Ok((expected.abs_diff(total(&vm, 1)?) < 16).then_some(()))
        })?;
        assert!(total(&vm, 0)?.abs_diff(near) < 16);
    }
    let wrong = |reply: guest_tests::Reply, part: &str| {
        let text = reply.body.to_string();
        assert!(text.contains(part), "{text}");
    };
    wrong(resize("middle", 640 * MIB)?.expect(404)?, "there is no memory zone");
    wrong(resize("far", 64 * MIB)?.expect(400)?, "desired_ram: 64 MiB is less than");
    let whole = vm.api().put_json("vm.resize", &json!({"desired_ram": 1024 * MIB}))?;
    wrong(whole.expect(400)?, "use vm.resize-zone");
    vm.power_off()
}

#[test]
fn a_guest_is_not_promised_more_than_the_host_has() -> Result<()> {
    let config = Config::vmlinux()?
        .set("memory.hotplug_method", "VirtioMem")
        .set("memory.hotplug_size", 512_u64 << 30)
        .cmdline(ONLINE);
    let vm = Vm::from(config).boot()?;
    vm.shell("true")?;
    let body = json!({"desired_ram": 128 * MIB + (512_u64 << 30)});
    let text = vm.api().put_json("vm.resize", &body)?.expect(409)?.body.to_string();
    assert!(text.contains("the host would have to provide 512 GiB"), "{text}");
    assert!(text.contains("memory.overcommit"), "{text}");
    assert_eq!(vm.info()?["device_tree"]["__mem"]["memory"]["requested"], 0);
    vm.power_off()
}

#[test]
fn memctl_shows_and_steers_a_live_vm() -> Result<()> {
    let config = Config::vmlinux()?
        .set("memory.hotplug_method", "VirtioMem")
        .set("memory.hotplug_size", 1024 * MIB)
        .cmdline(ONLINE);
    let vm = Vm::from(config).boot()?;
    vm.shell("true")?;
    let list = vm.memctl("ls")?;
    assert!(list.contains("(shared)") && list.contains("Running"), "{list}");
    let told = vm.memctl("resize-vm --memory 384M")?;
    assert!(told.contains("384 MiB asked for"), "{told}");
    until("memctl to show 384 MiB", within(60), || {
        let list: Value = serde_json::from_str(&vm.memctl("ls --json")?)?;
        Ok((list["info"]["memory_actual_size"] == 384 * MIB).then_some(()))
    })?;
    let list = vm.memctl("ls")?;
    let shared = list.lines().find(|line| line.starts_with("(shared)"));
    let words: Vec<_> = shared.context("no shared memory")?.split_whitespace().collect();
    assert_eq!(words[2..6], ["384", "MiB", "384", "MiB"], "{list}");

    let refused = vm.run_memctl("add fn-1 --size 64M")?;
    let errors = String::from_utf8(refused.stderr)?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors.contains("no room for partitions"), "{errors}");
    vm.power_off()
}
