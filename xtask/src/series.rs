//! `kernel --series`: whether each patch is in the kernel's style, and the kernel builds and boots
//! after it, as reviewers ask for.
//!
//! Not part of `test`: a change of a patch concerns all that follow, and 20 kernels take a while.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::initramfs;
use crate::kernel::{self, Inputs};
use crate::process::{last_lines, output, run, run_logged};

/// What all kernels have; a warning of the compiler is an error.
const CONFIG: &str = include_str!("series.config");

/// What the patches are built with.
const BASE: &str = "CONFIG_SMP=y\nCONFIG_NUMA=y\nCONFIG_NUMA_BALANCING=y\n";

/// Without what they bring, the folders they change are compiled after each of them.
const OFF: &str = "# CONFIG_MEM_PARTITION is not set\n";
const FOLDERS: &[&str] =
    &["mm/", "fs/proc/", "fs/splice.o", "net/core/datagram.o", "drivers/virtio/"];

/// What they bring, the tests that run when the kernel boots included.
const PARTITIONS: &str = "CONFIG_MEM_PARTITION=y\nCONFIG_MEM_PARTITION_KUNIT_TEST=y\n";

/// The configurations of the whole series.
const WHOLE: &[(&str, &[&str])] = &[
    ("with its tests", &[BASE, PARTITIONS]),
    ("with its option off", &[BASE, OFF]),
    ("without NUMA", &["CONFIG_SMP=y\n# CONFIG_NUMA is not set\n", PARTITIONS]),
    ("with one CPU and no NUMA", &["# CONFIG_SMP is not set\n", PARTITIONS]),
];

/// What the kernel's first process does. The shell's arithmetic tells what it prints from the
/// command line, which the kernel prints.
const INIT: &str = "console=ttyS0 panic=-1 rdinit=/bin/busybox -- \
                    sh -c \"echo $((6*7)) is up; /bin/busybox reboot -f\"";
const UP: &str = "42 is up";

/// What a kernel says when something is wrong, a failed KUnit test included.
const COMPLAINTS: &[&str] = &["WARNING:", "BUG:", "Oops:", "not ok "];

/// Builds and boots a kernel after each patch from `first` on, as its file's name begins, and in each
/// configuration of all of them. Prints a line for each.
pub(crate) fn check(cache: &Cache, first: &str) -> Result<()> {
    let initramfs = initramfs::ensure(cache)?;
    let inputs = Inputs::in_workspace()?;
    let dir = tempfile::Builder::new().prefix("tessera-series-").tempdir()?;
    // One for each setting of the option: changing it compiles all again.
    let [tree, off] = ["tree", "off"].map(|name| dir.path().join(name));
    kernel::unpack(&tree, "")?;
    kernel::unpack(&off, "")?;
    for patch in &inputs.patches {
        kernel::apply(patch, &tree)?;
        kernel::apply(patch, &off)?;
        let name = patch.file_name().unwrap_or_default().to_string_lossy();
        if *name >= *first {
            check_style(patch, &tree)?;
            build(&off, &[CONFIG, BASE].concat(), OFF, FOLDERS)
                .with_context(|| format!("{name} does not build with its option off"))?;
            one(&name, &tree, &[CONFIG, BASE].concat(), PARTITIONS, &initramfs)?;
        }
    }
    for (name, settings) in WHOLE {
        let wanted = [CONFIG, &settings.concat()].concat();
        one(&format!("the series {name}"), &tree, &wanted, "", &initramfs)?;
    }
    Ok(())
}

/// What the kernel's own tool says of the patch. MAINTAINERS is not ours to write, and CamelCase is
/// how the kernel names what it does to the flags of a page.
fn check_style(patch: &Path, tree: &Path) -> Result<()> {
    let mut checkpatch = Command::new("scripts/checkpatch.pl");
    checkpatch.current_dir(tree).args(["--strict", "--terse", "--quiet"]);
    run(checkpatch.arg("--ignore=FILE_PATH_CHANGES,CAMELCASE").arg(patch))
}

fn one(name: &str, tree: &Path, wanted: &str, optional: &str, initramfs: &Path) -> Result<()> {
    let start = Instant::now();
    build(tree, wanted, optional, &["bzImage"])
        .with_context(|| format!("{name} does not build"))?;
    let built = start.elapsed().as_secs();
    boot(tree, initramfs).with_context(|| format!("{name} does not boot"))?;
    println!("{name}: built in {built} s, boots");
    Ok(())
}

fn build(tree: &Path, wanted: &str, optional: &str, targets: &[&str]) -> Result<()> {
    kernel::configure(tree, wanted, optional)?;
    let jobs = std::thread::available_parallelism()?.to_string();
    let mut make = kernel::make(tree);
    make.args(["--jobs", &jobs]).args(targets);
    run_logged(&mut make, &tree.join("build.log"), "build steps")
}

/// Boots in an emulated PC, which ends when the kernel restarts it.
fn boot(tree: &Path, initramfs: &Path) -> Result<()> {
    let mut qemu = Command::new("timeout");
    qemu.args(["120", "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max"])
        .args(["-m", "1G", "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-serial", "stdio", "-append", INIT, "-kernel"])
        .arg(tree.join("arch/x86/boot/bzImage"))
        .arg("-initrd")
        .arg(initramfs);
    let console = output(&mut qemu)?;
    match complaint(&console) {
        None => Ok(()),
        Some(what) => bail!("{what}; its console ends with:\n{}", last_lines(&console, 40)),
    }
}

/// What is wrong with a boot that printed this, if anything is.
fn complaint(console: &str) -> Option<String> {
    if let Some(line) = console.lines().find(|line| COMPLAINTS.iter().any(|c| line.contains(c))) {
        return Some(format!("the kernel says {:?}", line.trim()));
    }
    (!console.contains(UP)).then(|| "it does not reach a shell".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_good_when_its_shell_runs_and_the_kernel_does_not_complain() {
        let log = format!("[ 0.0] Command line: {INIT}\r\n");
        assert!(complaint(&log).is_some_and(|what| what.contains("shell")));
        let good = format!("{log}    ok 3 a_life_ends\r\n{UP}\r\n");
        assert_eq!(complaint(&good), None);
        for line in ["    not ok 4 each_page\r\n", "[ 1.0] WARNING: CPU: 0 PID: 1\r\n"] {
            assert!(complaint(&format!("{good}{line}")).is_some(), "{line}");
        }
    }
}
