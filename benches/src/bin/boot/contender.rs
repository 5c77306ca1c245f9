//! The monitors that are compared, and the command line each one is given.
//!
//! What is the same for all: kernel, initial file system, memory, vCPUs, one serial port on the
//! standard output, one virtio entropy device (which Tessera always has, as Cloud Hypervisor does),
//! no default device, the host's CPU model, the kernel's command line. What differs is each
//! machine's own: QEMU's `microvm` gets every switch that its manual names for a fast boot, and the
//! two that this measurement needs. `isa-serial=on`: with a quiet kernel the serial port is faster
//! than a virtio console, whose driver starts late and takes the log over. `acpi=on`: a guest
//! without MP tables finds its interrupt controller through ACPI only, and powers off through it,
//! which ends the process at once. `q35` is the machine as it comes, less its default devices.

use std::path::{Path, PathBuf};

/// A monitor, with the machine it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    Tessera,
    QemuMicrovm,
    QemuQ35,
}

/// The guest that all of them boot.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) vmlinux: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) memory_bytes: u64,
    pub(crate) vcpus: u32,
}

/// What the guest does once its init runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// It powers off at once.
    PowerOff,
    /// It waits at a shell prompt.
    Idle,
}

/// What init writes when it starts.
pub(crate) const INIT_MARKER: &str = "tessera-init:";

/// The prompt of an idle guest.
pub(crate) const PROMPT: &str = "tessera# ";

impl Contender {
    /// All, in the order they run and are shown: the first is ours.
    pub(crate) const ALL: [Contender; 3] =
        [Contender::Tessera, Contender::QemuMicrovm, Contender::QemuQ35];

    /// What tables and figures call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Contender::Tessera => "Tessera",
            Contender::QemuMicrovm => "QEMU microvm",
            Contender::QemuQ35 => "QEMU q35",
        }
    }

    /// Program and arguments. `tessera` is our binary; a `socket` is where the monitor is to be
    /// controlled, and is given for idle guests only.
    pub(crate) fn command(
        self,
        guest: &Guest,
        task: Task,
        tessera: &Path,
        socket: Option<&Path>,
    ) -> Vec<String> {
        let mut words = match self {
            Contender::Tessera => tessera_command(guest, tessera),
            Contender::QemuMicrovm => qemu_command(
                guest,
                "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,acpi=on",
                "virtio-rng-device",
            ),
            Contender::QemuQ35 => qemu_command(guest, "q35", "virtio-rng-pci"),
        };
        let append = if self == Contender::Tessera { "--cmdline" } else { "-append" };
        words.extend([append.to_owned(), kernel_command_line(task)]);
        if let Some(socket) = socket {
            words.extend(self.socket_arguments(socket));
        }
        words
    }

    fn socket_arguments(self, socket: &Path) -> [String; 2] {
        let path = socket.display();
        match self {
            Contender::Tessera => ["--api-socket".to_owned(), format!("path={path}")],
            _ => ["-qmp".to_owned(), format!("unix:{path},server=on,wait=off")],
        }
    }
}

fn kernel_command_line(task: Task) -> String {
    let run = match task {
        Task::PowerOff => "poweroff",
        Task::Idle => "shell",
    };
    format!("console=ttyS0 quiet panic=-1 tessera.run={run}")
}

fn tessera_command(guest: &Guest, tessera: &Path) -> Vec<String> {
    let mut words = vec![tessera.display().to_string()];
    words.extend(["--kernel".to_owned(), guest.vmlinux.display().to_string()]);
    words.extend(["--initramfs".to_owned(), guest.initramfs.display().to_string()]);
    words.extend(["--cpus".to_owned(), format!("boot={}", guest.vcpus)]);
    words.extend(["--memory".to_owned(), format!("size={}M", guest.memory_bytes >> 20)]);
    words.extend(["--serial", "tty", "--console", "off"].map(str::to_owned));
    words
}

fn qemu_command(guest: &Guest, machine: &str, entropy: &str) -> Vec<String> {
    let mut words = vec!["qemu-system-x86_64".to_owned()];
    words.extend(["-machine".to_owned(), machine.to_owned()]);
    words.extend(["-accel", "kvm", "-cpu", "host"].map(str::to_owned));
    words.extend(["-m".to_owned(), format!("{}M", guest.memory_bytes >> 20)]);
    words.extend(["-smp".to_owned(), guest.vcpus.to_string()]);
    words.extend(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"].map(str::to_owned));
    words.extend(["-serial", "stdio", "-device", entropy].map(str::to_owned));
    words.extend(["-kernel".to_owned(), guest.vmlinux.display().to_string()]);
    words.extend(["-initrd".to_owned(), guest.initramfs.display().to_string()]);
    words
}

/// The command for readers: file names without folders, words with blanks in quotes.
pub(crate) fn shown(command: &[String]) -> String {
    let words = command.iter().map(|word| {
        let word =
            if word.starts_with('/') { word.rsplit('/').next().unwrap_or(word) } else { word };
        if word.contains(' ') { format!("'{word}'") } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(contender: Contender, task: Task, socket: Option<&Path>) -> Vec<String> {
        let guest = Guest {
            vmlinux: "/a/vmlinux".into(),
            initramfs: "/b/initramfs".into(),
            memory_bytes: 128 << 20,
            vcpus: 4,
        };
        contender.command(&guest, task, Path::new("/c/tessera"), socket)
    }

    #[test]
    fn all_guests_get_the_same_kernel_command_line() {
        for contender in Contender::ALL {
            let words = command(contender, Task::PowerOff, None);
            let line = "console=ttyS0 quiet panic=-1 tessera.run=poweroff";
            assert_eq!(words.last().unwrap(), line);
        }
    }

    #[test]
    fn a_shown_command_names_no_folder() {
        let text = shown(&command(Contender::Tessera, Task::Idle, None));
        assert_eq!(
            text,
            "tessera --kernel vmlinux --initramfs initramfs --cpus boot=4 --memory size=128M \
             --serial tty --console off --cmdline 'console=ttyS0 quiet panic=-1 tessera.run=shell'"
        );
    }

    #[test]
    fn only_idle_guests_have_a_control_socket() {
        for contender in Contender::ALL {
            let has = |words: Vec<String>| words.iter().any(|word| word.contains("/run/x"));
            assert!(!has(command(contender, Task::Idle, None)));
            assert!(has(command(contender, Task::Idle, Some(Path::new("/run/x")))));
        }
    }
}
