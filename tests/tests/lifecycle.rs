//! What becomes of a VM: power off, reset, crash, pause, the power button, signals, events.

use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Config, Result, Tessera, Vm};
use rustix::process::Signal;
use serde_json::Value;

/// What our guest's init says once in each boot.
const INIT: &str = "tessera-init:";

#[test]
fn a_guest_that_powers_off_ends_the_process_well() -> Result<()> {
    let mut vm = Vm::from(Config::vmlinux()?.cmdline("tessera.run=poweroff")).boot()?;
    vm.end()?;
    assert!(vm.console().text().contains(INIT));
    Ok(())
}

#[test]
fn a_reset_boots_the_guest_again_in_the_same_process() -> Result<()> {
    let config = Config::vmlinux()?.vcpus(2).set("console.mode", "Null");
    let vm = Vm::from(config).boot()?;
    vm.shell("mount -t tmpfs tmpfs /tmp && touch /tmp/mark")?;
    for _ in 0..2 {
        vm.console().send("reboot -f\n")?;
        vm.console().wait_for_shell()?;
    }
    assert_ne!(vm.console().status_of("ls /tmp/mark")?.0, 0, "memory survived a reset");
    assert_eq!(vm.shell("nproc; ls /dev/hwrng")?, "2\n/dev/hwrng");
    vm.power_off()
}

/// As Linux does that was built with EFI support.
#[test]
fn a_reset_through_the_bios_is_one_too() -> Result<()> {
    let vm = Vm::from(Config::vmlinux()?.vcpus(2).cmdline("reboot=bios")).boot()?;
    vm.console().send("reboot -f\n")?;
    vm.console().wait_for_shell()?;
    vm.power_off()
}

#[test]
fn a_triple_fault_is_an_error_with_the_registers() -> Result<()> {
    let mut vm = Vm::from(Config::vmlinux()?.cmdline("reboot=triple")).boot()?;
    vm.shell("true")?;
    vm.console().send("reboot -f\n")?;
    assert_eq!(vm.wait()?, 1);
    let log = vm.log();
    for part in ["triple fault", "rip", "cr3"] {
        assert!(log.contains(part), "no {part:?}");
    }
    assert!(!vm.socket().exists(), "the API socket is left behind");
    Ok(())
}

#[test]
fn a_paused_guest_is_silent_and_goes_on_where_it_stood() -> Result<()> {
    let vm = Vm::from(Config::vmlinux()?.vcpus(2)).boot()?;
    vm.shell("( n=0; while usleep 50000; do n=$((n + 1)); echo tick $n; done & )")?;
    vm.console().wait_for("tick 3")?;
    vm.api().put("vm.pause")?.expect(204)?;
    assert_eq!(vm.info()?["state"], "Paused");
    // What was on its way has arrived by then.
    thread::sleep(Duration::from_millis(300));
    let said = vm.console().text();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(vm.console().text(), said, "a paused guest spoke");
    vm.api().put("vm.resume")?.expect(204)?;
    assert_eq!(vm.info()?["state"], "Running");
    let next = said.matches("tick").count() + 2;
    vm.console().wait_for(&format!("tick {next}\r"))?;
    let log = vm.shell("dmesg | grep -ciE 'lockup|stall' || true")?;
    assert!(log.lines().any(|line| line == "0"), "the guest noticed the pause: {log}");
    vm.power_off()
}

#[test]
fn twenty_pauses_do_a_busy_guest_no_harm() -> Result<()> {
    let vm = Vm::from(Config::vmlinux()?.vcpus(2)).boot()?;
    vm.shell("( while :; do :; done & )")?;
    for _ in 0..20 {
        vm.api().put("vm.pause")?.expect(204)?;
        vm.api().put("vm.resume")?.expect(204)?;
    }
    assert_eq!(vm.shell("nproc")?, "2");
    vm.power_off()
}

#[test]
fn the_power_button_reaches_the_guests_acpid() -> Result<()> {
    let mut vm = Vm::from(Config::vmlinux()?).boot()?;
    vm.shell(
        "mkdir -p /etc/acpi/PWRF && cd /etc/acpi/PWRF && \
         printf '#!/bin/sh\\necho pressed > /dev/console\\npoweroff -f\\n' > 00000080 && \
         chmod +x 00000080",
    )?;
    // It goes to the background before it listens.
    vm.shell(
        "mkdir -p /var/log /var/run && acpid; \
         until ls -l /proc/$(pidof acpid)/fd | grep -q input/event; do sleep 0.1; done",
    )?;
    vm.api().put("vm.power-button")?.expect(204)?;
    vm.console().wait_for("pressed")?;
    vm.end()
}

#[test]
fn signals_end_the_process_well_and_leave_no_socket() -> Result<()> {
    for signal in [Signal::TERM, Signal::INT] {
        let mut vm = Vm::from(Config::vmlinux()?).boot()?;
        vm.console().wait_for(INIT)?;
        assert!(vm.socket().exists());
        vm.signal(signal)?;
        vm.end()?;
    }
    let mut idle = Tessera::idle()?;
    idle.api().get("vmm.ping")?.expect(200)?;
    idle.signal(Signal::TERM)?;
    idle.end()
}

/// An event's source and name.
fn name(event: &Value) -> String {
    let timestamp = &event["timestamp"];
    assert!(timestamp["secs"].is_u64() && timestamp["nanos"].is_u64(), "{event}");
    let text = |name: &str| event[name].as_str().unwrap_or("?").to_owned();
    format!("{} {}", text("source"), text("event"))
}

#[test]
fn the_event_monitor_tells_all_that_happens() -> Result<()> {
    let mut vm = Vm::from(Config::vmlinux()?).with_events().boot()?;
    vm.console().wait_for_shell()?;
    vm.api().put("vm.pause")?.expect(204)?;
    vm.api().put("vm.resume")?.expect(204)?;
    vm.api().put("vm.reboot")?.expect(204)?;
    vm.console().wait_for_shell()?;
    vm.api().put("vm.shutdown")?.expect(204)?;
    vm.api().put("vm.delete")?.expect(204)?;
    vm.api().put("vmm.shutdown")?.expect(204)?;
    vm.end()?;
    let told: Vec<_> = vm.events()?.iter().map(name).collect();
    let expected = [
        "vm booting",
        "vm booted",
        "vm paused",
        "vm resumed",
        "vm rebooting",
        "vm booting",
        "vm booted",
        "vm rebooted",
        "vm shutdown",
        "vm deleted",
    ];
    assert_eq!(told.iter().filter(|name| name.starts_with("vm ")).collect::<Vec<_>>(), expected);
    Ok(())
}

/// How long a guest is stopped: long enough for its clock to show it.
const PAUSE: Duration = Duration::from_secs(5);

/// Seconds since the guest's kernel started, by its own clock.
fn uptime(vm: &Tessera) -> Result<f64> {
    Ok(vm.shell("cut -d' ' -f1 /proc/uptime")?.parse()?)
}

#[test]
fn the_clock_of_a_paused_guest_stands_still() -> Result<()> {
    let vm = Vm::from(Config::vmlinux()?).boot()?;
    let (start, before) = (Instant::now(), uptime(&vm)?);
    vm.api().put("vm.pause")?.expect(204)?;
    thread::sleep(PAUSE);
    vm.api().put("vm.resume")?.expect(204)?;
    let passed = uptime(&vm)? - before;
    let awake = (start.elapsed() - PAUSE).as_secs_f64();
    assert!(passed < awake + 1.0, "{passed} s passed in {awake} s");
    vm.power_off()
}
