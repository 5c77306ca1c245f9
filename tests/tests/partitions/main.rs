//! Partitions of a guest with our kernel: a function's memory, taken and given back whole.

mod driver;
mod failures;
mod told;
mod wishes;

use std::thread;
use std::time::Duration;

use anyhow::Context;
use guest_tests::{
    Artefact, Cgroup, Config, Hogs, HugePages, Image, MIB, Reply, Result, Tessera, Vm, until,
    within,
};
use serde_json::{Value, json};

/// Enough for a kernel that checks itself as well.
const BOOT: u64 = 512 * MIB;

const SIZE: u64 = 256 * MIB;

/// What the host may seem to have less after partitions: less than a block of each of three. The
/// monitor takes a little for itself, and each CPU of the host counts in batches of 64 pages.
const SLACK: u64 = 4 * MIB;

/// A guest with room for partitions.
fn config() -> Result<Config> {
    let config = Config::vmlinux()?.memory(BOOT).with_programs()?;
    Ok(config.set("memory.partitions", json!({"size": 1024 * MIB, "prepare": SIZE})))
}

/// One where `/cg/fn0` is a control group for a function.
fn vm() -> Result<Tessera> {
    booted(Vm::from(config()?))
}

/// One whose partitions alone change what the group has of the host.
fn vm_in(cgroup: &Cgroup) -> Result<Tessera> {
    booted(Vm::from(config()?.filled_memory(BOOT)).in_cgroup(cgroup))
}

fn booted(vm: Vm) -> Result<Tessera> {
    let vm = vm.boot()?;
    control_group(&vm)?;
    // Linux has none where there is less than 512 MiB at its start.
    vm.shell("echo always > /sys/kernel/mm/transparent_hugepage/enabled")?;
    Ok(vm)
}

fn control_group(vm: &Tessera) -> Result<()> {
    vm.mount_cgroups()?;
    vm.shell("mkdir /cg/fn0")?;
    Ok(())
}

fn put(vm: &Tessera, call: &str, body: &Value) -> Result<Reply> {
    vm.api().put_json(call, body)
}

fn find(vm: &Tessera, id: &str) -> Result<Option<Value>> {
    Ok(vm.partitions()?.into_iter().find(|one| one["id"] == id))
}

/// Adds a partition and waits until the guest can use it.
fn add(vm: &Tessera, id: &str, release: &str) -> Result<()> {
    add_sized(vm, id, SIZE, release)
}

fn add_sized(vm: &Tessera, id: &str, size: u64, release: &str) -> Result<()> {
    let body = json!({"id": id, "size": size, "cookie": 7, "release": release});
    let added = put(vm, "vm.add-partition", &body)?.expect(200)?.body;
    assert_eq!((&added["id"], &added["size"]), (&json!(id), &json!(size)));
    reaches(vm, id, "plugged", size)
}

fn reaches(vm: &Tessera, id: &str, state: &str, plugged: u64) -> Result<()> {
    until(&format!("{id} to be {state}"), within(30), || {
        let found = find(vm, id)?;
        let found = found.filter(|one| one["state"] == state && one["plugged"] == plugged);
        // Until then the guest has it and can't use it.
        Ok(found.filter(|one| !one["used"].is_null()).map(drop))
    })
}

fn is_gone(vm: &Tessera, id: &str) -> Result<()> {
    until(&format!("{id} to be gone"), within(30), || Ok(find(vm, id)?.is_none().then_some(())))
}

/// Waits until the host was told that so much of it is in use.
fn uses(vm: &Tessera, id: &str, least: u64) -> Result<()> {
    until(&format!("{} MiB of {id} to be in use", least / MIB), within(30), || {
        let used = find(vm, id)?.context("no partition")?["used"].as_u64();
        Ok((used >= Some(least)).then_some(()))
    })
}

/// The guest's number for a partition.
fn number(vm: &Tessera, id: &str) -> Result<u64> {
    find(vm, id)?.context("no partition")?["number"].as_u64().context("no number")
}

/// Has somebody in the guest bind a control group to a partition by its number, as soon as that has
/// a folder, or there is a `/late`; `/told` has what was said then.
fn takes_when_seen(vm: &Tessera, cgroup: &str, number: u64) -> Result<()> {
    let folder = format!("/sys/bus/virtio/devices/*/partitions/{number}");
    let seen = format!("until [ -e {folder} ] || [ -e /late ]; do :; done");
    let takes = format!("echo {number} > {cgroup}/memory.partition");
    vm.shell(&format!("(({seen}; {takes}) > /told 2>&1 &)")).map(drop)
}

/// Starts a function that fills 200 MiB, and waits until it has.
fn start(vm: &Tessera) -> Result<Hogs<'_>> {
    start_with(vm, 200)
}

