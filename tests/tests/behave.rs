//! What a function does in a partition: each case of `tests/guest/behave`, and after it the release.
//!
//! Whatever the function did, in the end its partition is gone from the host in one request, and no
//! page was migrated for it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context;
use guest_tests::{Config, Image, MIB, Result, Tessera, Vm, random_bytes, until, within};
use serde_json::{Value, json};

const BOOT: u64 = 512 * MIB;
const A: u64 = 64 * MIB;
/// A partition A of which a function has more than all that is outside.
const LARGE_A: u64 = 640 * MIB;
const B: u64 = 32 * MIB;

/// Memory that is added to the guest's own, beside the partitions.
const MORE: u64 = 512 * MIB;

/// A swap device of compressed memory, and a disk of it.
const SWAP: &str = "echo 256M > /sys/block/zram0/disksize; mkswap /dev/zram0; swapon /dev/zram0";
const DISK: &str = "echo 32M > /sys/block/zram0/disksize";

/// The lists of pages that Linux had before generations of them.
const LISTS: &str = "echo n > /sys/kernel/mm/lru_gen/enabled";

fn vm(prepare: &str) -> Result<Tessera> {
    let config = config()?.memory(BOOT).set("memory.hotplug_size", MORE);
    booted(config, prepare)
}

/// A guest that lacks memory besides that of its partitions.
fn config() -> Result<Config> {
    let config = Config::vmlinux()?
        .vcpus(2)
        .with_programs()?
        .set("memory.partitions", json!({"size": 512 * MIB, "prepare": 256 * MIB}))
        .set("memory.hotplug_method", "VirtioMem")
        // What the OOM killer says is in dmesg, and not among the answers of the shell.
        .cmdline("memhp_default_state=online_movable loglevel=2");
    Ok(config)
}

fn booted(config: Config, prepare: &str) -> Result<Tessera> {
    let vm = Vm::from(config).boot()?;
    vm.mount_cgroups()?;
    vm.shell("mount -t debugfs debug /sys/kernel/debug")?;
    // Linux has none where there is less than 512 MiB at its start; and it collapses nothing while a
    // case looks at what it split.
    vm.shell(
        "cd /sys/kernel/mm/transparent_hugepage; echo 1000000 > khugepaged/scan_sleep_millisecs; \
         echo always > enabled; cd /",
    )?;
    vm.shell(prepare)?;
    Ok(vm)
}

fn released(vm: &Tessera) -> Result<u64> {
    vm.counter("__partitions", "part_release")
}

/// Adds both partitions and waits until the guest can use them; returns where they are, as the
/// program wants to be told.
fn add(vm: &Tessera, a: u64) -> Result<String> {
    for (cookie, (id, size)) in [("A", a), ("B", B)].into_iter().enumerate() {
        let body = json!({"id": id, "size": size, "cookie": cookie + 1, "release": "auto"});
        vm.api().put_json("vm.add-partition", &body)?.expect(200)?;
    }
    let both = until("two partitions that can be used", within(30), || {
        let found = vm.partitions()?;
        let usable = |one: &Value| one["state"] == "plugged" && !one["used"].is_null();
        Ok(found.iter().all(usable).then_some(found))
    })?;
    let mut places = String::new();
    for one in &both {
        let extents = one["extents"].as_array().context("no extents")?;
        let text = |extent: &Value| format!("{}+{}", extent["addr"], extent["size"]);
        let extents: Vec<_> = extents.iter().map(text).collect();
        write!(places, " {}={}", one["id"].as_str().unwrap_or_default(), extents.join(","))?;
    }
    Ok(places)
}

fn all_are_gone(vm: &Tessera) -> Result<()> {
    until("the partitions to be gone", within(10), || {
        let left = vm.partitions()?;
        Ok(left.is_empty().then_some(()))
    })
}

/// One case in partitions of its own; returns what it printed. An error says what was wrong.
fn run(vm: &Tessera, case: &str) -> Result<String> {
    run_in(vm, case, A)
}

/// The same, with a partition A of this size.
fn run_in(vm: &Tessera, case: &str, a: u64) -> Result<String> {
    let before = released(vm)?;
    let places = add(vm, a)?;
    let command = format!("timeout {} behave {case}{places}", within(60).as_secs());
    let (status, printed) = vm.console().status_of(&command)?;
    let gone = all_are_gone(vm);
    anyhow::ensure!(status == 0 && !printed.contains("FAIL"), "status {status}: {printed}");
    if gone.is_err() {
        let left = vm.partitions()?;
        gone.with_context(|| format!("{left:?}"))?;
    }
    let told = printed.rsplit_once("migrated ").context("no count of migrated pages")?.1;
    anyhow::ensure!(vm.migrated()?.to_string() == told, "pages were migrated for the release");
    let requests = released(vm)? - before;
    anyhow::ensure!(requests == 2, "{requests} requests for two releases");
    let complaints = vm.complaints()?;
    anyhow::ensure!(complaints.is_empty(), "{complaints}");
    Ok(printed)
}

