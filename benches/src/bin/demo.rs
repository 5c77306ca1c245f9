//! `demo`: what Tessera is for, on one terminal. `cargo xtask demo` runs it.
//!
//! A VM boots from one JSON file; it grows and shrinks; then eight functions share a VM and end one
//! by one, and the memory of each goes back to the host: with partitions, and the stock way.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benches::elastic::{Elastic, Guest, Monitor};
use benches::facts::Machine;
use benches::place::Place;
use benches::scene::{Functions, Release, Scene};
use benches::smaps;
use benches::table::Table;
use benches::unit::Unit;
use benches::way::Way;
use guest_tests::MIB;
use serde_json::{Map, Value};

/// Eight functions: what each does besides keeping its memory in use, as the guest's shell starts
/// it in the function's cgroup.
const FUNCTIONS: [(&str, &str); 8] = [
    ("web-1", "exec httpd -f -p 8001 -h /"),
    ("web-2", "exec httpd -f -p 8002 -h /"),
    ("zip-1", "while :; do gzip -c /bin/busybox > /dev/null; sleep 1; done"),
    ("data-1", "sleep 1000"),
    ("web-3", "exec httpd -f -p 8005 -h /"),
    ("zip-2", "while :; do gzip -c /bin/hog > /dev/null; sleep 1; done"),
    ("data-2", "sleep 1000"),
    ("data-3", "sleep 1000"),
];

/// Memory of a function.
const SIZE: u64 = 128 * MIB;

/// The end of a function.
struct End {
    release: Release,
    /// Memory that the monitor's process had before and has no more, in bytes.
    back: u64,
}

/// For one resize.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    benches::exit("demo", run())
}

fn run() -> Result<()> {
    let place = Place::new()?;
    let memctl = place.staged("MEMCTL_BIN")?;
    let base = Guest::staged(&place, 256 * MIB)?;
    one_vm(&place, &base, &memctl)?;
    let ours = functions(&place, &base, Way::Partition, Some(&memctl))?;
    let stock = functions(&place, &base, Way::Stock, None)?;
    title("Memory back on the host, function by function");
    print!("{}", table(&ours, &stock).to_text());
    println!("\n{}", picture(&ours, &stock));
    if Machine::read().lab {
        println!(
            "\nThis machine's KVM is emulated by software: compare times with each other only."
        );
    }
    Ok(())
}

/// Boots a VM, shows it, grows and shrinks it, and powers it off.
fn one_vm(place: &Place, base: &Guest, memctl: &Path) -> Result<()> {
    let guest = Guest { room: 1024 * MIB, ..base.clone() };
    let socket = place.socket();
    title("A VM is one JSON file");
    let start = Instant::now();
    let vm = Elastic::boot(Monitor::Tessera, &guest, &socket)?;
    let booted = start.elapsed();
    print!("{}", members(&std::fs::read_to_string(socket.with_extension("json"))?)?);
    println!("$ tessera --config vm.json --api-socket vm.sock");
    println!("{}", vm.console().text().lines().next().unwrap_or_default());
    println!("$ uname -sr; nproc; grep MemTotal /proc/meminfo");
    println!("{}", vm.shell("uname -sr; nproc; grep MemTotal /proc/meminfo")?);
    let own = smaps::memory_use(vm.pid(), guest.boot)?.own;
    println!("\nexec to a shell {:.0} ms; the monitor's own memory {}", ms(booted), bytes(own));

    title("It grows, and it shrinks");
    for size in [guest.boot + 512 * MIB, guest.boot] {
        let text = format!("{}M", size / MIB);
        vm.events()?.forget();
        let asked = Instant::now();
        run_memctl(memctl, &socket, &["resize-vm", "--memory", &text])?;
        vm.events()?.wait(LIMIT, |event| event["event"] == "resized")?;
        println!("  the guest has followed after {:.0} ms", ms(asked.elapsed()));
        run_memctl(memctl, &socket, &["ls"])?;
    }
    println!("$ poweroff -f\n  over after {:.0} ms", ms(vm.power_off()?));
    Ok(())
}

/// A JSON object with each of its members on a line, files without their folders.
fn members(object: &str) -> Result<String> {
    let mut object: Map<String, Value> = serde_json::from_str(object)?;
    for file in ["kernel", "initramfs"] {
        let name = object["payload"][file].as_str().and_then(|path| path.rsplit('/').next());
        let name = name.map(str::to_owned);
        object["payload"][file] = name.into();
    }
    let lines: Vec<_> =
        object.iter().map(|(name, value)| format!("  \"{name}\": {value}")).collect();
    Ok(format!("{{\n{}\n}}\n", lines.join(",\n")))
}

