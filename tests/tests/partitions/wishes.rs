//! What the host wants changes before the guest is done with it.

use guest_tests::{MIB, Result, Tessera, Vm, until, within};
use serde_json::json;

use super::{
    BOOT, SIZE, add, add_sized, booted, config, counter, end, is_gone, put, reaches, start,
    start_with, takes_when_seen, uses, vm,
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

/// A guest whose room for partitions ends within a block of Linux's memory, which are of 128 MiB:
/// what is in that one the guest can't use.
fn vm_with_useless_room() -> Result<Tessera> {
    let config = config()?.set("memory.partitions", json!({"size": 192 * MIB}));
    booted(Vm::from(config))
}

/// How often the guest's driver has said that it can't use what it plugged.
fn useless_plugs(vm: &Tessera) -> Result<u64> {
    let said = "dmesg | grep -c 'no use for the memory of partition' || true";
    Ok(vm.shell(said)?.parse()?)
}

#[test]
fn a_shrink_takes_first_what_the_guest_could_not_use() -> Result<()> {
    let vm = vm_with_useless_room()?;
    add_sized(&vm, "fn-1", 64 * MIB, "auto")?;
    for size in [160 * MIB, 64 * MIB] {
        put(&vm, "vm.resize-partition", &json!({"id": "fn-1", "size": size}))?.expect(200)?;
        reaches(&vm, "fn-1", "plugged", size)?;
    }
    assert_eq!(useless_plugs(&vm)?, 1, "the guest has a use for all of it");
    let function = start_with(&vm, 40)?;
    uses(&vm, "fn-1", 32 * MIB)?;
    function.check()?;
    end(&vm, function)?;
    is_gone(&vm, "fn-1")?;
    vm.power_off_unharmed()
}

/// One that was to be kept too: nobody else could have what it holds.
#[test]
fn what_the_guest_cannot_use_at_all_goes_back() -> Result<()> {
    let vm = vm_with_useless_room()?;
    add_sized(&vm, "fn-1", 128 * MIB, "auto")?;
    let function = start_with(&vm, 100)?;
    reaches(&vm, "fn-1", "bound", 128 * MIB)?;
    vm.shell("mkdir /cg/fn1")?;
    takes_when_seen(&vm, "/cg/fn1", 2)?;
    let body = json!({"id": "fn-2", "size": 64 * MIB, "release": "manual"});
    put(&vm, "vm.add-partition", &body)?.expect(200)?;
    is_gone(&vm, "fn-2")?;
    // It may have come and gone unseen.
    vm.shell("touch /late")?;
    until("who waits for it to be told", within(10), || {
        Ok(vm.shell("cat /told")?.contains("No such file").then_some(()))
    })?;
    assert_eq!(useless_plugs(&vm)?, 1);
    assert_eq!(counter(&vm, "releases")?, 1);
    assert_eq!(counter(&vm, "released_bytes")?, 64 * MIB);
    assert_eq!(vm.actual_size()?, BOOT + 128 * MIB);
    reaches(&vm, "fn-1", "bound", 128 * MIB)?;
    function.check()?;
    end(&vm, function)?;
    is_gone(&vm, "fn-1")?;
    // Where the other one was, the guest can use it.
    add_sized(&vm, "fn-2", 64 * MIB, "auto")?;
    vm.power_off_unharmed()
}