/// The same, of another size.
fn start_with(vm: &Tessera, mib: u64) -> Result<Hogs<'_>> {
    vm.shell("echo auto > /cg/fn0/memory.partition")?;
    vm.hogs(1, mib, "cgroup=/cg/fn")
}

/// What the guest says of the function's partition, in bytes.
fn in_guest(vm: &Tessera, key: &str) -> Result<u64> {
    Ok(vm.shell(&format!("sed -n 's/^{key} //p' /cg/fn0/memory.partition"))?.parse()?)
}

/// Ends it, and with it the binding of its control group.
fn end(vm: &Tessera, function: Hogs<'_>) -> Result<()> {
    function.end()?;
    vm.shell("echo none > /cg/fn0/memory.partition").map(drop)
}

fn counter(vm: &Tessera, name: &str) -> Result<u64> {
    vm.counter("__partitions", name)
}

/// What the guest's kernel counts: all memory, that of partitions, and what is free of theirs.
fn meminfo(vm: &Tessera) -> Result<[u64; 3]> {
    Ok([vm.meminfo("MemTotal")?, vm.meminfo("PartitionTotal")?, vm.meminfo("PartitionFree")?])
}

#[test]
fn a_function_ends_in_one_request_and_no_page_is_migrated() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let vm = vm_in(&cgroup)?;
    let idle = cgroup.memory()?;
    let without = meminfo(&vm)?;
    for round in 1..=3 {
        add(&vm, "fn-1", "auto")?;
        assert_eq!(meminfo(&vm)?, [without[0] + SIZE, SIZE, SIZE]);
        let number = number(&vm, "fn-1")?;
        let cookie = format!("cat /sys/bus/virtio/devices/*/partitions/{number}/cookie");
        assert_eq!(vm.shell(&cookie)?, "7", "partition {number}");
        let function = start(&vm)?;
        assert_eq!(vm.shell("grep cookie /cg/fn0/memory.partition")?, "cookie 7");
        reaches(&vm, "fn-1", "bound", SIZE)?;
        let busy = cgroup.memory()?;
        assert!(busy > idle + 190 * MIB, "{} MiB, then {}", idle / MIB, busy / MIB);
        let [total, theirs, free] = meminfo(&vm)?;
        assert_eq!([total, theirs], [without[0] + SIZE, SIZE]);
        let used = SIZE - free;
        // With the function's stack and its like.
        assert!((200 * MIB..210 * MIB).contains(&used), "{used} bytes of 200 MiB are in use");
        let before = vm.migrated()?;
        end(&vm, function)?;
        is_gone(&vm, "fn-1")?;
        assert_eq!(vm.migrated()?, before);
        assert_eq!(meminfo(&vm)?, without);
        assert_eq!(counter(&vm, "part_release")?, round);
        let after = cgroup.memory()?;
        println!("round {round}: {idle} bytes of the host's, then {busy}, then {after}");
        assert!(after < idle + SLACK, "{} MiB, then {}", idle / MIB, after / MIB);
        assert_eq!(vm.actual_size()?, BOOT);
    }
    vm.power_off_unharmed()
}

/// From the host's pool and back to it, private or in a file.
#[test]
fn huge_pages_of_a_function_go_back_to_the_hosts_pool() -> Result<()> {
    let pages = HugePages::reserve(1024 * MIB)?;
    let all = pages.free()?;
    for shared in [false, true] {
        let vm = Vm::from(config()?.set("memory.hugepages", true).set("memory.shared", shared));
        let vm = vm.boot()?;
        control_group(&vm)?;
        add(&vm, "fn-1", "auto")?;
        let idle = pages.free()?;
        let function = start(&vm)?;
        let busy = pages.free()?;
        assert!(busy + 95 < idle, "{idle} pages were free, then {busy}, shared: {shared}");
        end(&vm, function)?;
        is_gone(&vm, "fn-1")?;
        let after = pages.free()?;
        assert!(after + 16 > idle, "{idle} pages were free, now {after}, shared: {shared}");
        vm.power_off_unharmed()?;
        assert_eq!(pages.free()?, all);
    }
    Ok(())
}

/// What the host wants back of a partition in use goes when it is free, with no call in between.
#[test]
fn what_one_of_two_functions_leaves_goes_while_the_other_runs_on() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let vm = vm_in(&cgroup)?;
    add(&vm, "fn-1", "auto")?;
    let first = start_with(&vm, 100)?;
    let function = vm.hogs(1, 100, "cgroup=/cg/fn")?;
    let body = json!({"id": "fn-1", "size": 128 * MIB});
    put(&vm, "vm.resize-partition", &body)?.expect(200)?;
    let busy = cgroup.memory()?;
    let before = vm.migrated()?;
    first.end()?;
    reaches(&vm, "fn-1", "bound", 128 * MIB)?;
    let after = cgroup.memory()?;
    assert!(after + 70 * MIB < busy, "{} MiB, then {}", busy / MIB, after / MIB);
    assert_eq!(vm.migrated()?, before);
    function.check()?;
    end(&vm, function)?;
    is_gone(&vm, "fn-1")?;
    vm.power_off_unharmed()
}