/// Eight functions in one VM, all of them at work, and the end of each.
fn functions(place: &Place, base: &Guest, way: Way, memctl: Option<&PathBuf>) -> Result<Vec<End>> {
    title(&format!("Eight functions in one VM: {}", way.name()));
    let socket = place.socket();
    let many = Functions::new(FUNCTIONS.len() as u64, SIZE);
    let scene = Scene::empty(way, base, many, &socket)?;
    for (number, (name, _)) in FUNCTIONS.iter().enumerate() {
        let took = scene.add(number as u64)?;
        println!("{name:>8} is to start: {} more after {:.1} ms", bytes(SIZE), ms(took));
    }
    let vm = scene.vm();
    vm.shell("ip link set lo up; echo hello > /index.html")?;
    let mut hogs = scene.start()?;
    for (number, (_, work)) in FUNCTIONS.iter().enumerate() {
        let enter = format!("echo 0 > /sys/fs/cgroup/fn{number}/cgroup.procs");
        vm.shell(&format!("(sh -c '{enter}; {work}' > /dev/null 2>&1 &)"))?;
    }
    let page =
        vm.shell("until wget -q -O - http://127.0.0.1:8005/index.html; do usleep 50000; done")?;
    ensure!(page == "hello", "web-3 answered {page:?}");
    let names: Vec<String> =
        FUNCTIONS.iter().enumerate().map(|(n, (name, _))| format!("fn{n} {name}")).collect();
    println!("{}: web servers answer, zips compress, all keep data", names.join(", "));
    if let Some(memctl) = memctl {
        run_memctl(memctl, &socket, &["ls"])?;
    }
    let mut ends = Vec::new();
    for (number, (name, _)) in FUNCTIONS.iter().enumerate() {
        scene.kill(&mut hogs, number as u64)?;
        let before = smaps::resident(vm.pid())?;
        let release = scene.release(number as u64)?;
        let back = before.saturating_sub(smaps::resident(vm.pid())?);
        let moved = release.migrated;
        ensure!(way != Way::Partition || moved == 0, "{moved} pages were moved for {name}'s");
        println!("{name:>8} has ended: {} back in {:.1} ms", bytes(back), ms(release.time));
        ends.push(End { release, back });
        hogs.check()?;
    }
    if let Some(memctl) = memctl {
        run_memctl(memctl, &socket, &["ls"])?;
    }
    Ok(ends)
}

fn table(ours: &[End], stock: &[End]) -> Table {
    let mut table = Table::new(&[
        "function",
        "partition",
        "pages moved",
        "back",
        "stock virtio-mem",
        "pages moved",
        "back",
    ]);
    let cells = |End { release, back }: &End| {
        let moved = Unit::Count.format(release.migrated as f64);
        [Unit::Seconds.format(release.time.as_secs_f64()), moved, bytes(*back)]
    };
    for ((name, _), (ours, stock)) in FUNCTIONS.iter().zip(ours.iter().zip(stock)) {
        table.row([(*name).to_owned()].into_iter().chain(cells(ours)).chain(cells(stock)));
    }
    table
}

/// All eight together, as two bars.
fn picture(ours: &[End], stock: &[End]) -> String {
    const WIDTH: f64 = 50.0;
    let sum = |ends: &[End]| -> f64 { ends.iter().map(|end| end.release.time.as_secs_f64()).sum() };
    let (ours, stock) = (sum(ours), sum(stock));
    let most = ours.max(stock).max(f64::MIN_POSITIVE);
    let bar = |name: &str, value: f64, colour: u8| {
        let eighths = (value / most * WIDTH * 8.0).round().max(1.0) as usize;
        let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
        let full = "█".repeat(eighths / 8);
        format!("{name:>16} \x1b[{colour}m{full}{part}\x1b[0m {}", Unit::Seconds.format(value))
    };
    format!(
        "{}\n{}\n{:>16} {:.0} times faster",
        bar("partitions", ours, 34),
        bar("stock virtio-mem", stock, 33),
        "",
        stock / ours.max(f64::MIN_POSITIVE)
    )
}

fn run_memctl(memctl: &Path, socket: &Path, arguments: &[&str]) -> Result<()> {
    println!("$ memctl {}", arguments.join(" "));
    let output = Command::new(memctl)
        .arg("--api-socket")
        .arg(socket)
        .args(arguments)
        .output()
        .context("cannot start memctl")?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "memctl {}: {error}", arguments.join(" "));
    Ok(())
}

fn title(text: &str) {
    println!("\n\x1b[1m── {text} {}\x1b[0m", "─".repeat(72_usize.saturating_sub(text.len())));
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn bytes(count: u64) -> String {
    Unit::Bytes.format(count as f64)
}
