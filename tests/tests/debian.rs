//! The other guest: Debian's stock kernel and user space, as anyone would install it.

use guest_tests::{Artefact, Config, Image, Result, Tessera, Vm, within};

/// From the monitor's start to a login, and from `poweroff` to the end; systemd takes its time.
const PATIENCE: u32 = 400;

fn boot(image: &Image, words: &str) -> Result<Tessera> {
    let config = Config::debian(&image.path())?.vcpus(2).cmdline(words);
    let vm = Vm::from(config).prompt("root@tessera:~# ").boot()?;
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
