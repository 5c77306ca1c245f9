//! The initial root file system of the lab machine: busybox, an init, and the kernel modules that
//! the lab needs, unpacked and in loading order.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::initramfs::with_busybox;
use crate::process::step;
use crate::stock_kernel::StockKernel;

const INIT: &str = include_str!("init.sh");

/// Raised when this file builds something else from the same inputs.
const RECIPE: u32 = 1;

/// What init loads: the host's files, KVM, and what guests' devices need on their host.
const MODULES: &[&str] = &[
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_blk",
    "kvm-amd",
    "tun",
    "vhost_net",
    "vhost_vsock",
    "loop",
];

/// Gives the archive for this kernel, and builds it when it is missing.
pub(crate) fn ensure(cache: &Cache, kernel: &StockKernel) -> Result<PathBuf> {
    let key = Key::new(RECIPE)
        .input("kernel", &kernel.release)
        .input("modules", MODULES.join(" "))
        .input("init", INIT);
    let dir = cache.artefact("lab", &key, |dir| {
        step("building the lab machine's initial file system");
        Ok(fs::write(dir.join("lab.cpio"), archive(kernel)?)?)
    })?;
    Ok(dir.join("lab.cpio"))
}

/// Not compressed: the emulator copies it at the host's speed, the machine would unpack it slowly.
fn archive(kernel: &StockKernel) -> Result<Vec<u8>> {
    let tree = kernel.root.join("lib/modules").join(&kernel.release);
    let modules_dep = fs::read_to_string(tree.join("modules.dep"))?;
    let dependencies = parse(&modules_dep);
    let mut archive = with_busybox(&["dev", "host", "modules", "new", "proc", "scratch", "sys"])?;
    let mut order = String::new();
    for path in loading_order(MODULES, &dependencies)? {
        let name = module_name(path);
        let unpacked = Command::new("xz")
            .args(["--decompress", "--stdout"])
            .arg(tree.join(path))
            .output()
            .context("cannot run xz")?;
        archive.file(&format!("modules/{name}"), 0o644, &unpacked.stdout)?;
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    Ok(archive.finish()?)
}

/// `modules.dep`: each line is a module's path, a colon, and the paths it needs, nearest first.
fn parse(modules_dep: &str) -> HashMap<&str, Vec<&str>> {
    modules_dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (path, needs.split_whitespace().collect()))
        .collect()
}

/// The wanted modules and all they need, each once and after what it needs.
fn loading_order<'a>(
    wanted: &[&str],
    dependencies: &HashMap<&'a str, Vec<&'a str>>,
) -> Result<Vec<&'a str>> {
    let mut order: Vec<&str> = Vec::new();
    for name in wanted {
        let (path, needs) = dependencies
            .iter()
            .find(|(path, _)| module_name(path) == *name)
            .with_context(|| format!("the lab's kernel has no module {name}"))?;
        for path in needs.iter().rev().chain([path]) {
            if !order.contains(path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

fn module_name(path: &str) -> &str {
    let file = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str =
        "kernel/a/kvm-amd.ko.xz: kernel/a/ccp.ko.xz kernel/a/kvm.ko.xz kernel/v/irq.ko.xz
kernel/a/kvm.ko.xz: kernel/v/irq.ko.xz
kernel/n/tun.ko.xz:
";

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let order = loading_order(&["kvm", "kvm-amd", "tun"], &parse(DEP)).unwrap();
        let names: Vec<_> = order.into_iter().map(module_name).collect();
        assert_eq!(names, ["irq", "kvm", "ccp", "kvm-amd", "tun"]);
    }

    #[test]
    fn an_unknown_module_is_named() {
        let error = loading_order(&["nosuch"], &parse(DEP)).unwrap_err();
        assert!(error.to_string().contains("nosuch"));
    }
}
