//! Partitions that are a NUMA node each, in our small guest, whose kernel would have the channel:
//! the API is the same, and so are its refusals. What users do in a stock guest is in `stock.rs`.

use std::time::{Duration, Instant};

use anyhow::Context;
use guest_tests::{Config, GIB, Hogs, MIB, Result, SlotGuest, run, until, within};
use serde_json::{Value, json};
use tempfile::TempDir;

const SLOT: u64 = 256 * MIB;
const WORDS: &str = "memhp_default_state=online_movable";

/// A guest of 256 MiB with so many slots.
fn vm_with(slots: u64, words: &str) -> Result<SlotGuest> {
    let partitions = json!({"mode": "numa", "slots": slots, "slot_size": SLOT});
    SlotGuest::ours(
        &json!({"size": 256 * MIB, "partitions": partitions}),
        &format!("{WORDS} {words}"),
    )
}

fn vm() -> Result<SlotGuest> {
    vm_with(2, "")
}

/// Adds a partition, waits until the guest has it, and returns its node.
fn add(vm: &SlotGuest, id: &str) -> Result<u64> {
    let node = vm.add(id, SLOT)?;
    vm.plugged()?;
    Ok(node)
}

/// Starts a process that fills so many MiB of a node, and waits until it has. Linux puts plugged
/// memory online a moment later; until then a control group that is to have it alone has its
/// parent's.
fn start(vm: &SlotGuest, node: u64, mib: u64) -> Result<Hogs<'_>> {
    let base = format!("/sys/fs/cgroup/functions/fn{node}");
    vm.shell(&format!(
        "mkdir -p {base}0; echo {node} > {base}0/cpuset.mems; \
         until [ \"$(cat {base}0/cpuset.mems.effective)\" = {node} ]; do sleep 0.1; done"
    ))?;
    vm.hogs(1, mib, &format!("cgroup={base}"))
}

/// The sum of a counter over all devices of slots.
fn counter(vm: &SlotGuest, name: &str) -> Result<u64> {
    let counters = vm.counters()?;
    let devices = counters.as_object().context("no counters")?.iter();
    let slots = devices.filter(|(id, _)| id.starts_with("__slot"));
    Ok(slots.filter_map(|(_, counters)| counters[name].as_u64()).sum())
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
        let mut functions = Vec::new();
        for node in nodes {
            functions.push(start(&vm, node, 200)?);
            let used = vm.on_node(node, "AnonPages")?;
            assert!(used > 190 * MIB, "{used} bytes on node {node}");
        }
        let before = vm.migrated()?;
        functions.into_iter().try_for_each(Hogs::end)?;
        for id in ["fn-a", "fn-b"] {
            let gone = vm.remove(id)?;
            println!("round {round}: {id} was back after {} us", gone["removal_us"]);
        }
        // These functions joined a cpuset of their node alone, so Linux moved there what they had
        // brought from node 0, and a few pages of their program are moved back.
        let moved = vm.migrated()? - before;
        println!("round {round}: {moved} pages migrated");
        assert!(moved < 64, "{moved} pages");
        assert_eq!(vm.partitions()?, Vec::<Value>::new());
        assert_eq!(vm.actual_size()?, 256 * MIB);
    }
    vm.power_off()
}

#[test]
fn a_reboot_asks_for_the_same_partitions_in_the_same_nodes() -> Result<()> {
    let vm = vm()?;
    add(&vm, "fn-a")?;
    assert_eq!(add(&vm, "fn-b")?, 2);
    vm.remove("fn-a")?;
    vm.console().send("reboot -f\n")?;
    vm.console().wait_for_shell()?;
    vm.plugged()?;
    let list = vm.partitions()?;
    assert_eq!(list.len(), 1);
    assert_eq!((&list[0]["id"], &list[0]["node"]), (&json!("fn-b"), &json!(2)));
    let missing = json!({"id": "fn-a"});
    vm.api().put_json("vm.remove-partition", &missing)?.expect(404)?;
    vm.power_off()
}

