//! What guest tests boot, and where it is.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// A file that tests need and do not make themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Artefact {
    /// The monitor, built for release.
    Tessera,
    /// The command that steers a VM's memory, built for release.
    Memctl,
    /// Our guest kernel as an ELF file.
    Vmlinux,
    /// Our guest kernel as a bzImage.
    BzImage,
    /// Busybox and a small init: a shell on the console.
    Initramfs,
    /// The same with the programs of `tests/guest`.
    ProgramsInitramfs,
    /// The self-test of partitions that our kernel patches bring.
    Selftest,
    /// A root file system with stock Debian, without a partition table.
    DebianImage,
    /// Debian's own cloud kernel.
    DebianKernel,
    /// The initial file system that goes with it.
    DebianInitrd,
}

impl Artefact {
    /// The environment variable that names the file.
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Tessera => "TESSERA_BIN",
            Self::Memctl => "MEMCTL_BIN",
            Self::Vmlinux => "TESSERA_VMLINUX",
            Self::BzImage => "TESSERA_BZIMAGE",
            Self::Initramfs => "TESSERA_INITRAMFS",
            Self::ProgramsInitramfs => "TESSERA_PROGRAMS_INITRAMFS",
            Self::Selftest => "TESSERA_SELFTEST",
            Self::DebianImage => "TESSERA_DEBIAN_IMAGE",
            Self::DebianKernel => "TESSERA_DEBIAN_KERNEL",
            Self::DebianInitrd => "TESSERA_DEBIAN_INITRD",
        }
    }

    /// Where the file is.
    ///
    /// # Errors
    /// Nobody said, or it is not there: a test without its guest fails, it is never skipped.
    pub fn path(self) -> Result<PathBuf> {
        let variable = self.variable();
        let path = std::env::var_os(variable).map(PathBuf::from).with_context(|| {
            format!(
                "{variable} is not set. Guest tests need a KVM that runs Linux, guest kernels and \
                 disk images: run them with `cargo xtask test`, which provides all of these"
            )
        })?;
        // A file, or the block device of a scratch copy.
        ensure!(path.exists(), "{variable} names {}, which is not there", path.display());
        Ok(path)
    }
}
