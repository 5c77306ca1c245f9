//! What host and guest are told of partitions.

use anyhow::Context;
use guest_tests::{MIB, Result, until, within};
use serde_json::json;

use super::{
    SIZE, add, add_sized, end, find, is_gone, put, reaches, start, start_with, takes_when_seen, vm,
};

/// A platform's agent in the guest has nothing to poll for.
#[test]
fn the_guest_is_told_of_each_step_with_the_hosts_cookie() -> Result<()> {
    let vm = vm()?;
    vm.shell(
        "echo 'test -z \"$PARTITION_ID\" || \
         echo $ACTION $PARTITION_COOKIE $PARTITION_STATE >> /told' > /tell; (uevent sh /tell &); \
         while ! grep -q '^[^ ]* 15 .* 00000001 ' /proc/net/netlink; do sleep 0.1; done",
    )?;
    add(&vm, "fn-1", "auto")?;
    let function = start(&vm)?;
    reaches(&vm, "fn-1", "bound", SIZE)?;
    end(&vm, function)?;
    is_gone(&vm, "fn-1")?;
    let told = until("the guest to be told of the end", within(30), || {
        let told = vm.shell("cat /told || true")?;
        Ok(told.contains("remove").then_some(told))
    })?;
    let steps: Vec<_> = told.lines().map(str::trim).collect();
    assert_eq!((steps[0], steps[1]), ("add 7 idle", "change 7 active"), "{told}");
    assert!(steps[steps.len() - 1].starts_with("remove 7"), "{told}");
    add(&vm, "warm", "manual")?;
    let function = start(&vm)?;
    reaches(&vm, "warm", "bound", SIZE)?;
    end(&vm, function)?;
    until("the guest to be told that it is kept", within(30), || {
        Ok(vm.shell("tail -n 1 /told")?.contains("change 7 idle").then_some(()))
    })?;
    vm.power_off_unharmed()
}

/// An agent asks for a partition ahead of time, and is woken when there is one that it can use:
/// where the guest has its bookkeeping ready, and where it has to make it first.
#[test]
fn who_waits_for_a_partition_has_the_next_that_is_plugged() -> Result<()> {
    let vm = vm()?;
    for (id, cookie) in [("prepared", 40), ("not-prepared", 41)] {
        let file = format!("/cg/{id}/memory.partition");
        vm.shell(&format!(
            "mkdir /cg/{id}; (echo auto > {file}; grep cookie {file} > /got{cookie}) & \
             until grep -q '^State:.S' /proc/$!/status; do sleep 0.1; done"
        ))?;
        assert_eq!(vm.shell(&format!("cat {file}; ls / | grep got{cookie} || true"))?, "none");
        let body = json!({"id": id, "size": SIZE, "cookie": cookie});
        put(&vm, "vm.add-partition", &body)?.expect(200)?;
        until("who waits to be woken", within(30), || {
            let got = vm.shell(&format!("cat /got{cookie} || true"))?;
            Ok((got == format!("cookie {cookie}")).then_some(()))
        })?;
        reaches(&vm, id, "bound", SIZE)?;
    }
    vm.power_off_unharmed()
}

/// An agent that is told its number, and is quicker than the guest's bookkeeping.
#[test]
fn who_names_a_partition_waits_until_it_can_be_used() -> Result<()> {
    let vm = vm()?;
    takes_when_seen(&vm, "/cg/fn0", 1)?;
    let size = 3 * SIZE;
    put(&vm, "vm.add-partition", &json!({"id": "not-prepared", "size": size}))?.expect(200)?;
    reaches(&vm, "not-prepared", "bound", size)?;
    assert_eq!(vm.shell("cat /told")?, "");
    vm.power_off_unharmed()
}

/// What is told of 200 MiB in use: the guest says it again when it has changed by a sixteenth.
const TOLD: u64 = 200 * MIB - SIZE / 16;

/// What the guest says of it: how much is in use, and the most that was.
#[test]
fn what_a_function_uses_is_told_while_it_runs_and_while_it_drains() -> Result<()> {
    let vm = vm()?;
    add(&vm, "fn-1", "auto")?;
    let function = start(&vm)?;
    let is_told = |id: &str| {
        until(&format!("what {id} uses to be told"), within(30), || {
            let one = find(&vm, id)?.context("no partition")?;
            let used = one["used"].as_u64().unwrap_or(0);
            anyhow::ensure!(used <= SIZE, "{one}");
            Ok((used >= TOLD).then_some(()))
        })
    };
    is_told("fn-1")?;
    let list = vm.memctl("ls")?;
    let row = list.lines().find(|line| line.starts_with("fn-1")).context("no row")?;
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!(words[1..6], ["bound", "256", "MiB", "256", "MiB"], "{list}");
    // Its control group has another partition, or none, and it goes on.
    vm.shell("echo none > /cg/fn0/memory.partition")?;
    reaches(&vm, "fn-1", "draining", SIZE)?;
    is_told("fn-1")?;
    function.check()?;
    function.end()?;
    is_gone(&vm, "fn-1")?;

    add(&vm, "fn-2", "manual")?;
    let function = start(&vm)?;
    is_told("fn-2")?;
    end(&vm, function)?;
    reaches(&vm, "fn-2", "plugged", SIZE)?;
    let kept = find(&vm, "fn-2")?.context("no partition")?;
    assert!(kept["used_peak"].as_u64() >= Some(TOLD) && kept["used"] == 0, "{kept}");
    vm.power_off_unharmed()
}

/// The host is told how much a function has elsewhere.
#[test]
fn what_has_no_room_in_a_partition_is_told() -> Result<()> {
    let vm = vm()?;
    add_sized(&vm, "small", 64 * MIB, "auto")?;
    let function = start_with(&vm, 100)?;
    until("what spilled to be told", within(30), || {
        let spilled = find(&vm, "small")?.context("no partition")?["spilled"].as_u64();
        let spilled = spilled.unwrap_or(0);
        anyhow::ensure!(spilled < 48 * MIB, "{spilled} bytes of 100 MiB spilled");
        Ok((spilled >= 36 * MIB).then_some(()))
    })?;
    assert!(vm.memctl("ls")?.contains("MiB spilled"));
    end(&vm, function)?;
    is_gone(&vm, "small")?;
    vm.power_off_unharmed()
}
