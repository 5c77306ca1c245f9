//! The host fails a request of the driver's, which makes it again until the host can.

use anyhow::Context;
use guest_tests::{HugePages, MIB, Result, Tessera, Vm, until, within};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

use super::{
    BOOT, SIZE, add, config, control_group, counter, end, find, is_gone, put, reaches, start, vm,
};

/// The driver asks again after a while, and nobody has to tell it to.
#[test]
fn a_plug_that_the_host_has_no_memory_for_comes_when_it_has() -> Result<()> {
    let pages = HugePages::reserve(BOOT + 64 * MIB)?;
    let config = config()?.set("memory.hugepages", true).set("memory.prefault", true);
    let vm = Vm::from(config).boot()?;
    control_group(&vm)?;
    let body = json!({"id": "fn-1", "size": SIZE, "release": "auto"});
    put(&vm, "vm.add-partition", &body)?.expect(200)?;
    let refused = || Ok((counter(&vm, "busy")? > 0).then_some(()));
    until("the host to be asked for more than it has", within(10), refused)?;
    let one = find(&vm, "fn-1")?.context("no partition")?;
    assert_eq!((&one["state"], &one["plugged"]), (&json!("requested"), &json!(0)));
    let more = HugePages::reserve(SIZE)?;
    reaches(&vm, "fn-1", "plugged", SIZE)?;
    let function = start(&vm)?;
    function.check()?;
    end(&vm, function)?;
    is_gone(&vm, "fn-1")?;
    vm.power_off_unharmed()?;
    drop((more, pages));
    Ok(())
}

/// Limits the address space that a monitor may have; returns the limit before.
fn limit_addresses(vm: &Tessera, limit: Rlimit) -> Result<Rlimit> {
    let monitor = Pid::from_raw(vm.process().id().try_into()?);
    Ok(prlimit(Some(monitor.context("no process")?), Resource::As, limit)?)
}

/// Less than it has: the host maps nothing more for it, not even what closes memory.
const NO_ADDRESSES: Rlimit = Rlimit { current: Some(0), maximum: None };

/// As with a plug, nobody has to tell the driver to. No function will: the last one has ended.
#[test]
fn a_release_that_the_host_fails_comes_when_it_can() -> Result<()> {
    let vm = vm()?;
    add(&vm, "fn-1", "auto")?;
    let function = start(&vm)?;
    reaches(&vm, "fn-1", "bound", SIZE)?;
    let before = vm.migrated()?;
    let addresses = limit_addresses(&vm, NO_ADDRESSES)?;
    end(&vm, function)?;
    // By the monitor's log: a call to its API would take a thread, and that a stack.
    until("the host to fail", within(30), || {
        Ok(vm.log().contains("the host can't change the memory").then_some(()))
    })?;
    limit_addresses(&vm, addresses)?;
    is_gone(&vm, "fn-1")?;
    let failures = counter(&vm, "host_failures")?;
    assert!(failures > 0);
    assert_eq!(counter(&vm, "busy")?, failures);
    assert_eq!(counter(&vm, "part_release")?, failures + 1);
    assert_eq!(counter(&vm, "releases")?, 1);
    assert_eq!(vm.migrated()?, before);
    assert_eq!(vm.actual_size()?, BOOT);
    add(&vm, "fn-2", "auto")?;
    let function = start(&vm)?;
    function.check()?;
    end(&vm, function)?;
    is_gone(&vm, "fn-2")?;
    vm.power_off_unharmed()
}
