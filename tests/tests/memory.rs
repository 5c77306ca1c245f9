//! Memory that comes and goes through virtio-mem, with a stock guest.

use guest_tests::{Config, Result, Tessera, Vm, until, within};
use serde_json::json;

const MIB: u64 = 1 << 20;
const BOOT: u64 = 256 * MIB;

/// A guest of 256 MiB with room for 2 GiB more.
fn vm(plugged_at_boot: u64) -> Result<Tessera> {
    let config = Config::vmlinux()?
        .set("memory.size", BOOT)
        .set("memory.hotplug_method", "VirtioMem")
        .set("memory.hotplug_size", 2048 * MIB)
        .set("memory.hotplugged_size", plugged_at_boot)
        .cmdline("memhp_default_state=online_movable");
    let vm = Vm::from(config).boot()?;
    vm.shell("true")?;
    Ok(vm)
}

fn resize(vm: &Tessera, size: u64) -> Result<()> {
    vm.api().put_json("vm.resize", &json!({ "desired_ram": size }))?.expect(204)?;
    Ok(())
}

/// Waits until the guest has followed.
fn reaches(vm: &Tessera, size: u64) -> Result<()> {
    until(&format!("{} MiB in the guest", size / MIB), within(60), || {
        let info = vm.api().get("vm.info")?.expect(200)?;
        Ok((info.body["memory_actual_size"] == size).then_some(()))
    })
}

/// What the guest counts as its memory, in MiB.
fn total(vm: &Tessera) -> Result<u64> {
    let kib = vm.shell("sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
    Ok(kib.parse::<u64>()? / 1024)
}

/// What the monitor's process has resident, guest memory included.
fn resident(vm: &Tessera) -> Result<u64> {
    Ok(vm.process().mappings()?.iter().map(|mapping| mapping.resident).sum())
}

#[test]
fn a_stock_guest_grows_and_shrinks_and_the_host_has_the_memory_back() -> Result<()> {
    let vm = vm(0)?;
    let small = total(&vm)?;
    for _ in 0..2 {
        resize(&vm, BOOT + 512 * MIB)?;
        reaches(&vm, BOOT + 512 * MIB)?;
        assert!(total(&vm)? > small + 450);
        let before = resident(&vm)?;
        // Use it, so that there is something to give back.
        vm.shell("mkdir -p /m; mount -t tmpfs -o size=400m m /m; head -c 300m /dev/zero > /m/f")?;
        let used = resident(&vm)?;
        assert!(used > before + 250 * MIB, "{} MiB, then {}", before / MIB, used / MIB);
        vm.shell("umount /m")?;
        resize(&vm, BOOT)?;
        reaches(&vm, BOOT)?;
        assert!(total(&vm)? <= small);
        let after = resident(&vm)?;
        assert!(after < BOOT + 64 * MIB, "{} MiB resident", after / MIB);
    }
    vm.power_off()
}

#[test]
fn memory_plugged_at_boot_is_there_again_after_a_reset() -> Result<()> {
    let vm = vm(512 * MIB)?;
    reaches(&vm, BOOT + 512 * MIB)?;
    resize(&vm, BOOT + 256 * MIB)?;
    reaches(&vm, BOOT + 256 * MIB)?;
    vm.console().send("reboot -f\n")?;
    vm.console().wait_for_shell()?;
    reaches(&vm, BOOT + 256 * MIB)?;
    vm.power_off()
}

#[test]
fn sizes_that_cannot_be_are_refused_and_change_nothing() -> Result<()> {
    let vm = vm(0)?;
    for (size, problem) in [
        (BOOT - MIB, "less than"),
        (BOOT + 4096 * MIB, "there is room for 2 GiB"),
        (BOOT + MIB, "no multiple of 2 MiB"),
    ] {
        let answer =
            vm.api().put_json("vm.resize", &json!({ "desired_ram": size }))?.expect(400)?;
        let text = answer.body.to_string();
        assert!(text.contains("desired_ram: ") && text.contains(problem), "{text}");
    }
    resize(&vm, BOOT)?;
    let partition = json!({ "id": "fn-1", "size": 64 * MIB });
    let answer = vm.api().put_json("vm.add-partition", &partition)?.expect(409)?;
    assert!(answer.body.to_string().contains("no room for partitions"), "{}", answer.body);
    reaches(&vm, BOOT)?;
    vm.power_off()
}
