//! Partitions with Debian's own cloud kernel, which knows nothing of them: each is a NUMA node, and
//! functions run there through the script that users copy into their guests.

use std::time::{Duration, Instant};

use anyhow::Context;
use guest_tests::{GIB, MIB, Result, SlotGuest, is_long};
use serde_json::{Value, json};

/// Linux puts memory online in blocks of this size.
const SLOT: u64 = 128 * MIB;

/// What tells Linux to keep plugged memory for what can be moved.
const WORDS: &str = "memhp_default_state=online_movable";

/// A guest with so many slots.
fn debian(slots: u64, size: u64, words: &str) -> Result<SlotGuest> {
    // Its kernel has no channel, so auto means slots.
    let partitions = json!({"mode": "auto", "size": GIB, "slots": slots, "slot_size": size});
    let vm = SlotGuest::debian(&json!({"partitions": partitions}), words)?;
    // Runs a command as a function on the node of its number, and waits for what it prints. That
    // goes through a pipe: a file in memory that it wrote would lie on its node. Waits give up, and
    // show why.
    vm.shell(
        "start() { (tessera-function run fn-$1 \"$@\" 2>&1 | cat > /run/out$1) & }; \
         await() { i=0; until grep -q \"$2\" /run/out$1; do sleep 0.3; i=$((i + 1)); \
         [ $i -lt 300 ] || { cat /run/out$1; return 1; }; done; }",
    )?;
    Ok(vm)
}

fn micros(gone: &Value, field: &str) -> u64 {
    gone[field].as_u64().unwrap_or_default()
}

#[test]
fn eight_functions_come_and_go_and_no_page_is_migrated() -> Result<()> {
    let begin = Instant::now();
    let vm = debian(16, SLOT, WORDS)?;
    println!("booted with 16 slots in {:?}", begin.elapsed());
    let each = |command: &str| vm.shell(&format!("for n in 1 2 3 4 5 6 7 8; do {command}; done"));
    let before = vm.migrated()?;
    let cycles = if is_long() { 100 } else { 3 };
    let mut removals = Vec::new();
    for cycle in 1..=cycles {
        for n in 1..=8 {
            assert_eq!(vm.add(&format!("fn-{n}"), SLOT)?, n, "each slot is as free as at first");
        }
        vm.plugged()?;
        each("start $n 128 hog 1 32")?;
        each("await $n ready || break")?;
        each("kill -USR1 $(sed -n 's/^hog 0 \\([0-9]\\)/\\1/p' /run/out$n)")?;
        each("await $n 'hog 0 [ic]' || break")?;
        let told = vm.shell("cat /run/out*")?;
        assert_eq!(told.matches("intact").count(), 8, "cycle {cycle}: {told}");
        each("echo 1 > /sys/fs/cgroup/functions/fn-$n/cgroup.kill")?;
        let told =
            vm.shell("wait; cat /run/out*; ls /sys/fs/cgroup/functions | grep fn- || true")?;
        assert!(!told.contains("still has") && !told.ends_with("fn-8"), "cycle {cycle}: {told}");
        for n in 1..=8 {
            removals.push(micros(&vm.remove(&format!("fn-{n}"))?, "removal_us"));
        }
        assert_eq!(vm.partitions()?, Vec::<Value>::new());
        assert_eq!(vm.migrated()?, before, "pages migrated by cycle {cycle}");
        println!("cycle {cycle} of {cycles} ended after {:?}", begin.elapsed());
    }
    removals.sort_unstable();
    let (middle, last) = (removals[removals.len() / 2], removals[removals.len() - 1]);
    let all = begin.elapsed();
    println!("{cycles} cycles of 8: removed in {middle} us, at most {last} us; {all:?} in all");
    vm.power_off()
}

#[test]
fn what_would_have_to_be_moved_is_told_before() -> Result<()> {
    let vm = debian(2, SLOT, WORDS)?;
    vm.shell("head -c 40M /dev/urandom > /root/file; sync; echo 3 > /proc/sys/vm/drop_caches")?;
    page_cache(&vm)?;
    tmpfs(&vm)?;
    strangers(&vm)?;
    a_node_that_goes_too_early(&vm)?;
    vm.power_off()
}

