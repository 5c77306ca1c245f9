//! The second guest: Debian with its stock cloud kernel, as a disk image that boots to a login
//! prompt, with the kernel and its initial file system beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::process::{as_root, output, run, run_logged, step};
use crate::setup;

const SUITE: &str = "bookworm";
const KERNEL: &str = "linux-image-6.12-cloud-amd64";
const PACKAGES: &[&str] = &["systemd-sysv", "udev", "dbus", "iproute2", "kmod", KERNEL];

/// The file system's size; the file is sparse.
const IMAGE_SIZE: &str = "1G";

/// Raised when this file builds something else from the same inputs.
const RECIPE: u32 = 2;

/// Only the modules of a virtual machine's disk: the stock initial file system, but small.
const INITRAMFS_MODULES: &[&str] = &["virtio_blk", "virtio_pci", "ext4"];

/// Files written into the new system, by path and content.
const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "tessera\n"),
    ("etc/hosts", "127.0.0.1 localhost tessera\n"),
    ("etc/fstab", "/dev/vda / ext4 errors=remount-ro 0 1\n"),
    (
        "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf",
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I $TERM\n",
    ),
];

/// What a stock guest boots from.
pub(crate) struct DebianGuest {
    /// An ext4 file system without a partition table; root logs in on the serial console by itself.
    pub(crate) image: PathBuf,
    /// Debian's `vmlinuz`.
    pub(crate) kernel: PathBuf,
    /// Debian's initial file system: the cloud kernel has virtio-blk as a module.
    pub(crate) initrd: PathBuf,
}

/// Gives the stock guest, and builds it when it is missing.
pub(crate) fn ensure(cache: &Cache) -> Result<DebianGuest> {
    setup::packages()?;
    let files: String = FILES.iter().map(|(path, content)| format!("{path}\n{content}")).collect();
    let key = Key::new(RECIPE)
        .input("suite", SUITE)
        .input("packages", PACKAGES.join(" "))
        .input("modules", INITRAMFS_MODULES.join(" "))
        .input("files", files)
        .input("size", IMAGE_SIZE);
    let dir = cache.artefact("debian", &key, |dir| {
        step("building the Debian guest: 1 to 2 minutes");
        build(dir)
    })?;
    Ok(DebianGuest {
        image: dir.join("debian.ext4"),
        kernel: dir.join("vmlinuz"),
        initrd: dir.join("initrd.img"),
    })
}

fn build(dir: &Path) -> Result<()> {
    let tree = dir.join("tree");
    step("Debian guest: installing packages into a folder");
    let sources = dir.join("sources.list");
    fs::write(&sources, debian_sources()?)?;
    let mut bootstrap = as_root("mmdebstrap")?;
    bootstrap
        .args(["--variant=minbase", "--aptopt=Acquire::Check-Valid-Until \"false\""])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(format!("--setup-hook={}", initramfs_settings()))
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*");
    // Debian's passwd locks root; the guest has nobody to keep out.
    bootstrap.arg("--customize-hook=chroot \"$1\" passwd --delete root");
    bootstrap.arg(SUITE).arg(&tree).arg(&sources);
    run_logged(&mut bootstrap, &dir.join("bootstrap.log"), "lines")?;
    write_files(dir, &tree)?;
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
        let from = newest(&tree.join("boot"), prefix)?;
        run(as_root("install")?.arg("--mode=0644").arg(from).arg(dir.join(name)))?;
    }
    step("Debian guest: writing the disk image");
    let image = dir.join("debian.ext4");
    run(as_root("mkfs.ext4")?
        .args(["-q", "-F", "-L", "tessera", "-d"])
        .args([&tree, &image])
        .arg(IMAGE_SIZE))?;
    run(as_root("chmod")?.arg("0444").arg(&image))?;
    run(as_root("rm")?.args(["--recursive", "--force", "--one-file-system"]).arg(&tree))
}

/// The Debian archives that this machine's apt uses.
fn debian_sources() -> Result<String> {
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
        "Origin: Debian",
    ]))?;
    let sources: String =
        targets.lines().filter(|line| of_suite(line)).map(|line| format!("deb {line}\n")).collect();
    if sources.is_empty() {
        bail!("apt on this machine has no archive of Debian {SUITE}");
    }
    Ok(sources)
}

/// Whether a line "address suite component" belongs to the suite or its updates.
fn of_suite(line: &str) -> bool {
    let suite = line.split_whitespace().nth(1).unwrap_or_default();
    suite == SUITE || ["-updates", "-security"].iter().any(|end| suite == format!("{SUITE}{end}"))
}

/// A shell line that tells initramfs-tools what to put in, before the kernel's package runs it.
fn initramfs_settings() -> String {
    format!(
        "mkdir -p \"$1/etc/initramfs-tools/conf.d\" \"$1/usr/share/initramfs-tools/modules.d\" && \
         printf 'MODULES=list\\nCOMPRESS=gzip\\n' > \"$1/etc/initramfs-tools/conf.d/tessera\" && \
         printf '{}\\n' > \"$1/usr/share/initramfs-tools/modules.d/tessera\"",
        INITRAMFS_MODULES.join("\\n")
    )
}

/// Writes the files as this user, and installs them as root: the tree belongs to root.
fn write_files(dir: &Path, tree: &Path) -> Result<()> {
    let staged = dir.join("staged");
    for (path, content) in FILES {
        fs::write(&staged, content)?;
        run(as_root("install")?.args(["-D", "--mode=0644"]).arg(&staged).arg(tree.join(path)))?;
    }
    Ok(fs::remove_file(staged)?)
}

fn newest(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    found.sort();
    found.pop().with_context(|| format!("the Debian guest has no {prefix} file in /boot"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_and_other_suites_are_left_out() {
        for suite in ["bookworm", "bookworm-updates", "bookworm-security"] {
            assert!(of_suite(&format!("scheme:/archive {suite} main")));
        }
        assert!(!of_suite("scheme:/archive bookworm-backports main"));
        assert!(!of_suite("scheme:/archive trixie main"));
        assert!(!of_suite(""));
    }

    #[test]
    fn the_newest_of_several_kernels_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vmlinuz-6.12.1", "vmlinuz-6.12.3", "vmlinuz-6.12.2", "config-6.12.9"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(newest(dir.path(), "vmlinuz-").unwrap(), dir.path().join("vmlinuz-6.12.3"));
        assert!(newest(dir.path(), "initrd").is_err());
    }
}