/// The host can tell an agent in the guest which one to take.
#[test]
fn a_partition_is_taken_by_the_number_that_the_host_was_told() -> Result<()> {
    let vm = vm()?;
    add(&vm, "first", "auto")?;
    // Beyond what is prepared: it is there before the guest can use it, and who asked waits for that.
    let told = vm.memctl("add second --size 512M --wait 30s")?;
    let number = number(&vm, "second")?;
    assert!(told.trim_end().ends_with(&format!("the guest calls it {number}")), "{told}");
    assert!(!find(&vm, "second")?.context("no partition")?["used"].is_null());
    vm.shell(&format!("echo {number} > /cg/fn0/memory.partition"))?;
    assert_eq!(vm.shell("grep ^id /cg/fn0/memory.partition")?, format!("id {number}"));
    vm.power_off_unharmed()
}

#[test]
fn a_kept_partition_waits_for_its_removal_and_is_the_hosts_when_that_is_answered() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let vm = vm_in(&cgroup)?;
    let idle = cgroup.memory()?;
    add(&vm, "warm", "manual")?;
    for _ in 0..2 {
        let function = start(&vm)?;
        reaches(&vm, "warm", "bound", SIZE)?;
        end(&vm, function)?;
        reaches(&vm, "warm", "plugged", SIZE)?;
    }
    let busy = cgroup.memory()?;
    assert!(busy > idle + 190 * MIB, "{} MiB, then {}", idle / MIB, busy / MIB);
    let body = json!({"id": "warm", "timeout_ms": 30_000});
    let gone = put(&vm, "vm.remove-partition", &body)?.expect(200)?.body;
    let after = cgroup.memory()?;
    println!("{idle} bytes of the host's, then {busy}, then {after}");
    assert!(after < idle + SLACK, "{} MiB, then {}", idle / MIB, after / MIB);
    assert_eq!((&gone["state"], &gone["plugged"]), (&json!("absent"), &json!(0)));
    let (all, host) = (gone["removal_us"].as_u64(), gone["last_release_us"].as_u64());
    assert!(all.context("no time")? >= host.context("no time of the host's")?, "{gone}");
    put(&vm, "vm.remove-partition", &body)?.expect(404)?;
    vm.power_off_unharmed()
}

#[test]
fn a_partition_in_use_is_named_and_goes_when_its_function_ends() -> Result<()> {
    let vm = vm()?;
    // It would stay if nobody had asked for it.
    add(&vm, "fn-1", "manual")?;
    let function = start(&vm)?;
    reaches(&vm, "fn-1", "bound", SIZE)?;
    let remove = |timeout: u64| json!({"id": "fn-1", "timeout_ms": timeout});
    for timeout in [0, 300] {
        let body = put(&vm, "vm.remove-partition", &remove(timeout))?.expect(409)?.body.to_string();
        assert!(body.contains("partition fn-1 is bound") && body.contains("in use"), "{body}");
    }
    let api = vm.api();
    let waiter = thread::spawn(move || api.put_json("vm.remove-partition", &remove(50_000)));
    end(&vm, function)?;
    let answer = waiter.join().expect("it does not panic")?;
    // It may have gone before the call came.
    assert!([200, 404].contains(&answer.status), "{answer:?}");
    is_gone(&vm, "fn-1")?;
    vm.power_off_unharmed()
}

#[test]
fn evacuation_takes_a_partition_from_a_function_that_lives_on() -> Result<()> {
    let vm = vm()?;
    add_sized(&vm, "small", 64 * MIB, "auto")?;
    let function = start_with(&vm, 40)?;
    reaches(&vm, "small", "bound", 64 * MIB)?;
    let body = json!({"id": "small", "timeout_ms": 30_000, "evacuate": true});
    put(&vm, "vm.remove-partition", &body)?.expect(200)?;
    function.check()?;
    vm.power_off_unharmed()
}

