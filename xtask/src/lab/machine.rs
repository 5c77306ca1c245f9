//! The lab machine: QEMU's software emulation of a CPU with SVM, one job per machine.
//!
//! One vCPU: with several emulation threads the lab's kernel was seen to die of a stale `int3`
//! while KVM patched a static key. The second core of the host serves a second machine.
//! No XSAVE, and nothing that depends on it: the emulated SVM does not intercept XSETBV, so KVM
//! would save and restore guests with an XCR0 other than theirs, and each guest kernel starts with
//! a warning about it.
//!
//! **Heartbeat.** QEMU's SVM clears a bit of the vCPU's pending interrupts without a lock when a
//! guest exits. An interrupt that its main thread raises in that moment is lost: it stands in the
//! local APIC and nobody looks. If it was the timer's, the machine sleeps for ever, as no other
//! will come. Any later interrupt has QEMU look again, so xtask sends one, twenty times a second: a
//! byte to a serial port that a process in the machine reads.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Cpu;
use super::image;
use super::job::Job;
use super::output::{Sinks, watch};
use crate::cache::Cache;
use crate::process::last_lines;
use crate::stock_kernel::{self, StockKernel};

const META_PACKAGE: &str = "linux-image-6.12-amd64";

/// What TCG emulates, less what it emulates badly. Its SVM does not intercept XSETBV, so nothing
/// that needs XSAVE; and a `rep stosb` is a loop of byte stores, each of which looks for translated
/// code to throw away, so clearing a page that once held a guest's kernel took 100 times as long as
/// clearing any other.
const CPU: &str = "max,-xsave,-avx,-avx2,-fma,-f16c,-vaes,-pku,-mpx,-erms,-fsrm";

/// How long an interrupt that QEMU has lost stays so, at most.
const HEARTBEAT: Duration = Duration::from_millis(50);

/// How much of the machine's console an error shows.
const CONSOLE_LINES: usize = 40;

/// Mitigations and cleared pages would cost time and protect nothing: the lab is thrown away.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet tsc=reliable mitigations=off \
                            init_on_alloc=0 random.trust_cpu=on";

/// The lab machine, ready to run jobs; several may run side by side.
#[derive(Clone)]
pub(crate) struct Machine {
    kernel: PathBuf,
    modules: PathBuf,
    initrd: PathBuf,
    memory_gib: u32,
    cpu: Cpu,
    timeout: Duration,
}

impl Machine {
    /// Finds the machine's kernel and initial file system in the cache, or builds them.
    pub(crate) fn ensure(cache: &Cache) -> Result<Self> {
        let kernel: StockKernel = stock_kernel::ensure(cache, META_PACKAGE)?;
        let initrd = image::ensure(cache, &kernel)?;
        Ok(Self {
            modules: kernel.root.join("lib/modules"),
            kernel: kernel.vmlinux,
            initrd,
            memory_gib: 8,
            cpu: Cpu { cpus: 1, icount: false },
            timeout: Duration::from_secs(30 * 60),
        })
    }

    /// Sets the memory of the machine, in GiB.
    pub(crate) fn with_memory(mut self, gib: u32) -> Self {
        self.memory_gib = gib;
        self
    }

    /// Sets its CPU.
    pub(crate) fn with_cpu(mut self, cpu: Cpu) -> Self {
        self.cpu = cpu;
        self
    }

    /// Sets the time after which a job is given up.
    pub(crate) fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs one job in a machine of its own and gives its status. A machine that dies or hangs is
    /// an error with the end of its console.
    pub(crate) fn run(&self, job: &Job, sinks: Sinks) -> Result<u8> {
        let folder = tempfile::Builder::new().prefix("tessera-lab-").tempdir()?;
        fs::write(folder.path().join("job"), job.script()?)?;
        fs::write(folder.path().join("prepare"), prepare_script(job, &self.modules))?;
        let console = folder.path().join("console");
        let mut command = self.qemu(job, folder.path(), &console);
        let mut child = command.spawn().context("cannot start qemu-system-x86_64")?;
        if let Some(port) = child.stdin.take() {
            thread::spawn(move || beat(port));
        }
        let in_time = watch(&mut child, sinks, self.timeout)?.is_some();
        let status = fs::read_to_string(folder.path().join("status")).unwrap_or_default();
        match status.trim().parse() {
            Ok(status) if in_time => Ok(status),
            _ => bail!(self.failure(job, in_time, &console)),
        }
    }

    fn failure(&self, job: &Job, in_time: bool, console: &Path) -> String {
        let what = if in_time {
            "died".to_owned()
        } else {
            format!("was ended after {} minutes", self.timeout.as_secs() / 60)
        };
        let bytes = fs::read(console).unwrap_or_default();
        let lines = last_lines(&String::from_utf8_lossy(&bytes), CONSOLE_LINES);
        format!(
            "the lab machine {what} while it ran {}; its console ends with:\n{lines}",
            job.name()
        )
    }

