//! What guest tests, the demo and the benches boot, and how they are told where it is.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::Cache;
use crate::kernel::{self, Kernel};
use crate::rootfs::{self, DebianGuest};
use crate::{guest_programs, initramfs, lab, selftest};

/// The variable that names the disk of the Debian guest.
const IMAGE: &str = "TESSERA_DEBIAN_IMAGE";

/// Guest artefacts, whole and in the cache.
pub(crate) struct Artefacts {
    kernel: Kernel,
    initramfs: PathBuf,
    guest_programs: PathBuf,
    selftest: PathBuf,
    debian: Option<DebianGuest>,
}

impl Artefacts {
    /// Finds each one in the cache, or builds it.
    pub(crate) fn ensure(cache: &Cache) -> Result<Self> {
        Ok(Self { debian: Some(rootfs::ensure(cache)?), ..Self::ensure_ours(cache)? })
    }

    /// The same without the Debian guest.
    pub(crate) fn ensure_ours(cache: &Cache) -> Result<Self> {
        Ok(Self {
            kernel: kernel::ensure(cache)?,
            initramfs: initramfs::ensure(cache)?,
            guest_programs: guest_programs::ensure(cache)?,
            selftest: selftest::ensure(cache)?,
            debian: None,
        })
    }

    /// The environment variables that name them.
    pub(crate) fn variables(&self) -> Vec<(&'static str, &Path)> {
        let mut variables = vec![
            ("TESSERA_VMLINUX", self.kernel.vmlinux.as_path()),
            ("TESSERA_BZIMAGE", &self.kernel.bzimage),
            ("TESSERA_INITRAMFS", &self.initramfs),
            ("TESSERA_PROGRAMS_INITRAMFS", &self.guest_programs),
            ("TESSERA_SELFTEST", &self.selftest),
        ];
        variables.extend(self.debian.iter().flat_map(|debian| {
            [
                (IMAGE, debian.image.as_path()),
                ("TESSERA_DEBIAN_KERNEL", &debian.kernel),
                ("TESSERA_DEBIAN_INITRD", &debian.initrd),
            ]
        }));
        variables
    }

    /// The job with these variables in its environment. It may write to the Debian image: what it
    /// writes is thrown away, and the image is a file or a block device.
    pub(crate) fn given_to(&self, job: lab::Job) -> lab::Job {
        self.variables().iter().fold(job, |job, (name, path)| match *name {
            IMAGE => job.with_disk(IMAGE, path),
            _ => job.with_variable(name, *path),
        })
    }
}