/// All cases in one guest, and those after one that failed in another: its memory may be anywhere.
fn behaves(prepare: &str, cases: &[&str]) -> Result<()> {
    let mut guest = vm(prepare)?;
    let mut failures = String::new();
    for case in cases {
        if let Err(error) = run(&guest, case) {
            writeln!(failures, "{case}: {error:#}")?;
            guest = vm(prepare)?;
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    guest.power_off()
}

#[test]
fn what_a_fork_shares_keeps_a_partition_and_what_is_copied_is_the_writers() -> Result<()> {
    behaves("true", &["use", "fork", "fork-other", "fork-other-huge", "fork-outside"])
}

#[test]
fn a_program_its_threads_and_who_reaches_into_it_stay_in_the_partition() -> Result<()> {
    behaves("true", &["exec", "threads", "one-memory", "remote"])
}

#[test]
fn huge_pages_are_made_split_and_collapsed_in_the_partition() -> Result<()> {
    behaves("true", &["thp", "thp-split", "thp-split-free"])?;
    behaves("true", &["collapse", "collapse-full", "khugepaged"])?;
    behaves("true", &["mthp", "mthp-split", "mthp-collapse"])
}

#[test]
fn memory_that_is_given_another_address_or_given_up_is_where_it_was() -> Result<()> {
    behaves("true", &["mremap", "mremap-huge", "dontneed", "madv-free"])
}

#[test]
fn swap_takes_pages_out_of_the_partition_and_brings_them_back() -> Result<()> {
    behaves(SWAP, &["pageout", "pageout-huge", "swap-shared", "swap-exit", "swap-off", "mlock"])
}

#[test]
fn reclaim_finds_the_pages_of_a_partition_by_either_list() -> Result<()> {
    behaves(SWAP, &["reclaim", "reclaim-lists", "reclaim-switch"])
}

#[test]
fn with_swap_nobody_is_killed_for_a_strict_partition() -> Result<()> {
    behaves(SWAP, &["strict-swap", "strict-crowd"])
}

/// The swap cache holds what was being written when its last user went, and zram writes at once.
#[test]
fn a_function_that_ends_while_it_is_written_to_a_disk_leaves_nothing_behind() -> Result<()> {
    let disk = Image::empty(256 * MIB)?;
    let config = config()?.memory(BOOT).disk(json!({"path": disk.path()}));
    let vm = booted(config, "mkswap /dev/vda; swapon /dev/vda")?;
    for _ in 0..4 {
        run(&vm, "swap-left")?;
    }
    vm.power_off()
}

/// What it would take from them, nobody else could have.
#[test]
fn reclaim_for_the_whole_machine_leaves_partitions_alone() -> Result<()> {
    behaves(SWAP, &["shortage"])?;
    behaves(&format!("{SWAP}; {LISTS}"), &["shortage"])
}

#[test]
fn what_others_hold_or_make_of_a_functions_memory() -> Result<()> {
    behaves(DISK, &["userfault", "userfault-move", "vmsplice", "zerocopy", "pin-long", "pin-short"])
}

/// A disk that wrote to memory that the host has back would end the VM.
#[test]
fn a_function_that_is_killed_keeps_its_partition_until_its_disk_is_done() -> Result<()> {
    let disk = Image::with(&random_bytes(4 << 20)?)?;
    let config = config()?.memory(BOOT).disk(json!({"path": disk.path(), "direct": true}));
    let vm = booted(config, "true")?;
    let told = run(&vm, "direct-killed")?;
    // In a guest that is made so much slower, functions take longer to end than the disk to read.
    let is_slow = within(1) > Duration::from_secs(1);
    assert!(is_slow || !told.starts_with("outlived 0"), "the disk was always done before: {told}");
    vm.power_off()
}

#[test]
fn who_goes_over_all_memory_leaves_a_partition_alone() -> Result<()> {
    behaves("true", &["ksm", "ksm-huge", "compact", "offline", "frames", "frames-churn", "kcore"])
}

#[test]
fn a_function_that_wants_too_much_spills_or_is_killed_as_its_policy_says() -> Result<()> {
    behaves("true", &["spill", "strict", "strict-survivor", "strict-nested", "strict-innocent"])?;
    behaves("true", &["strict-unused", "memory-max", "strict-max", "spill-max"])
}

#[test]
fn a_machine_without_memory_kills_who_took_it_and_nobody_in_a_partition() -> Result<()> {
    behaves("true", &["oom", "oom-spilled"])?;
    behaves(LISTS, &["oom"])
}

/// Its end would give nobody else a page.
#[test]
fn a_machine_without_memory_spares_who_has_most_in_a_partition() -> Result<()> {
    let room = json!({"size": 1024 * MIB, "prepare": 768 * MIB});
    let vm = booted(config()?.memory(BOOT).set("memory.partitions", room), "true")?;
    run_in(&vm, "oom", LARGE_A)?;
    vm.power_off()
}

#[test]
fn what_a_function_leaves_in_a_kept_partition_nobody_sees() -> Result<()> {
    behaves("true", &["kept-zero"])
}

#[test]
fn files_and_shared_memory_of_a_function_are_not_in_its_partition() -> Result<()> {
    behaves(DISK, &["files", "page-cache"])
}

#[test]
fn control_groups_come_and_go_whatever_their_functions_do() -> Result<()> {
    behaves(
        "true",
        &[
            "killed",
            "removed",
            "inherited",
            "nested-own",
            "moved",
            "waiting",
            "woken",
            "by-number",
            "delegated",
            "raced",
        ],
    )
}

/// Starts a case that waits for the file `/tmp/stop`, and waits until it says that it does.
fn start(vm: &Tessera, case: &str) -> Result<()> {
    vm.shell(&format!(": > /out; ((behave {case} > /out 2>&1; echo status $? >> /out) &)"))?;
    until("the function to run", within(30), || {
        Ok(vm.shell("cat /out")?.contains("ready").then_some(()))
    })
}

fn ends_well(vm: &Tessera) -> Result<()> {
    let told = until("the function to end", within(60), || {
        let told = vm.shell("cat /out")?;
        Ok(told.contains("status").then_some(told))
    })?;
    anyhow::ensure!(told.contains("status 0") && !told.contains("FAIL"), "{told}");
    Ok(())
}

/// What the partitions have.
fn plugged(vm: &Tessera) -> Result<u64> {
    Ok(vm.partitions()?.iter().filter_map(|one| one["plugged"].as_u64()).sum())
}

/// Asks for so much memory beside the partitions, and waits until the guest has it.
fn resize(vm: &Tessera, size: u64) -> Result<()> {
    vm.resize(size)?;
    until(&format!("{} MiB beside the partitions", size / MIB), within(90), || {
        Ok((vm.actual_size()? == size + plugged(vm)?).then_some(()))
    })
}

/// The other device plugs, and moves the memory of somebody else in order to unplug.
#[test]
fn memory_beside_the_partitions_grows_and_shrinks_under_a_function() -> Result<()> {
    let vm = vm("true")?;
    let places = add(&vm, A)?;
    start(&vm, &format!("churn{places}"))?;
    resize(&vm, BOOT + MORE)?;
    let other = vm.hogs(1, 150, "")?;
    let before = vm.migrated()?;
    resize(&vm, BOOT)?;
    let moved = vm.migrated()? - before;
    assert!(moved > 1000, "{moved} pages were migrated, of 150 MiB that were in the way");
    other.check()?;
    vm.shell("touch /tmp/stop")?;
    ends_well(&vm)?;
    all_are_gone(&vm)?;
    assert_eq!(vm.complaints()?, "");
    vm.power_off()
}

/// Asks for a removal that is refused because of what is in use; returns the first partition then.
fn kept(vm: &Tessera, removal: &Value) -> Result<Value> {
    let refused = vm.api().put_json("vm.remove-partition", removal)?.expect(409)?.body.to_string();
    anyhow::ensure!(refused.contains("in use"), "{refused}");
    vm.partitions()?.into_iter().next().context("no partition is left")
}

/// What one function has alone and what two share moves out; what is pinned can't, for a while.
#[test]
fn evacuation_leaves_what_is_held_and_takes_it_when_it_is_let_go() -> Result<()> {
    let vm = vm("true")?;
    let places = add(&vm, A)?;
    start(&vm, &format!("evacuated{places}"))?;
    let left = kept(&vm, &json!({"id": "A", "timeout_ms": 4_000, "evacuate": true}))?;
    assert_eq!(left["id"], "A", "{left:?}");
    // A page that could not be moved for a moment is moved the next time.
    until("all but what is held to move", within(30), || {
        let left = vm.partitions()?.into_iter().next().context("no partition is left")?;
        Ok((left["stuck"] == 16 * 4096).then_some(()))
    })?;
    vm.shell("touch /tmp/stop")?;
    ends_well(&vm)?;
    all_are_gone(&vm)?;
    assert_eq!(vm.complaints()?, "");
    vm.power_off()
}

/// What is left of a partition when a page of it went bad is not given back: the next function that
/// got the page would end as this one did.
#[test]
#[ignore = "needs a kernel with memory failures: cargo xtask test --long"]
fn with_the_debug_kernel_a_page_that_went_bad_keeps_its_partition() -> Result<()> {
    keeps_its_partition("poison", 1)?;
    keeps_its_partition("poison-free", 1)
}

/// Linux subtracted such a page twice when its memory block went, from a zone that had none.
#[test]
#[ignore = "needs a kernel with memory failures: cargo xtask test --long"]
fn with_the_debug_kernel_a_free_page_that_went_bad_leaves_with_its_memory_block() -> Result<()> {
    let vm = vm("true")?;
    let total = vm.meminfo("MemTotal")?;
    run(&vm, "poison-left")?;
    vm.shell("echo 1 | tee /sys/bus/virtio/devices/*/partitions/trim")?;
    assert_eq!(vm.meminfo("MemTotal")?, total);
    let managed = vm.shell("grep -A9 Movable /proc/zoneinfo | sed -n 's/ *managed *//p'")?;
    assert_eq!(managed, "0", "pages that the zone of partitions gives to others");
    vm.hogs(1, 64, "")?.end()?;
    vm.power_off()
}

/// Nor is one that somebody took before it went bad.
#[test]
#[ignore = "needs a kernel with memory failures: cargo xtask test --long"]
fn with_the_debug_kernel_a_page_that_was_taken_out_of_use_keeps_its_partition() -> Result<()> {
    keeps_its_partition("soft-offline", 2)
}

/// After this case so many pages of partition A are nobody's, and keep it.
fn keeps_its_partition(case: &str, pages: u64) -> Result<()> {
    let vm = vm("true")?;
    let places = add(&vm, A)?;
    let (status, told) = vm.console().status_of(&format!("behave {case}{places}"))?;
    anyhow::ensure!(status == 0 && !told.contains("FAIL"), "status {status}: {told}");
    until("the other partition to be gone", within(10), || {
        Ok((vm.partitions()?.len() == 1).then_some(()))
    })?;
    let left = kept(&vm, &json!({"id": "A", "timeout_ms": 2_000}))?;
    assert_eq!((&left["id"], &left["used"]), (&json!("A"), &json!(pages * 4096)), "{left:?}");
    assert_eq!(vm.complaints()?, "");
    vm.power_off()
}

/// A function whose CPU is on another node than its partition.
#[test]
#[ignore = "needs a kernel with NUMA balancing: cargo xtask test --long"]
fn with_the_debug_kernel_numa_balancing_moves_nothing_of_a_partition() -> Result<()> {
    let zone = |id: &str| json!({"id": id, "size": BOOT});
    let node =
        |n: u32, zone: &str| json!({"guest_numa_id": n, "cpus": [n], "memory_zones": [zone]});
    let config = config()?
        .memory(0)
        // In one package they would share a cache, which Linux warns of across nodes.
        .set(
            "cpus.topology",
            json!({"threads_per_core": 1, "cores_per_die": 1,
                                     "dies_per_package": 1, "packages": 2}),
        )
        .set("memory.zones", json!([zone("near"), zone("far")]))
        .set("numa", json!([node(0, "near"), node(1, "far")]));
    let vm = booted(config, "true")?;
    run(&vm, "balance")?;
    vm.power_off()
}

/// The tests that a kernel with them runs when it boots, and whether it watches itself as it should.
#[test]
#[ignore = "needs a kernel with KUnit: cargo xtask test --long"]
fn with_the_debug_kernel_its_own_tests_of_partitions_pass() -> Result<()> {
    let vm = vm("true")?;
    let told = vm.shell("dmesg | grep -A9 '# mem_partition: pass'")?;
    println!("{told}");
    assert!(told.contains("fail:0 skip:0") && told.contains("ok 1 mem_partition"), "{told}");
    let locks = vm.shell("grep debug_locks /proc/lockdep_stats")?;
    assert!(locks.ends_with('1'), "lockdep has switched itself off: {locks}");
    assert_eq!(vm.complaints()?, "");
    vm.power_off()
}