#[test]
fn a_partition_grows_and_shrinks_before_its_function_and_under_it() -> Result<()> {
    let vm = vm()?;
    add(&vm, "fn-1", "auto")?;
    let resize = |state: &str, size: u64| {
        let body = json!({"id": "fn-1", "size": size});
        put(&vm, "vm.resize-partition", &body)?.expect(200)?;
        reaches(&vm, "fn-1", state, size)?;
        put(&vm, "vm.resize-partition", &body)?.expect(204).map(drop)
    };
    resize("plugged", 128 * MIB)?;
    resize("plugged", 512 * MIB)?;
    let function = start(&vm)?;
    let grown = 768 * MIB;
    resize("bound", grown)?;
    // Both are more than it had room for. The host is told of each sixteenth of the size.
    let second = vm.hogs(1, 400, "cgroup=/cg/fn")?;
    let both = (200 + 400) * MIB;
    uses(&vm, "fn-1", both - grown / 16)?;
    assert!(in_guest(&vm, "used")? >= both);
    assert_eq!(in_guest(&vm, "spilled")?, 0);
    assert_eq!(find(&vm, "fn-1")?.context("no partition")?["spilled"], 0);
    second.check()?;
    second.end()?;
    resize("bound", SIZE)?;
    function.check()?;
    // It has 200 MiB, and the rest goes as it becomes free: nothing is moved.
    let before = vm.migrated()?;
    let body = json!({"id": "fn-1", "size": 128 * MIB});
    put(&vm, "vm.resize-partition", &body)?.expect(200)?;
    let left = until("what is free to be gone", within(30), || {
        let plugged = find(&vm, "fn-1")?.context("no partition")?["plugged"].as_u64();
        Ok(plugged.filter(|&plugged| plugged < 216 * MIB))
    })?;
    assert!(left >= 200 * MIB, "{left} bytes are left of 200 MiB in use");
    assert_eq!(vm.migrated()?, before);
    function.check()?;
    end(&vm, function)?;
    is_gone(&vm, "fn-1")?;
    vm.power_off_unharmed()
}

/// It comes with the kernel patches, as the kernel's own tests of control groups do.
#[test]
fn the_kernels_self_test_passes() -> Result<()> {
    let (disk, size) = Image::beginning_with(&Artefact::Selftest.path()?)?;
    let vm = Vm::from(config()?.disk(json!({"path": disk.path()}))).boot()?;
    vm.mount_cgroups()?;
    vm.shell(&format!("head -c {size} /dev/vda > /selftest; chmod +x /selftest"))?;
    add_sized(&vm, "fn-1", 64 * MIB, "manual")?;
    let (status, told) = vm.console().status_of("/selftest")?;
    println!("{told}");
    assert_eq!(status, 0, "{told}");
    let totals = told.lines().last().unwrap_or_default().trim();
    assert_eq!(totals, "# Totals: pass:6 fail:0 xfail:0 xpass:0 skip:0 error:0");
    vm.power_off_unharmed()
}

#[test]
fn a_reboot_asks_for_the_wanted_partitions_again() -> Result<()> {
    let vm = vm()?;
    add(&vm, "stays", "manual")?;
    start(&vm)?;
    reaches(&vm, "stays", "bound", SIZE)?;
    vm.console().send("reboot -f\n")?;
    vm.console().wait_for_shell()?;
    reaches(&vm, "stays", "plugged", SIZE)?;
    control_group(&vm)?;
    let function = start(&vm)?;
    reaches(&vm, "stays", "bound", SIZE)?;
    end(&vm, function)?;
    reaches(&vm, "stays", "plugged", SIZE)?;
    vm.power_off_unharmed()
}

/// The kernel's bookkeeping for memory that is not plugged: 16 MiB for a gibibyte.
#[test]
fn bookkeeping_is_there_ahead_and_goes_after_a_while() -> Result<()> {
    let vm = vm()?;
    let has = |size: u64| {
        until(&format!("bookkeeping for {} MiB", size / MIB), within(20), || {
            let told = vm.shell("cat /sys/bus/virtio/devices/*/partitions/prepared")?;
            Ok((told == size.to_string()).then_some(()))
        })
    };
    // Before anything was plugged.
    has(SIZE)?;
    for id in ["first", "second", "third"] {
        add(&vm, id, "manual")?;
    }
    has(3 * SIZE)?;
    vm.shell("echo 1 > /sys/module/virtio_mem/parameters/trim_after")?;
    let remove = |id: &str| {
        let body = json!({"id": id, "timeout_ms": 30_000});
        put(&vm, "vm.remove-partition", &body)?.expect(200).map(drop)
    };
    remove("first")?;
    remove("third")?;
    // What is plugged, and what the host wants prepared, stays.
    has(2 * SIZE)?;
    remove("second")?;
    has(SIZE)?;
    thread::sleep(Duration::from_secs(2));
    has(SIZE)?;
    for id in ["first", "second"] {
        add(&vm, id, "auto")?;
    }
    has(2 * SIZE)?;
    end(&vm, start(&vm)?)?;
    vm.power_off_unharmed()
}