    /// The machine ends with xtask, however that ends: `setpriv` asks the kernel for it.
    fn qemu(&self, job: &Job, folder: &Path, console: &Path) -> Command {
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-machine", "q35,accel=tcg", "-cpu", CPU])
            .args(["-smp", &self.cpu.cpus.to_string()])
            .args(["-m", &format!("{}G", self.memory_gib)])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .args(["-append", COMMAND_LINE])
            .args(["-serial", &format!("file:{}", console.display())]);
        if self.cpu.icount {
            qemu.args(["-icount", "shift=0"]);
        }
        folder_device(&mut qemu, "host", Path::new("/"), true);
        folder_device(&mut qemu, "job", folder, false);
        for (index, share) in job.shares.iter().enumerate() {
            folder_device(&mut qemu, &share_tag(index), share, false);
        }
        for (index, image) in job.disk_images().enumerate() {
            disk_device(&mut qemu, index, image);
        }
        qemu.args(["-device", "virtio-serial-pci"]);
        if job.tty {
            qemu.args(["-chardev", "stdio,id=tty,signal=off"])
                .args(["-device", "virtconsole,chardev=tty"]);
        } else {
            port_device(&mut qemu, "out", "file,path=/dev/fd/1", 1);
            port_device(&mut qemu, "err", "file,path=/dev/fd/2", 2);
            port_device(&mut qemu, "beat", "stdio,signal=off", 3);
            qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        qemu
    }
}

/// A folder of the host for the machine to mount under `tag`.
fn folder_device(qemu: &mut Command, tag: &str, path: &Path, read_only: bool) {
    let mode = if read_only { ",readonly=on" } else { "" };
    let path = escaped(path);
    qemu.arg("-fsdev")
        .arg(format!("local,id={tag},security_model=none,multidevs=remap{mode},path={path}"))
        .args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
}

/// A disk whose writes go to a file that QEMU deletes at its end.
fn disk_device(qemu: &mut Command, index: usize, image: &Path) {
    let path = escaped(image);
    qemu.arg("-drive")
        .arg(format!("if=none,id=disk{index},format=raw,snapshot=on,cache=unsafe,file={path}"))
        .args(["-device", &format!("virtio-blk-pci,drive=disk{index}")]);
}

/// A comma ends an option of QEMU; two stand for one.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A byte channel of the machine, whose other end is one of QEMU's `-chardev`s: pipes to xtask.
fn port_device(qemu: &mut Command, name: &str, chardev: &str, number: u32) {
    qemu.args(["-chardev", &format!("{chardev},id={name}")])
        .args(["-device", &format!("virtserialport,chardev={name},nr={number}")]);
}

/// Has the machine interrupted until it is gone.
fn beat(mut port: ChildStdin) {
    while port.write_all(b".").is_ok() {
        thread::sleep(HEARTBEAT);
    }
}

fn share_tag(index: usize) -> String {
    format!("share{index}")
}

/// What init does before the job, beyond what is the same for all jobs.
fn prepare_script(job: &Job, modules: &Path) -> String {
    let mut script = String::new();
    for (kind, target) in [
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("hugetlbfs", "/dev/hugepages"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        script.push_str(&format!(
            "mkdir -p /new{target} 2> /dev/null\nmount -t {kind} {kind} /new{target}\n"
        ));
    }
    for (index, share) in job.shares.iter().enumerate() {
        let (tag, path) = (share_tag(index), share.display());
        script.push_str(&format!("mount -t 9p -o \"$p9\" {tag} \"/new{path}\"\n"));
    }
    script.push_str(&format!(
        "mkdir -p /new/lib/modules\nmount -o bind \"/new{}\" /new/lib/modules\n",
        modules.display()
    ));
    script.push_str("ip link set lo up\n");
    script.push_str(if job.tty {
        "in=/new/dev/hvc0 out=/new/dev/hvc0 err=/new/dev/hvc0 with='setsid -c'\n"
    } else {
        // The number of the ports' device depends on the other devices.
        "set -- /new/dev/vport*p*\nin=/new/dev/null out=$1 err=$2 with=\ncat $3 > /dev/null &\n"
    });
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_shared_path_stays_part_of_it() {
        let mut command = Command::new("qemu");
        folder_device(&mut command, "share0", Path::new("/a,b"), true);
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        assert!(args[1].ends_with(",readonly=on,path=/a,,b"), "{args:?}");
    }

    #[test]
    fn each_share_is_mounted_at_its_own_path() {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("results");
        let job = Job::new(vec!["true".into()]).unwrap().with_shares(vec![share.clone()]).unwrap();
        let script = prepare_script(&job, Path::new("/cache/lib/modules"));
        let line = format!("mount -t 9p -o \"$p9\" share0 \"/new{}\"\n", share.display());
        assert!(script.contains(&line), "{script}");
    }
}
