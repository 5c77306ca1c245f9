//! Serial port, console and entropy, at the host's side and at the guest's.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::Context;
use guest_tests::{Config, Console, Result, Tessera, Vm, until, within};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Where the monitor says its pseudo-terminal is.
fn pty(vm: &Tessera, device: &str) -> Result<PathBuf> {
    let config = &vm.info()?["config"];
    let path = config[device]["file"].as_str().map(PathBuf::from);
    path.with_context(|| format!("vm.info names no file for {device}: {config}"))
}

/// Both sides of a terminal: a person's and a program's.
fn terminal() -> Result<(File, File)> {
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&near)?;
    unlockpt(&near)?;
    let name = ptsname(&near, Vec::new())?;
    let far = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    Ok((near.into(), far.into()))
}

fn resize(terminal: &File, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

#[test]
fn the_console_is_a_shell_that_follows_the_size_of_the_terminal() -> Result<()> {
    let (near, far) = terminal()?;
    resize(&near, 40, 132)?;
    let config = Config::vmlinux()?
        .set("serial.mode", "Off")
        .set("console.mode", "Tty")
        .set("payload.cmdline", "console=hvc0 quiet");
    let vm = Vm::from(config).terminal(near.try_clone()?, far).boot()?;
    assert_eq!(vm.shell("tty; stty size")?, "/dev/hvc0\n40 132");
    resize(&near, 50, 100)?;
    until("the guest's terminal to follow", within(30), || {
        Ok((vm.shell("stty size")? == "50 100").then_some(()))
    })?;
    assert_eq!(vm.console().status_of("stty -F /dev/ttyS0 2> /dev/null")?.0, 1, "no serial port");
    vm.power_off()
}

#[test]
fn serial_sockets_and_console_terminals_take_clients_as_they_come() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("serial.sock");
    let config = Config::vmlinux()?
        .set("serial", serde_json::json!({ "mode": "Socket", "socket": socket }))
        .set("console.mode", "Pty");
    let mut vm = Vm::from(config).boot()?;
    let serial = Console::connect(&socket)?;
    assert_eq!(serial.shell("tty")?, "/dev/ttyS0");
    serial.shell("( setsid -c sh < /dev/hvc0 > /dev/hvc0 2>&1 & )")?;
    let path = pty(&vm, "console")?;
    let console = Console::open(&path)?;
    assert_eq!(console.shell("tty")?, "/dev/hvc0");
    // A client that goes leaves the guest alone, and the next one is served.
    drop((serial, console));
    let serial = Console::connect(&socket)?;
    serial.send("\n")?;
    assert_eq!(serial.shell("echo again")?, "again");
    serial.send("poweroff -f\n")?;
    vm.end()?;
    assert!(!socket.exists(), "the serial port's socket is left behind");
    Ok(())
}

#[test]
fn output_goes_to_files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    fs::write(path("serial"), "of an earlier run")?;
    let file = |name: &str| serde_json::json!({ "mode": "File", "file": path(name) });
    let config = Config::vmlinux()?
        .cmdline("console=hvc0 tessera.run=poweroff")
        .set("serial", file("serial"))
        .set("console", file("console"));
    let mut vm = Vm::from(config).boot()?;
    vm.end()?;
    let serial = fs::read_to_string(path("serial"))?;
    let console = fs::read_to_string(path("console"))?;
    // Init's own words go to the last console on the command line, the kernel's to each.
    assert!(console.contains("tessera-init:"), "{console}");
    assert!(serial.contains("Power down") && !serial.contains("tessera-init:"), "{serial}");
    assert!(!serial.contains("earlier"), "{serial}");
    Ok(())
}

#[test]
fn a_serial_terminal_is_named_before_the_boot_and_kept_over_a_reset() -> Result<()> {
    let config = Config::vmlinux()?.set("serial.mode", "Pty");
    let mut vm = Tessera::idle()?;
    vm.api().put_json("vm.create", config.json())?.expect(204)?;
    let path = pty(&vm, "serial")?;
    let serial = Console::open(&path)?;
    vm.api().put("vm.boot")?.expect(204)?;
    assert_eq!(serial.shell("tty")?, "/dev/ttyS0");
    serial.send("reboot -f\n")?;
    serial.wait_for_shell()?;
    assert_eq!(pty(&vm, "serial")?, path);
    assert_eq!(serial.shell("echo still here")?, "still here");
    serial.send("poweroff -f\n")?;
    vm.end()
}

#[test]
fn nobody_at_the_terminal_does_not_stop_the_guest() -> Result<()> {
    let vm = Vm::from(Config::vmlinux()?.set("console.mode", "Pty")).boot()?;
    // Much more than a terminal keeps for a reader who is not there.
    vm.shell("seq 14000 > /dev/hvc0")?;
    let console = Console::open(&pty(&vm, "console")?)?;
    vm.shell("echo for the late reader > /dev/hvc0")?;
    console.wait_for("for the late reader")?;
    vm.power_off()
}

#[test]
fn entropy_comes_from_the_host() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("entropy");
    fs::write(&source, "tessera ".repeat(1 << 16))?;
    let vm = Vm::from(Config::vmlinux()?).boot()?;
    assert_eq!(vm.shell("cat /sys/class/misc/hw_random/rng_current")?, "virtio_rng.0");
    let read = "head -c 32 /dev/hwrng | xxd -p -c 64";
    let (first, second) = (vm.shell(read)?, vm.shell(read)?);
    assert_eq!(first.len(), 64, "{first}");
    assert_ne!(first, second);
    vm.power_off()?;
    let vm = Vm::from(Config::vmlinux()?.set("rng.src", source.to_str())).boot()?;
    assert!(vm.shell("head -c 64 /dev/hwrng")?.contains("tessera tessera"));
    vm.power_off()
}
