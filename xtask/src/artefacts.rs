//! What guest tests, the demo and the benches boot, and how they are told where it is.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::Cache;
use crate::kernel::{self, Kernel};
use crate::rootfs::{self, DebianGuest};
use crate::{guest_programs, initramfs, lab};

/// The variable that names the disk of the Debian guest.
const IMAGE: &str = "TESSERA_DEBIAN_IMAGE";

/// All guest artefacts, whole and in the cache.
pub(crate) struct Artefacts {
    kernel: Kernel,
    initramfs: PathBuf,
    guest_programs: PathBuf,
    debian: DebianGuest,
}

impl Artefacts {
    /// Finds each one in the cache, or builds it.
    pub(crate) fn ensure(cache: &Cache) -> Result<Self> {
        Ok(Self {
            kernel: kernel::ensure(cache)?,
            initramfs: initramfs::ensure(cache)?,
            guest_programs: guest_programs::ensure(cache)?,
            debian: rootfs::ensure(cache)?,
        })
    }

    /// The environment variables that name them.
    pub(crate) fn variables(&self) -> [(&'static str, &Path); 8] {
        [
            ("TESSERA_VMLINUX", &self.kernel.vmlinux),
            ("TESSERA_BZIMAGE", &self.kernel.bzimage),
            ("TESSERA_MODULE", &self.kernel.module),
            ("TESSERA_INITRAMFS", &self.initramfs),
            ("TESSERA_PROGRAMS_INITRAMFS", &self.guest_programs),
            (IMAGE, &self.debian.image),
            ("TESSERA_DEBIAN_KERNEL", &self.debian.kernel),
            ("TESSERA_DEBIAN_INITRD", &self.debian.initrd),
        ]
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
