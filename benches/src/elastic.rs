//! Guests whose memory comes and goes, under Tessera and under QEMU, behind one interface.
//!
//! What is the same for both: kernel, initial file system, memory at boot, room for more, block
//! size (2 MiB), vCPUs, one serial port, the kernel's command line.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_tests::{Connection, Console, MIB, Reply};
use serde_json::{Value, json};

use crate::events::Events;
use crate::facts::kernel_release;
use crate::place::Place;
use crate::qmp::Qmp;

/// Between two looks at a guest's memory.
///
/// Only QEMU's is looked at, over a connection that stays open: its own event for it comes at most
/// once a second. Tessera tells by an event.
const PERIOD: Duration = Duration::from_millis(10);

/// Between two looks at a partition that the guest has and can't use yet.
const LOOK: Duration = Duration::from_millis(1);

/// Huge pages as Linux has them by default, but where it starts with less than 512 MiB: there it
/// switches off all there is to them.
const HUGE_PAGES: &str = "cd /sys/kernel/mm/transparent_hugepage; echo always > enabled; \
                          echo madvise > defrag; echo 1 > khugepaged/defrag; \
                          echo 1 > use_zero_page; cd /";

/// Lines that are shown of a guest that does not do what it should.
const SHOWN: usize = 40;

/// Which program runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// This project's.
    Tessera,
    /// Debian's, machine `q35`.
    Qemu,
}

/// What is booted. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The monitor of this project.
    pub tessera: PathBuf,
    /// The kernel.
    pub vmlinux: PathBuf,
    /// The initial file system.
    pub initramfs: PathBuf,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory at boot.
    pub boot: u64,
    /// The most that can come later.
    pub room: u64,
    /// More words on the kernel's command line.
    pub cmdline: String,
    /// More fields of Tessera's `memory`, over the others.
    pub memory: Value,
    /// A balloon, for QEMU.
    pub balloon: bool,
}

/// How long the guest's driver took for a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// All of it.
    pub total: Duration,
    /// The part in which it waited for the device to answer.
    pub request: Duration,
}

impl Timing {
    /// The guest's own part.
    pub fn guest(&self) -> Duration {
        self.total.saturating_sub(self.request)
    }

    /// Reads pairs of names and numbers.
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let nanos = |name| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.parse().ok().map(Duration::from_nanos)
        };
        Some(Self { total: nanos("total_ns")?, request: nanos("request_ns")? })
    }
}

impl Guest {
    /// One vCPU, `boot` bytes of memory and no room for more, with the files that `cargo xtask`
    /// names, staged in `place`.
    ///
    /// # Errors
    /// One of them is missing.
    pub fn staged(place: &Place, boot: u64) -> Result<Self> {
        Ok(Self {
            tessera: place.staged("TESSERA_BIN")?,
            vmlinux: place.staged("TESSERA_VMLINUX")?,
            initramfs: place.staged("TESSERA_PROGRAMS_INITRAMFS")?,
            vcpus: 1,
            boot,
            room: 0,
            cmdline: String::new(),
            memory: Value::Null,
            balloon: false,
        })
    }

    /// The release of its kernel.
    ///
    /// # Errors
    /// The kernel can't be read.
    pub fn kernel_release(&self) -> Result<String> {
        kernel_release(&self.vmlinux)
    }
}

enum Control {
    Api(RefCell<Client>, Events),
    Qmp(RefCell<Qmp>),
}

/// One connection for all, as a platform has.
struct Client {
    connection: Connection,
    socket: PathBuf,
}

impl Client {
    fn open(socket: &Path) -> Result<Self> {
        Ok(Self { connection: Connection::open(socket)?, socket: socket.to_owned() })
    }

    fn call(&mut self, method: &str, route: &str, body: Option<&str>) -> Result<Reply> {
        // The monitor hangs up on who has said nothing for a minute.
        if self.connection.request(method, route, body).is_err() {
            self.connection = Connection::open(&self.socket)?;
            self.connection.request(method, route, body)?;
        }
        self.connection.reply().with_context(|| format!("{method} {route}"))
    }
}