#[test]
fn calls_events_counters_and_memctl_are_those_of_other_partitions() -> Result<()> {
    let vm = SlotGuest::ours_with_events(
        &json!({"size": 256 * MIB, "partitions": {"mode": "numa", "slots": 2, "slot_size": SLOT}}),
        WORDS,
    )?;
    vm.memctl("add fn-a --size 128M")?;
    vm.plugged()?;
    vm.memctl("resize fn-a --size 256M")?;
    vm.plugged()?;
    let list = vm.memctl("ls")?;
    let row = list.lines().find(|line| line.starts_with("fn-a")).context("no row")?;
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!(words[1..6], ["plugged", "256", "MiB", "256", "MiB"], "{list}");
    let one = vm.partitions()?.remove(0);
    assert_eq!((&one["node"], &one["size"], &one["peak"]), (&json!(1), &json!(SLOT), &json!(SLOT)));
    assert_eq!(one["release"], "manual", "memctl asked for auto: {one}");
    assert!(one["number"].is_null(), "the guest has none for it: {one}");
    assert!(one["plugs"].as_u64() > Some(0) && one["unplugs"] == 0, "{one}");
    assert_eq!(one["extents"][0]["size"], SLOT);
    assert_eq!(counter(&vm, "plugged_bytes")?, SLOT);
    let info = vm.info()?;
    let memory = &info["device_tree"]["__slot0"]["memory"];
    assert_eq!((&memory["plugged"], &memory["shared"]["plugged"]), (&json!(SLOT), &json!(0)));

    let told = vm.memctl("rm fn-a")?;
    assert!(told.contains("fn-a"), "{told}");
    assert_eq!(counter(&vm, "unplugged_bytes")?, SLOT);
    // Who waits is answered before who watches.
    let steps = until("the last event", within(10), || {
        let events = vm.events()?.into_iter();
        let of_partition = events.filter(|event| event["source"] == "partition");
        let steps: Vec<_> = of_partition.map(|event| event["properties"].clone()).collect();
        Ok(steps.iter().any(|step| !step["released"].is_null()).then_some(steps))
    })?;
    let states: Vec<_> = steps.iter().filter_map(|step| step["state"].as_str()).collect();
    assert_eq!(states, ["requested", "plugged", "absent"], "{steps:?}");
    let released = steps.last().context("no event")?;
    assert_eq!(released["released"], SLOT.to_string(), "{released}");
    assert_eq!(released["node"], "1", "{released}");
    let host: u64 = released["release_us"].as_str().context("no time")?.parse()?;
    assert!(host > 0 && host <= counter(&vm, "release_us_total")? + 1, "{host} us");
    vm.power_off()
}

#[test]
fn what_the_guest_does_not_give_back_is_told_and_comes_when_it_can() -> Result<()> {
    let vm = vm()?;
    assert_eq!(add(&vm, "fn-a")?, 1);
    vm.api().put("vm.pause")?.expect(204)?;
    let remove = json!({"id": "fn-a", "timeout_ms": 500});
    let text = vm.api().put_json("vm.remove-partition", &remove)?.expect(409)?.body.to_string();
    assert!(text.contains("has not given back 256 MiB of node 1"), "{text}");
    assert!(text.contains("tessera-function check 1"), "{text}");
    let left = vm.partitions()?.remove(0);
    assert_eq!((&left["state"], &left["size"]), (&json!("plugged"), &json!(0)), "{left}");
    assert_eq!((&left["stuck"], &left["plugged"]), (&json!(SLOT), &json!(SLOT)), "{left}");
    vm.api().put("vm.resume")?.expect(204)?;
    vm.remove("fn-a")?;
    vm.power_off()
}

#[test]
fn a_guest_that_makes_no_nodes_is_a_conflict_that_says_what_to_do() -> Result<()> {
    let vm = vm_with(2, "numa=off")?;
    let add = || vm.api().put_json("vm.add-partition", &json!({"id": "fn-a", "size": SLOT}));
    let text = add()?.expect(409)?.body.to_string();
    assert!(text.contains("has no NUMA nodes") && text.contains("numa=off"), "{text}");
    let run = "tessera-function run fn-a 1 128 true";
    let (status, told) = vm.console().status_of(&format!("{run} 2>&1"))?;
    assert_eq!(status, 1, "{told}");
    assert!(told.contains("there can be no node 1"), "{told}");

    vm.unbind_memory()?;
    let text = add()?.expect(409)?.body.to_string();
    assert!(text.contains("driver for this memory is not up"), "{text}");
    assert_eq!(vm.partitions()?, Vec::<Value>::new());
    vm.power_off()
}