/// What a function read lies on its node. The script gives it back; without, Linux drops it page by
/// page while the host waits.
fn page_cache(vm: &SlotGuest) -> Result<()> {
    vm.add("fn-1", SLOT)?;
    vm.shell("tessera-function run fn-1 1 128 cat /root/file 2> /run/told > /dev/null")?;
    let told = vm.shell("cat /run/told")?;
    assert!(told.contains("KiB of page cache given back in"), "{told}");
    assert_eq!(vm.on_node(1, "FilePages")?, 0);
    let before = vm.migrated()?;
    let reclaimed = micros(&vm.remove("fn-1")?, "removal_us");

    vm.add("fn-1", SLOT)?;
    // As an agent does it that forgets: its group goes without reclaim.
    vm.shell(
        "start 1 128 sh -c 'cat /root/file > /dev/null; echo ready; sleep 1000'; await 1 ready",
    )?;
    let told_later = vm.shell(
        "kill -9 $(pidof -x tessera-function); \
         cd /sys/fs/cgroup/functions; echo 1 > fn-1/cgroup.kill; \
         until grep -q 'populated 0' fn-1/cgroup.events; do sleep 0.1; done; \
         rmdir fn-1; cd; tessera-function check 1 2>&1 || true",
    )?;
    assert!(told_later.contains("KiB of file are others'"), "{told_later}");
    assert!(vm.on_node(1, "FilePages")? >= 40 * MIB);
    let dropped = micros(&vm.remove("fn-1")?, "removal_us");
    assert_eq!(vm.migrated()?, before, "it is clean, so nothing is copied");
    println!("40 MiB of page cache: removed in {dropped} us, without in {reclaimed} us; {told}");
    Ok(())
}

/// Files that a function leaves in memory can't be given back.
fn tmpfs(vm: &SlotGuest) -> Result<()> {
    vm.add("fn-1", SLOT)?;
    vm.shell("tessera-function run fn-1 1 128 head -c 8M /dev/zero 2> /run/told > /dev/null")?;
    assert_eq!(vm.shell("grep -c tmpfs /run/told || true")?, "0");
    vm.shell(
        "tessera-function run fn-1 1 128 \
        sh -c 'head -c 8M /dev/zero > /dev/shm/left' 2> /run/told",
    )?;
    let told = vm.shell("cat /run/told")?;
    assert!(told.contains("node 1 still has 0 KiB of processes, 8192 KiB of tmpfs"), "{told}");
    vm.shell("rm /dev/shm/left")?;
    vm.remove("fn-1").map(drop)
}

/// A process that no cpuset keeps away may use a node, and does when it is told to.
fn strangers(vm: &SlotGuest) -> Result<()> {
    vm.add("fn-1", SLOT)?;
    vm.plugged()?;
    assert_eq!(vm.shell("tessera-function check 1 2>&1")?, "", "nobody else may use it");
    let told = vm.shell(
        "(echo 0 > /sys/fs/cgroup/cgroup.procs; exec perl -e ' \
           my $mask = pack(\"Q\", 2); syscall(238, 2, $mask, 65); $x = \"x\" x (20 << 20); sleep 1000') & \
         until tessera-function check 1 2>&1 | grep -q anon; do sleep 0.1; done; \
         tessera-function check 1 2>&1; echo status $?; kill -9 $!; wait",
    )?;
    assert!(told.contains("may use it: no cpuset keeps it away"), "{told}");
    assert!(told.contains("KiB of anon are others'") && told.contains("status 3"), "{told}");
    vm.remove("fn-1").map(drop)
}

