//! What the host wants changes before the guest is done with it.

use anyhow::Context;
use guest_tests::{MIB, Result, Vm, until, within};
use serde_json::json;

use super::{
    SIZE, add, add_sized, booted, config, end, find, is_gone, put, reaches, start, start_with, vm,
};

/// A kept partition outlives a removal that the host thought better of, however soon its function
/// ends after that.
#[test]
fn a_removal_that_is_withdrawn_takes_nothing() -> Result<()> {
    let vm = vm()?;
    add(&vm, "fn-1", "manual")?;
    let function = start(&vm)?;
    reaches(&vm, "fn-1", "bound", SIZE)?;
    let removal = json!({"id": "fn-1", "timeout_ms": 0});
    put(&vm, "vm.remove-partition", &removal)?.expect(409)?;
    put(&vm, "vm.resize-partition", &json!({"id": "fn-1", "size": SIZE}))?.expect(200)?;
    end(&vm, function)?;
    reaches(&vm, "fn-1", "plugged", SIZE)?;
    // The next function has it.
    let function = start(&vm)?;
    reaches(&vm, "fn-1", "bound", SIZE)?;
    function.check()?;
    end(&vm, function)?;
    vm.power_off_unharmed()
}

/// Linux adds memory in blocks of 128 MiB, of which the last one is not all in this region.
#[test]
fn a_shrink_takes_first_what_the_guest_could_not_use() -> Result<()> {
    let config = config()?.set("memory.partitions", json!({"size": 192 * MIB}));
    let vm = booted(Vm::from(config))?;
    add_sized(&vm, "fn-1", 64 * MIB, "auto")?;
    for size in [160 * MIB, 64 * MIB] {
        put(&vm, "vm.resize-partition", &json!({"id": "fn-1", "size": size}))?.expect(200)?;
        reaches(&vm, "fn-1", "plugged", size)?;
    }
    let told = vm.shell("dmesg | grep -c 'no use for the memory of partition'")?;
    assert_eq!(told, "1", "the guest has a use for all of it");
    let function = start_with(&vm, 40)?;
    until("the function to be in what is left", within(30), || {
        let used = find(&vm, "fn-1")?.context("no partition")?["used"].as_u64();
        Ok((used >= Some(32 * MIB)).then_some(()))
    })?;
    function.check()?;
    end(&vm, function)?;
    is_gone(&vm, "fn-1")?;
    vm.power_off_unharmed()
}
