//! The guest's driver goes, and comes back or does not.

use anyhow::Context;
use guest_tests::{MIB, Result, Tessera, until, within};
use serde_json::json;

use super::{BOOT, SIZE, add, end, find, in_guest, is_gone, number, put, reaches, start, vm};

/// What a CPU may have in its batches of pages that nobody has mapped any more: there are eight
/// kinds, of 31 small pages each.
const BATCHES: u64 = MIB;

/// Unbinds the driver from the device, or binds it again; says whether the guest's kernel did.
fn driver(vm: &Tessera, what: &str, device: &str) -> Result<bool> {
    let command = format!("echo {device} > /sys/bus/virtio/drivers/virtio_mem/{what}");
    Ok(vm.console().status_of(&command)?.0 == 0)
}

fn device(vm: &Tessera) -> Result<String> {
    vm.shell("basename /sys/bus/virtio/drivers/virtio_mem/virtio*")
}

/// What nobody uses is released, for good; the driver that comes back takes what the host adds then.
#[test]
fn a_driver_that_goes_and_comes_back_starts_over() -> Result<()> {
    let vm = vm()?;
    add(&vm, "first", "manual")?;
    let device = device(&vm)?;
    assert!(driver(&vm, "unbind", &device)?);
    is_gone(&vm, "first")?;
    assert_eq!(vm.actual_size()?, BOOT);
    let body = json!({"id": "second", "size": SIZE, "cookie": 7});
    put(&vm, "vm.add-partition", &body)?.expect(409)?;
    assert!(driver(&vm, "bind", &device)?);
    add(&vm, "second", "auto")?;
    let function = start(&vm)?;
    reaches(&vm, "second", "bound", SIZE)?;
    end(&vm, function)?;
    is_gone(&vm, "second")?;
    vm.power_off_unharmed()
}

/// As with stock virtio-mem: what a function uses stays plugged, stays where it is, and is its own
/// to use. It would be kept for the next one, but nobody could tell the host of that.
#[test]
fn a_driver_that_goes_leaves_a_function_its_memory() -> Result<()> {
    let vm = vm()?;
    add(&vm, "fn-1", "manual")?;
    let number = number(&vm, "fn-1")?;
    let function = start(&vm)?;
    reaches(&vm, "fn-1", "bound", SIZE)?;
    let device = device(&vm)?;
    assert!(driver(&vm, "unbind", &device)?);
    function.check()?;
    assert!(!driver(&vm, "bind", &device)?, "a driver that knows nothing of what is in use");
    let used = in_guest(&vm, "used")?;
    let more = vm.hogs(1, 30, "cgroup=/cg/fn")?;
    let now = in_guest(&vm, "used")?;
    assert!(now >= used + 30 * MIB, "{used} bytes, then {now} with 30 MiB more");
    assert_eq!(in_guest(&vm, "spilled")?, 0);
    for hogs in [function, more] {
        hogs.check()?;
        hogs.end()?;
    }
    until("what they had to be free", within(30), || {
        Ok((in_guest(&vm, "used")? < BATCHES).then_some(()))
    })?;
    vm.shell("echo none > /cg/fn0/memory.partition")?;
    until("all of it to be free", within(30), || {
        Ok((vm.meminfo("PartitionFree")? == SIZE).then_some(()))
    })?;
    nobody_can_have(&vm, number)?;
    assert_eq!(find(&vm, "fn-1")?.context("no partition")?["plugged"], json!(SIZE));
    vm.power_off_unharmed()
}

/// The only partition there is, by its number or as any that is free.
fn nobody_can_have(vm: &Tessera, number: u64) -> Result<()> {
    let file = "/cg/next/memory.partition";
    vm.shell("mkdir /cg/next")?;
    let (status, told) = vm.console().status_of(&format!("echo {number} > {file}"))?;
    assert!(status != 0 && told.contains("busy"), "status {status}: {told}");
    // It waits for another one.
    vm.shell(&format!(
        "echo auto > {file} & until grep -q '^State:.S' /proc/$!/status; do sleep 0.1; done"
    ))?;
    assert_eq!(vm.shell(&format!("cat {file}"))?, "none");
    Ok(())
}

#[test]
fn a_guest_without_the_channel_is_a_conflict_that_says_what_to_do() -> Result<()> {
    let vm = vm()?;
    vm.unbind_memory()?;
    let body = json!({"id": "fn-1", "size": SIZE});
    let text = put(&vm, "vm.add-partition", &body)?.expect(409)?.body.to_string();
    assert!(text.contains("partition channel") && text.contains("vm.resize"), "{text}");
    assert!(find(&vm, "fn-1")?.is_none());
    vm.power_off_unharmed()
}
