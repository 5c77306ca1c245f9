//! The other guest: Debian's stock kernel and user space, as anyone would install it.

use guest_tests::{Artefact, Cgroup, Config, Image, MIB, Result, Tessera, Vm, within};

/// From the monitor's start to a login, and from `poweroff` to the end; systemd takes its time.
const PATIENCE: u32 = 400;

fn boot(image: &Image, words: &str) -> Result<Tessera> {
    log_in(Vm::from(Config::debian(&image.path())?.vcpus(2).cmdline(words)))
}

fn log_in(vm: Vm) -> Result<Tessera> {
    let vm = vm.prompt("root@tessera:~# ").boot()?;
    vm.console().wait_for_within("tessera login: root (automatic login)", within(PATIENCE))?;
    Ok(vm)
}

#[test]
fn debian_boots_to_a_login_and_powers_off_through_systemd() -> Result<()> {
    let image = Image::copy_of(&Artefact::DebianImage.path()?)?;
    let mut vm = boot(&image, "quiet")?;
    assert_eq!(vm.shell("cat /proc/1/comm; nproc")?, "systemd\n2");
    assert!(vm.shell("uname -r")?.ends_with("-cloud-amd64"));
    assert_eq!(vm.shell("findmnt -no SOURCE,FSTYPE /")?, "/dev/vda ext4");
    let disk = vm.shell("readlink -f /sys/block/vda/device/driver /sys/block/vda/device/..")?;
    assert!(disk.contains("virtio_blk") && disk.contains("0000:00:"), "{disk}");
    vm.shell("echo written > /root/mark && sync")?;
    vm.console().send("systemctl poweroff\n")?;
    vm.end()?;
    assert!(
        vm.console().text().contains("Power down") || vm.console().text().contains("Power-Off")
    );

    // The same disk again: what was written is there, and the power button goes through logind.
    let mut vm = boot(&image, "quiet")?;
    assert_eq!(vm.shell("cat /root/mark")?, "written");
    // logind may open the button only after the login prompt; what came before is lost.
    vm.shell(
        "for i in $(seq 60); do journalctl -qb | grep -q 'system buttons' && break; sleep 1; done",
    )?;
    vm.api().put("vm.power-button")?.expect(204)?;
    vm.end()
}

/// What Debian's guest boots with, and the room for more.
const BOOT: u64 = 512 * MIB;
const ROOM: u64 = 4096 * MIB - BOOT;

fn resize(vm: &Tessera, size: u64) -> Result<()> {
    vm.resize(size)?;
    vm.reaches(size)
}

/// The driver is a module here, which udev loads; the kernel is as Debian built it.
#[test]
fn debian_grows_to_4_gib_and_shrinks_and_the_host_has_its_memory_back() -> Result<()> {
    let (image, cgroup) = (Image::copy_of(&Artefact::DebianImage.path()?)?, Cgroup::new()?);
    let config = Config::debian(&image.path())?
        .set("memory.hotplug_method", "VirtioMem")
        .set("memory.hotplug_size", ROOM)
        .set("memory.hotplugged_size", 256 * MIB)
        .cmdline("quiet memhp_default_state=online_movable");
    let vm = log_in(Vm::from(config).in_cgroup(&cgroup))?;
    for _ in 0..2 {
        resize(&vm, BOOT + ROOM)?;
        let mib = vm.meminfo("MemTotal")? / MIB;
        assert!(mib > 3800, "the guest does not use what it has: {mib} MiB");
        vm.shell("mount -o remount,size=90% /dev/shm; head -c 1G /dev/zero > /dev/shm/go")?;
        vm.shell("head -c 64M /dev/urandom > /dev/shm/stay; sha256sum /dev/shm/stay > /root/sum")?;
        // Not the page cache of the disk image.
        let used = cgroup.anonymous()?;
        assert!(used > 1024 * MIB, "{} MiB in use", used / MIB);
        vm.shell("rm /dev/shm/go")?;
        resize(&vm, BOOT + 256 * MIB)?;
        vm.shell("sha256sum --check --quiet /root/sum && rm /dev/shm/stay")?;
        resize(&vm, BOOT)?;
        let left = cgroup.anonymous()?;
        println!("{} MiB in use, {} MiB left", used / MIB, left / MIB);
        assert!(left < BOOT + 128 * MIB, "{} MiB on the host", left / MIB);
    }
    assert_eq!(vm.shell("dmesg | grep -c 'marking device broken' || true")?, "0");

    // A reboot keeps the size that was asked for last, and the memory goes online again.
    resize(&vm, BOOT + ROOM)?;
    vm.console().send("reboot -ff\n")?;
    vm.console().wait_for_within("tessera login: root (automatic login)", within(PATIENCE))?;
    vm.console().wait_for_shell()?;
    vm.reaches(BOOT + ROOM)?;
    assert!(vm.meminfo("MemTotal")? > 3800 * MIB, "the guest does not use what it has");
    resize(&vm, BOOT)?;
    vm.power_off()
}