/// A function whose node is removed lives on, on node 0 and on no other function's.
fn a_node_that_goes_too_early(vm: &SlotGuest) -> Result<()> {
    for n in [1, 2] {
        vm.add(&format!("fn-{n}"), SLOT)?;
        vm.shell(&format!("start {n} 128 hog 1 64; await {n} ready"))?;
    }
    let before = vm.migrated()?;
    vm.remove("fn-1")?;
    assert!(vm.migrated()? >= before + (64 << 8), "it was moved");
    let mems = vm.shell("cat /sys/fs/cgroup/functions/fn-1/cpuset.mems.effective")?;
    assert_eq!(mems, "0", "not on node 2");
    vm.shell("kill -USR1 $(sed -n 's/^hog 0 \\([0-9]\\)/\\1/p' /run/out1); await 1 intact")?;
    let told = vm.shell(
        "for n in 1 2; do echo 1 > /sys/fs/cgroup/functions/fn-$n/cgroup.kill; done; wait; \
         cat /run/out1",
    )?;
    assert!(told.contains("fn-1 lost node 1 while it ran and went on on node 0"), "{told}");
    vm.remove("fn-2").map(drop)
}

/// What survives a function: three that were started with it.
const SURVIVORS: usize = 3;

#[test]
#[ignore = "takes ten minutes: cargo xtask test --long"]
fn a_gibibyte_is_back_many_times_sooner_than_from_plain_virtio_mem() -> Result<()> {
    for words in ["init_on_alloc=1", "init_on_alloc=0"] {
        for thp in ["always", "never"] {
            let words = format!("{WORDS} {words}");
            let (offline, slot) = released_from_a_slot(&words, thp)?;
            let plain = released_from_among_survivors(&words, thp)?;
            let times = |took: Duration| plain.as_secs_f64() / took.as_secs_f64();
            println!(
                "{words}, huge pages {thp}: 1 GiB offline in {offline:?}, and back {slot:?} after the \
                 request; from plain virtio-mem {plain:?}: {:.1} times sooner, {:.1} with both",
                times(slot),
                times(offline + slot)
            );
            assert!(times(slot) >= 15.0, "too late");
        }
    }
    Ok(())
}

/// How long the script takes to have the memory offline once the function is gone, and the removal
/// after that.
fn released_from_a_slot(words: &str, thp: &str) -> Result<(Duration, Duration)> {
    let vm = debian(1 + SURVIVORS as u64, GIB, words)?;
    vm.shell(&format!("echo {thp} > /sys/kernel/mm/transparent_hugepage/enabled"))?;
    for n in 1..=4 {
        vm.add(&format!("fn-{n}"), GIB)?;
    }
    vm.shell("for n in 1 2 3 4; do start $n 1024 hog 1 1000; done")?;
    vm.shell("for n in 1 2 3 4; do await $n ready || break; done")?;
    let before = vm.migrated()?;
    let times = vm.shell(
        "echo 1 > /sys/fs/cgroup/functions/fn-2/cgroup.kill; \
         while [ -d /sys/fs/cgroup/functions/fn-2 ]; do sleep 0.01; done; \
         read begin _ < /proc/uptime; \
         while grep -q online /sys/devices/system/node/node2/memory*/state; do sleep 0.01; done; \
         read end _ < /proc/uptime; echo $begin $end",
    )?;
    let (begin, end) = times.split_once(' ').context("no times")?;
    let offline = Duration::from_secs_f64(end.parse::<f64>()? - begin.parse::<f64>()?);
    let gone = vm.remove("fn-2")?;
    println!("from a slot: {gone}");
    assert_eq!(vm.migrated()?, before, "pages migrated");
    Ok((offline, Duration::from_micros(micros(&gone, "removal_us"))))
}

fn released_from_among_survivors(words: &str, thp: &str) -> Result<Duration> {
    let memory = json!({"hotplug_method": "VirtioMem", "hotplug_size": 4 * GIB,
                        "hotplugged_size": 4 * GIB});
    let vm = SlotGuest::debian(&memory, words)?;
    vm.shell(&format!("echo {thp} > /sys/kernel/mm/transparent_hugepage/enabled"))?;
    vm.reaches(512 * MIB + 4 * GIB)?;
    let hogs = vm.hogs(4, 1000, "")?;
    vm.shell(&format!("kill -9 {}; sleep 2", hogs.pid(1)))?;
    let before = vm.migrated()?;
    let begin = Instant::now();
    vm.resize(512 * MIB + 3 * GIB)?;
    vm.reaches(512 * MIB + 3 * GIB)?;
    let took = begin.elapsed();
    println!("plain: {took:?}, {} pages migrated", vm.migrated()? - before);
    Ok(took)
}