/// `sizes`, but starting with another one in each `round`: none is always the first in its guest.
pub fn turned(sizes: &[u64], round: u32) -> Vec<u64> {
    let mut turned = sizes.to_vec();
    turned.rotate_left(round as usize % sizes.len());
    turned
}

/// Looks until the guest has `size` bytes; the time since `start`.
fn wait(
    start: Instant,
    size: u64,
    limit: Duration,
    mut look: impl FnMut() -> Result<u64>,
) -> Result<Duration> {
    let mut has = look()?;
    while has != size {
        if start.elapsed() > limit {
            bail!("the guest has {has} bytes, not {size}, after {} s", limit.as_secs());
        }
        thread::sleep(PERIOD);
        has = look()?;
    }
    Ok(start.elapsed())
}

/// A process that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running guest at its shell. Killed when dropped.
pub struct Elastic {
    child: Running,
    console: Console,
    control: Control,
}

impl Elastic {
    /// Boots `guest` and waits for its shell. `socket` is where the monitor is controlled.
    ///
    /// # Errors
    /// The monitor does not start, or the guest does not get that far.
    pub fn boot(monitor: Monitor, guest: &Guest, socket: &Path) -> Result<Self> {
        let mut command = match monitor {
            Monitor::Tessera => tessera(guest, socket),
            Monitor::Qemu => qemu(guest, socket),
        };
        let events = match monitor {
            Monitor::Tessera => Some(Events::of(&mut command)?),
            Monitor::Qemu => None,
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = Running(command.spawn().context("cannot start the monitor")?);
        let (output, input) = (child.0.stdout.take(), child.0.stdin.take());
        let console = Console::new(output.context("no pipe")?, input.context("no pipe")?)?.quiet();
        console.wait_for_shell().inspect_err(|_| eprintln!("{}", console.text()))?;
        let control = match events {
            Some((events, _writer)) => Control::Api(RefCell::new(Client::open(socket)?), events),
            None => Control::Qmp(RefCell::new(Qmp::connect(socket)?)),
        };
        let this = Self { child, console, control };
        this.shell("mount -t cgroup2 cgroup2 /sys/fs/cgroup")?;
        this.shell(HUGE_PAGES)?;
        // Hogs that together want all there is must not be refused ahead of time.
        this.shell("echo 1 > /proc/sys/vm/overcommit_memory")?;
        Ok(this)
    }

    /// Runs a command in the guest's shell and returns what it printed.
    ///
    /// # Errors
    /// It fails, or the guest hangs.
    pub fn shell(&self, command: &str) -> Result<String> {
        self.console.shell(command).inspect_err(|_| {
            let text = self.console.text();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(SHOWN)..].join("\n"));
        })
    }

    /// The guest's console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// The monitor's process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Sends a GET to Tessera's API.
    ///
    /// # Errors
    /// No answer, or it is another monitor.
    pub fn get(&self, route: &str) -> Result<Reply> {
        self.call("GET", route, None)
    }

    /// Sends a PUT to Tessera's API.
    ///
    /// # Errors
    /// As [`Elastic::get`].
    pub fn put(&self, route: &str, body: &Value) -> Result<Reply> {
        self.call("PUT", route, Some(&body.to_string()))
    }

    fn call(&self, method: &str, route: &str, body: Option<&str>) -> Result<Reply> {
        match &self.control {
            Control::Api(client, _) => client.borrow_mut().call(method, route, body),
            Control::Qmp(_) => bail!("QEMU has no such API"),
        }
    }

    /// Gives the guest a partition with this policy for its `release`, and waits until it can be used;
    /// the time that took.
    ///
    /// # Errors
    /// The monitor refuses, or the guest does not take it within `limit`.
    pub fn add_partition(
        &self,
        id: &str,
        size: u64,
        release: &str,
        limit: Duration,
    ) -> Result<Duration> {
        let events = self.events()?;
        events.forget();
        let body = json!({ "id": id, "size": size, "release": release });
        let start = Instant::now();
        self.put("vm.add-partition", &body)?.expect(200)?;
        let plugged = |event: &Value| {
            let what = &event["properties"];
            event["source"] == "partition" && what["id"] == id && what["state"] == "plugged"
        };
        events.wait(limit, plugged).with_context(|| format!("partition {id}"))?;
        // The guest has it, and tells what is in use of it once it can be used. A node's does not.
        while self.partition(id)?.is_some_and(|one| one["node"].is_null() && one["used"].is_null())
        {
            ensure!(start.elapsed() < limit, "partition {id} can't be used");
            thread::sleep(LOOK);
        }
        Ok(start.elapsed())
    }

    /// What the monitor says of a partition, if there is one.
    fn partition(&self, id: &str) -> Result<Option<Value>> {
        let list = self.get("vm.partitions")?.expect(200)?.body;
        Ok(list.as_array().into_iter().flatten().find(|one| one["id"] == id).cloned())
    }

    /// The guest's NUMA node that a partition is, where each is one.
    ///
    /// # Errors
    /// There is no such partition, or it is none.
    pub fn partition_node(&self, id: &str) -> Result<u64> {
        let found = self.partition(id)?.and_then(|one| one["node"].as_u64());
        found.with_context(|| format!("no node for {id}"))
    }

    /// What the guest's driver says of its last plug (`last_plug`) or release (`last_release`) of a
    /// partition.
    ///
    /// # Errors
    /// The guest has no partitions.
    pub fn partition_timing(&self, file: &str) -> Result<Timing> {
        let text = self.shell(&format!("cat /sys/bus/virtio/devices/*/partitions/{file}"))?;
        Timing::parse(&text).with_context(|| format!("{file} holds {text:?}"))
    }

    /// Powers the guest off from its shell and waits for the monitor to end; how long that took.
    ///
    /// # Errors
    /// It did not end well.
    pub fn power_off(mut self) -> Result<Duration> {
        let start = Instant::now();
        self.console.send("poweroff -f\n")?;
        let status = self.child.0.wait()?;
        ensure!(status.success(), "the monitor ended with {status}");
        Ok(start.elapsed())
    }

    /// Tessera's events.
    ///
    /// # Errors
    /// It is another monitor.
    pub fn events(&self) -> Result<&Events> {
        match &self.control {
            Control::Api(_, events) => Ok(events),
            Control::Qmp(_) => bail!("QEMU has no such events"),
        }
    }

    /// Wants the guest to have `size` bytes more than at boot through virtio-mem, and waits until
    /// it has; the time that took.
    ///
    /// # Errors
    /// The monitor refuses, or the guest does not get there within `limit`.
    pub fn reach(&self, guest: &Guest, size: u64, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        match &self.control {
            Control::Api(_, events) => {
                events.forget();
                let body = json!({ "desired_ram": guest.boot + size });
                self.put("vm.resize", &body)?.expect(204)?;
                let done =
                    |event: &Value| event["source"] == "memory" && event["event"] == "resized";
                events.wait(limit, done)?;
                Ok(start.elapsed())
            }
            Control::Qmp(qmp) => {
                let mut qmp = qmp.borrow_mut();
                let wish = json!({ "path": "mem", "property": "requested-size", "value": size });
                qmp.execute("qom-set", wish)?;
                wait(start, size, limit, || {
                    let question = json!({ "path": "mem", "property": "size" });
                    qmp.execute("qom-get", question)?.as_u64().context("no size")
                })
            }
        }
    }

    /// Wants the guest to have `size` bytes in all through QEMU's balloon and waits until it has;
    /// the time that took.
    ///
    /// # Errors
    /// There is no balloon, or the guest does not get there within `limit`.
    pub fn balloon(&self, size: u64, limit: Duration) -> Result<Duration> {
        let Control::Qmp(qmp) = &self.control else { bail!("Tessera has no balloon") };
        let start = Instant::now();
        qmp.borrow_mut().execute("balloon", json!({ "value": size }))?;
        wait(start, size, limit, || {
            let answer = qmp.borrow_mut().execute("query-balloon", json!({}))?;
            answer["actual"].as_u64().context("no size")
        })
    }
}