#[test]
fn more_than_sixteen_slots_are_refused_before_anything_is_started() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("vm.json");
    let partitions = json!({"mode": "numa", "slots": 17, "slot_size": SLOT});
    Config::vmlinux()?.set("memory.partitions", partitions).write_to(&file)?;
    let ended = run(["--config".into(), file.into_os_string()])?;
    assert_eq!(ended.status, 1);
    let problem = "memory.partitions.slots: 17 is out of range; use 1 to 16";
    assert!(ended.error.contains(problem), "{}", ended.error);
    Ok(())
}

/// What a guest with so many slots takes.
struct Cost {
    boot: Duration,
    /// KiB that the guest can't use.
    guest: u64,
    /// KiB that the monitor has, without the guest's memory.
    host: u64,
}

impl Cost {
    fn of(slots: u64) -> Result<Self> {
        let begin = Instant::now();
        let memory = match slots {
            0 => json!({"size": 256 * MIB}),
            _ => {
                let partitions = json!({"mode": "numa", "slots": slots, "slot_size": GIB});
                json!({"size": 256 * MIB, "partitions": partitions})
            }
        };
        let vm = SlotGuest::ours(&memory, WORDS)?;
        let boot = begin.elapsed();
        let guest = 256 * MIB - vm.meminfo("MemAvailable")?;
        let mappings = vm.process().mappings()?;
        // Its memory is the largest mapping.
        let ram = mappings.iter().map(|mapping| mapping.resident).max().unwrap_or_default();
        let all: u64 = mappings.iter().map(|mapping| mapping.resident).sum();
        vm.power_off()?;
        Ok(Self { boot, guest: guest >> 10, host: (all - ram) >> 10 })
    }
}

#[test]
fn sixteen_slots_of_a_gibibyte_cost_little_until_they_are_used() -> Result<()> {
    // What the machine does beside is not the boot's time.
    let least_of_three = |slots| {
        let boots = [Cost::of(slots)?, Cost::of(slots)?, Cost::of(slots)?];
        boots.into_iter().min_by_key(|cost| cost.boot).context("three")
    };
    let (none, all) = (least_of_three(0)?, least_of_three(16)?);
    for (Cost { boot, guest, host }, slots) in [(&none, 0), (&all, 16)] {
        println!("{slots} slots: up after {boot:?}, {guest} KiB of the guest, {host} of the host");
    }
    // A device, its thread and its node each.
    assert!(all.guest < none.guest + 16 * (8 << 10), "8 MiB of the guest's each");
    assert!(all.host < none.host + 16 * 256, "256 KiB of the host's each");
    assert!(all.boot < none.boot * 3, "{:?} and {:?}", all.boot, none.boot);
    Ok(())
}

/// A slot takes a while to come up; until then its function waits.
#[test]
fn a_function_waits_for_its_node_and_says_when_it_does_not_come() -> Result<()> {
    let vm = vm()?;
    vm.shell(
        "sed 's/^patience=60/patience=2/' /bin/tessera-function > /bin/hasty; chmod +x /bin/hasty",
    )?;
    let (status, told) = vm.console().status_of("hasty run fn-a 1 256 true 2>&1")?;
    assert_eq!(status, 1, "{told}");
    assert!(told.contains("node 1 has 0 of 256 MiB after 2 s; is it added?"), "{told}");
    vm.shell(
        "(tessera-function run fn-a 1 256 true > /told 2>&1; echo status $? >> /told) & true",
    )?;
    vm.add("fn-a", SLOT)?;
    // There is neither numactl nor perl here to bind it with; that is how far it comes.
    until("the function to end", within(60), || {
        Ok(vm.shell("grep status /told || true")?.contains("status").then_some(()))
    })?;
    let told = vm.shell("cat /told")?;
    assert!(told.contains("perl") && told.contains("status 127"), "{told}");
    assert_eq!(vm.shell("ls -d /sys/fs/cgroup/functions/* | grep -c fn- || true")?, "0");
    vm.power_off()
}
