//! What a VM is to be: the JSON that `--config` and `vm.create` take.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::artefact::Artefact;

/// Bytes of a mebibyte.
pub const MIB: u64 = 1 << 20;
/// Bytes of a gibibyte.
pub const GIB: u64 = 1 << 30;

/// What the command lines of our guests begin with: only errors on the console.
const CMDLINE: &str = "console=ttyS0 quiet";

/// The description of a VM: one vCPU, 128 MiB, a shell on the serial port, and the serial port on
/// the monitor's standard streams.
#[derive(Clone, Debug)]
pub struct Config(Value);

impl Config {
    /// Our kernel as an ELF file.
    ///
    /// # Errors
    /// An artefact is missing.
    pub fn vmlinux() -> Result<Self> {
        Self::linux(&Artefact::Vmlinux.path()?, &Artefact::Initramfs.path()?, CMDLINE)
    }

    /// Our kernel as a bzImage.
    ///
    /// # Errors
    /// An artefact is missing.
    pub fn bzimage() -> Result<Self> {
        Self::linux(&Artefact::BzImage.path()?, &Artefact::Initramfs.path()?, CMDLINE)
    }

    /// Debian with its own kernel, from `image`, which it writes to.
    ///
    /// # Errors
    /// An artefact is missing.
    pub fn debian(image: &Path) -> Result<Self> {
        let (kernel, initrd) = (Artefact::DebianKernel.path()?, Artefact::DebianInitrd.path()?);
        let config = Self::linux(&kernel, &initrd, "console=ttyS0 root=/dev/vda rw")?;
        Ok(config.memory(512 * MIB).disk(json!({ "path": image })))
    }

    fn linux(kernel: &Path, initramfs: &Path, cmdline: &str) -> Result<Self> {
        Ok(Self(json!({
            "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
            "memory": { "size": 128 * MIB },
            "payload": { "kernel": kernel, "initramfs": initramfs, "cmdline": cmdline },
            "serial": { "mode": "Tty" },
            "console": { "mode": "Off" },
            "disks": [],
        })))
    }

    /// With the programs of `tests/guest` in the guest's `/bin`.
    ///
    /// # Errors
    /// An artefact is missing.
    pub fn with_programs(self) -> Result<Self> {
        let initramfs = Artefact::ProgramsInitramfs.path()?;
        Ok(self.set("payload.initramfs", initramfs.display().to_string()))
    }

    /// So many vCPUs.
    #[must_use]
    pub fn vcpus(self, count: u32) -> Self {
        self.set("cpus", json!({ "boot_vcpus": count, "max_vcpus": count }))
    }

    /// So much memory, in bytes.
    #[must_use]
    pub fn memory(self, size: u64) -> Self {
        self.set("memory.size", size)
    }

    /// The same, which the host gives before the guest runs: after that, what the guest has of the
    /// host changes with what is hotplugged only. That is filled as the first zone is, so the first
    /// block is not.
    #[must_use]
    pub fn filled_memory(self, size: u64) -> Self {
        let first = json!({ "id": "first", "size": 2 * MIB });
        let filled = json!({ "id": "filled", "size": size - 2 * MIB, "prefault": true });
        self.memory(0).set("memory.zones", json!([first, filled]))
    }

    /// More words on the kernel's command line.
    #[must_use]
    pub fn cmdline(self, words: &str) -> Self {
        let present = self.0["payload"]["cmdline"].as_str().unwrap_or_default();
        let cmdline = format!("{present} {words}");
        self.set("payload.cmdline", cmdline)
    }

    /// One more disk.
    #[must_use]
    pub fn disk(mut self, disk: Value) -> Self {
        if let Some(disks) = self.0["disks"].as_array_mut() {
            disks.push(disk);
        }
        self
    }

    /// Any other field, by its JSON path: `memory.shared`.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let field = path.split('.').fold(&mut self.0, |value, name| &mut value[name]);
        *field = value.into();
        self
    }

    /// The JSON.
    pub fn json(&self) -> &Value {
        &self.0
    }

    /// Writes the JSON to a file.
    ///
    /// # Errors
    /// The host refused.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        std::fs::write(path, format!("{:#}\n", self.0))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
