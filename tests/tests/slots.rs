//! Partitions of a guest without our kernel patches: each is a NUMA node of its own.

use guest_tests::{Artefact, Config, Image, Result, Tessera, Vm, until, within};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SLOT: u64 = 256 * MIB;

/// From the monitor's start to a login; systemd takes its time.
const PATIENCE: u32 = 400;

/// A guest with two slots, whose shell keeps to node 0.
fn vm() -> Result<Tessera> {
    let config = Config::vmlinux()?
        .memory(256 * MIB)
        .with_programs()?
        .set("memory.partitions", json!({"mode": "numa", "slots": 2, "slot_size": SLOT}))
        .cmdline("memhp_default_state=online_movable");
    let vm = Vm::from(config).boot()?;
    vm.shell(
        "mkdir /cg; mount -t cgroup2 cg /cg; echo +cpuset > /cg/cgroup.subtree_control; \
         mkdir /cg/sys; echo 0 > /cg/sys/cpuset.mems; echo $$ > /cg/sys/cgroup.procs",
    )?;
    Ok(vm)
}

fn partitions(vm: &Tessera) -> Result<Vec<Value>> {
    let body = vm.api().get("vm.partitions")?.expect(200)?.body;
    Ok(body.as_array().cloned().unwrap_or_default())
}

/// Waits until the guest has all of each partition.
fn plugged(vm: &Tessera) -> Result<()> {
    until("the guest to plug the slots", within(60), || {
        let all = partitions(vm)?.iter().all(|one| one["state"] == "plugged");
        Ok(all.then_some(()))
    })
}

/// Adds a partition and returns its node.
fn add(vm: &Tessera, id: &str) -> Result<u64> {
    let body = json!({"id": id, "size": SLOT, "cookie": 7});
    let added = vm.api().put_json("vm.add-partition", &body)?.expect(200)?.body;
    assert_eq!((&added["id"], &added["size"]), (&json!(id), &json!(SLOT)));
    plugged(vm)?;
    Ok(added["node"].as_u64().unwrap_or_default())
}

fn migrated(vm: &Tessera) -> Result<u64> {
    Ok(vm.shell("sed -n 's/^pgmigrate_success //p' /proc/vmstat")?.parse()?)
}

/// Linux puts plugged memory online a moment later. Until then a control group that is to have it
/// alone has its parent's.
fn wait_for(group: &str, node: u64) -> String {
    format!("until [ \"$(cat {group}/cpuset.mems.effective)\" = {node} ]; do sleep 0.1; done;")
}

/// Starts a process that fills 200 MiB of a node, and waits until it has. Its output goes through a
/// pipe: a file that it wrote would lie on its node, and would have to move.
fn start(vm: &Tessera, node: u64) -> Result<()> {
    let wait = wait_for(&format!("/cg/fn{node}0"), node);
    vm.shell(&format!(
        "mkdir -p /cg/fn{node}0; echo {node} > /cg/fn{node}0/cpuset.mems; {wait} rm -f /out{node}; \
         hog 1 200 cgroup=/cg/fn{node} 2>&1 | cat > /out{node} & \
         while ! grep -q ready /out{node}; do sleep 0.1; done"
    ))?;
    Ok(())
}

