//! Memory that comes and goes through virtio-mem, with a stock guest.

use std::thread;
use std::time::Duration;

use anyhow::bail;
use guest_tests::{Cgroup, Config, MIB, Result, Tessera, Vm, available_memory, until, within};
use serde_json::json;

const BOOT: u64 = 256 * MIB;

/// The room for more; with `BOOT` the guest can have 4 GiB.
const ROOM: u64 = 4096 * MIB - BOOT;

/// What the host counts beside the guest's memory: page tables, page cache, the monitor itself.
const SLACK: u64 = 48 * MIB;

fn config(plugged_at_boot: u64) -> Result<Config> {
    Ok(Config::vmlinux()?
        .with_programs()?
        .set("memory.size", BOOT)
        .set("memory.hotplug_method", "VirtioMem")
        .set("memory.hotplug_size", ROOM)
        .set("memory.hotplugged_size", plugged_at_boot)
        .cmdline("memhp_default_state=online_movable"))
}

/// A guest of 256 MiB that can grow to 4 GiB.
fn vm(plugged_at_boot: u64) -> Result<Tessera> {
    let vm = Vm::from(config(plugged_at_boot)?).boot()?;
    vm.shell("true")?;
    Ok(vm)
}

/// What the guest counts as its memory, in MiB.
fn total(vm: &Tessera) -> Result<u64> {
    Ok(vm.meminfo("MemTotal")? / MIB)
}

#[test]
fn a_stock_guest_grows_to_4_gib_and_shrinks_while_it_uses_its_memory() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let vm = Vm::from(config(0)?).in_cgroup(&cgroup).boot()?;
    let small = total(&vm)?;
    let (start, available) = (cgroup.memory()?, available_memory()?);
    for round in 0..2 {
        vm.resize(BOOT + ROOM)?;
        vm.reaches(BOOT + ROOM)?;
        assert!(total(&vm)? > 3900, "the guest does not use what it has");
        let (stay, go) = (vm.hogs(2, 48, "")?, vm.hogs(4, 256, "")?);
        let used = cgroup.memory()?;
        assert!(used > start + 1100 * MIB, "{} MiB, then {}", start / MIB, used / MIB);
        go.end()?;
        // What stays is in the way, all over the memory, and must move.
        vm.resize(BOOT + 256 * MIB)?;
        vm.reaches(BOOT + 256 * MIB)?;
        stay.check()?;
        let left = cgroup.memory()?;
        assert!(left < BOOT + 256 * MIB + SLACK, "{} MiB on the host", left / MIB);
        stay.end()?;
        vm.resize(BOOT)?;
        vm.reaches(BOOT)?;
        assert!(total(&vm)? <= small);
        let left = cgroup.memory()?;
        println!("round {round}: {} MiB in use, {} MiB left", used / MIB, left / MIB);
        assert!(left < BOOT + SLACK, "{} MiB on the host", left / MIB);
    }
    let back = available_memory()?;
    let taken = available.saturating_sub(back);
    assert!(taken < BOOT + SLACK, "the host has {} MiB less", taken / MIB);
    vm.power_off()
}

/// Pauses the guest in the middle of a resize, and says how far it is. A guest may be so fast that it
/// takes some attempts.
fn paused_between(vm: &Tessera, from: u64, to: u64) -> Result<u64> {
    for _ in 0..20 {
        vm.resize(to)?;
        until("the resize to begin", within(60), || {
            Ok(Some(vm.actual_size()?).filter(|&size| size != from))
        })?;
        vm.api().put("vm.pause")?.expect(204)?;
        let paused = vm.actual_size()?;
        if paused != to {
            return Ok(paused);
        }
        vm.api().put("vm.resume")?.expect(204)?;
        vm.resize(from)?;
        vm.reaches(from)?;
    }
    bail!("each pause came too late")
}

#[test]
fn a_pause_in_the_middle_of_a_resize_holds_it_up_and_no_more() -> Result<()> {
    let vm = vm(0)?;
    for (from, to) in [(BOOT, BOOT + ROOM), (BOOT + ROOM, BOOT)] {
        let paused = paused_between(&vm, from, to)?;
        thread::sleep(Duration::from_secs(2));
        assert_eq!(vm.actual_size()?, paused, "a paused guest was resized");
        vm.api().put("vm.resume")?.expect(204)?;
        vm.reaches(to)?;
    }
    assert_eq!(vm.shell("dmesg | grep -c 'marking device broken' || true")?, "0");
    vm.power_off()
}

/// The guest plugs what the host no longer wants it to have. It must be told so in a way that leaves
/// its driver working: on an ERROR Linux gives the device up until the next boot.
#[test]
fn a_thousand_shrinks_that_race_a_plug_leave_the_driver_working() -> Result<()> {
    let vm = vm(0)?;
    for round in 0..1000u64 {
        vm.resize(BOOT + (128 + round % 4 * 64) * MIB)?;
        // Somewhere else in the plug each time: between at once and several blocks in.
        thread::sleep(Duration::from_micros(round % 50 * 500));
        vm.resize(BOOT + round % 3 * 2 * MIB)?;
    }
    // And in the middle of one: some of the memory is there, the rest is asked for.
    for _ in 0..100 {
        vm.resize(BOOT)?;
        vm.reaches(BOOT)?;
        vm.resize(BOOT + 512 * MIB)?;
        until("the plug to begin", within(60), || {
            Ok(Some(vm.actual_size()?).filter(|&at| at > BOOT))
        })?;
    }
    let counters = vm.counters()?["__mem"].clone();
    println!("{counters}");
    assert_eq!(counters["error"], 0, "{counters}");
    assert!(counters["nack"].as_u64() >= Some(1), "nothing raced: {counters}");
    vm.resize(BOOT + 512 * MIB)?;
    vm.reaches(BOOT + 512 * MIB)?;
    vm.resize(BOOT)?;
    vm.reaches(BOOT)?;
    assert_eq!(vm.shell("dmesg | grep -c 'marking device broken' || true")?, "0");
    vm.power_off()
}

#[test]
fn memory_plugged_at_boot_is_there_again_after_a_reset() -> Result<()> {
    let vm = vm(512 * MIB)?;
    vm.reaches(BOOT + 512 * MIB)?;
    vm.resize(BOOT + 256 * MIB)?;
    vm.reaches(BOOT + 256 * MIB)?;
    vm.console().send("reboot -f\n")?;
    vm.console().wait_for_shell()?;
    vm.reaches(BOOT + 256 * MIB)?;
    vm.power_off()
}

#[test]
fn sizes_that_cannot_be_are_refused_and_change_nothing() -> Result<()> {
    let vm = vm(0)?;
    for (size, problem) in [
        (BOOT - MIB, "less than"),
        (BOOT + 4096 * MIB, "there is room for 3840 MiB"),
        (BOOT + MIB, "no multiple of 2 MiB"),
    ] {
        let answer =
            vm.api().put_json("vm.resize", &json!({ "desired_ram": size }))?.expect(400)?;
        let text = answer.body.to_string();
        assert!(text.contains("desired_ram: ") && text.contains(problem), "{text}");
    }
    vm.resize(BOOT)?;
    let partition = json!({ "id": "fn-1", "size": 64 * MIB });
    let answer = vm.api().put_json("vm.add-partition", &partition)?.expect(409)?;
    assert!(answer.body.to_string().contains("no room for partitions"), "{}", answer.body);
    vm.reaches(BOOT)?;
    vm.power_off()
}