fn kernel_command_line(guest: &Guest) -> String {
    format!("console=ttyS0 quiet panic=-1 memhp_default_state=online_movable {}", guest.cmdline)
}

fn tessera(guest: &Guest, socket: &Path) -> Command {
    let mut memory = json!({
        "size": guest.boot,
        "hotplug_method": "VirtioMem",
        "hotplug_size": guest.room,
    });
    if let (Some(fields), Some(more)) = (memory.as_object_mut(), guest.memory.as_object()) {
        fields.extend(more.clone());
    }
    let config = json!({
        "cpus": { "boot_vcpus": guest.vcpus, "max_vcpus": guest.vcpus },
        "memory": memory,
        "payload": {
            "kernel": guest.vmlinux,
            "initramfs": guest.initramfs,
            "cmdline": kernel_command_line(guest),
        },
        "serial": { "mode": "Tty" },
        "console": { "mode": "Off" },
    });
    let mut command = Command::new(&guest.tessera);
    command.arg("--api-socket").arg(socket);
    let file = socket.with_extension("json");
    // What can't be written can't be read: the monitor will say so.
    let _ = fs::write(&file, config.to_string());
    command.arg("--config").arg(file);
    command
}

fn qemu(guest: &Guest, socket: &Path) -> Command {
    let mib = |bytes: u64| bytes / MIB;
    let most = mib(guest.boot + guest.room) + 1024;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-machine", "q35", "-accel", "kvm", "-cpu", "host"])
        // Else its vCPUs' threads have the name of all others.
        .args(["-name", "guest,debug-threads=on"])
        .args(["-m", &format!("{}M,maxmem={most}M", mib(guest.boot))])
        .args(["-smp", &guest.vcpus.to_string()])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"])
        .args(["-device", "virtio-rng-pci"])
        .arg("-object")
        .arg(format!("memory-backend-ram,id=hot,size={}M,reserve=off", mib(guest.room)))
        .args(["-device", "virtio-mem-pci,id=mem,memdev=hot,requested-size=0,block-size=2M"])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()));
    if guest.balloon {
        command.args(["-device", "virtio-balloon-pci"]);
    }
    command.arg("-kernel").arg(&guest.vmlinux).arg("-initrd").arg(&guest.initramfs);
    command.arg("-append").arg(kernel_command_line(guest));
    command
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn qemu_is_to_name_the_threads_that_run_the_guest() {
        let guest = Guest {
            tessera: PathBuf::new(),
            vmlinux: PathBuf::new(),
            initramfs: PathBuf::new(),
            vcpus: 1,
            boot: 512 * MIB,
            room: 0,
            cmdline: String::new(),
            memory: Value::Null,
            balloon: false,
        };
        let command = qemu(&guest, Path::new("socket"));
        assert!(command.get_args().any(|word| word == "guest,debug-threads=on"));
    }

    #[test]
    fn a_client_that_was_hung_up_on_calls_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut client = Client::open(&socket).unwrap();
        drop(listener.accept().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            stream.write_all(b"HTTP/1.1 204\r\n\r\n").unwrap();
        });
        client.call("GET", "vmm.ping", None).unwrap().expect(204).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn the_guests_part_is_what_the_request_did_not_take() {
        let text = "id 7 cookie 9 bytes 4096 wait_ns 1 total_ns 5000 request_ns 3500 memmap_ns 0";
        assert_eq!(Timing::parse(text).unwrap().guest(), Duration::from_nanos(1500));
        assert_eq!(Timing::parse("id 7 total_ns 5000"), None);
    }
}