#[test]
fn functions_come_and_go_in_nodes_of_their_own_and_next_to_nothing_is_migrated() -> Result<()> {
    let vm = vm()?;
    for round in 0..3 {
        let nodes = [add(&vm, "fn-a")?, add(&vm, "fn-b")?];
        assert_eq!(nodes, [1, 2], "round {round}");
        let full = vm.api().put_json("vm.add-partition", &json!({"id": "fn-c", "size": SLOT}))?;
        let text = full.expect(409)?.body.to_string();
        assert!(text.contains("all 2 slots are taken"), "{text}");
        for node in nodes {
            start(&vm, node)?;
            let meminfo = format!("/sys/devices/system/node/node{node}/meminfo");
            let used =
                vm.shell(&format!("sed -n 's/.*AnonPages: *\\([0-9]*\\) kB/\\1/p' {meminfo}"))?;
            assert!(used.trim().parse::<u64>()? > 190 << 10, "{used} KiB on node {node}");
        }
        let before = migrated(&vm)?;
        vm.shell("killall -9 hog; while pidof hog; do sleep 0.1; done")?;
        for id in ["fn-a", "fn-b"] {
            let body = json!({"id": id, "timeout_ms": 60_000});
            let gone = vm.api().put_json("vm.remove-partition", &body)?.expect(200)?.body;
            assert_eq!((&gone["state"], &gone["plugged"]), (&json!("absent"), &json!(0)));
            println!("round {round}: {id} was back after {} us", gone["removal_us"]);
        }
        // Linux counts as migrated what it finds freed, of the last batches of either function, and a
        // few pages of files are there after all. The functions had 100,000.
        let moved = migrated(&vm)? - before;
        println!("round {round}: {moved} pages migrated");
        assert!(moved < 64, "{moved} pages");
        assert_eq!(partitions(&vm)?, Vec::<Value>::new());
        let info = vm.api().get("vm.info")?.expect(200)?.body;
        assert_eq!(info["memory_actual_size"], 256 * MIB);
    }
    vm.power_off()
}

#[test]
fn a_reboot_asks_for_the_same_partitions_in_the_same_nodes() -> Result<()> {
    let vm = vm()?;
    add(&vm, "fn-a")?;
    assert_eq!(add(&vm, "fn-b")?, 2);
    let gone = json!({"id": "fn-a", "timeout_ms": 60_000});
    vm.api().put_json("vm.remove-partition", &gone)?.expect(200)?;
    vm.console().send("reboot -f\n")?;
    vm.console().wait_for_shell()?;
    plugged(&vm)?;
    let list = partitions(&vm)?;
    assert_eq!(list.len(), 1);
    assert_eq!((&list[0]["id"], &list[0]["node"]), (&json!("fn-b"), &json!(2)));
    let missing = json!({"id": "fn-a"});
    vm.api().put_json("vm.remove-partition", &missing)?.expect(404)?;
    vm.power_off()
}

#[test]
fn debians_own_kernel_gives_a_function_back() -> Result<()> {
    let image = Image::copy_of(&Artefact::DebianImage.path()?)?;
    // Its kernel has no channel, so auto means slots.
    let partitions = json!({"mode": "auto", "size": 1024 * MIB, "slots": 2, "slot_size": SLOT});
    let config = Config::debian(&image.path())?
        .set("memory.partitions", partitions)
        .cmdline("quiet memhp_default_state=online_movable");
    let vm = Vm::from(config).prompt("root@tessera:~# ").boot()?;
    vm.console().wait_for_within("tessera login: root (automatic login)", within(PATIENCE))?;
    vm.shell(
        "cd /sys/fs/cgroup; echo +cpuset > cgroup.subtree_control; \
         for slice in *.slice init.scope; do echo 0 > $slice/cpuset.mems; done; mkdir fn; cd",
    )?;
    let group = "/sys/fs/cgroup/fn";
    for round in 0..3 {
        let node = add(&vm, "fn-a")?;
        let wait = wait_for(group, node);
        // Perl makes its string twice: 200 MiB.
        vm.shell(&format!(
            "echo {node} > {group}/cpuset.mems; {wait} (echo $BASHPID > {group}/cgroup.procs; \
             exec perl -e '$x = q(x) x (100 << 20); sleep 1000') & sleep 1"
        ))?;
        let meminfo = format!("/sys/devices/system/node/node{node}/meminfo");
        until("the function to fill its node", within(30), || {
            let kib =
                vm.shell(&format!("sed -n 's/.*AnonPages: *\\([0-9]*\\) kB/\\1/p' {meminfo}"))?;
            Ok((kib.trim().parse::<u64>()? > 190 << 10).then_some(()))
        })?;
        let before = migrated(&vm)?;
        vm.shell(&format!("echo 1 > {group}/cgroup.kill; wait"))?;
        let body = json!({"id": "fn-a", "timeout_ms": 60_000});
        let gone = vm.api().put_json("vm.remove-partition", &body)?.expect(200)?.body;
        let moved = migrated(&vm)? - before;
        println!("round {round}: back after {} us, {moved} pages migrated", gone["removal_us"]);
        assert!(moved < 64, "{moved} pages");
    }
    Ok(())
}
