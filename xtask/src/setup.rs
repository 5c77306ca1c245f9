//! `setup`: a fresh Debian 12 machine gets all that the other commands need.

use std::process::Command;

use anyhow::{Result, bail};

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::lab;
use crate::process::{as_root, output, run, step};

/// Packages and what needs them.
const PACKAGES: &[(&str, &[&str])] = &[
    (
        "the guest kernel",
        &[
            "linux-source-6.12",
            "bc",
            "binutils",
            "bison",
            "cpio",
            "flex",
            "gcc",
            "libc6-dev",
            "libelf-dev",
            "libssl-dev",
            "lz4",
            "make",
            "patch",
            "perl",
            "xz-utils",
        ],
    ),
    ("the lab", &["busybox-static", "kmod", "qemu-system-x86", "util-linux", "zstd"]),
    ("the Debian guest", &["e2fsprogs", "gzip", "mmdebstrap"]),
    ("the tests", &["acpica-tools", "iproute2", "musl-tools"]),
];

/// Installs what is missing, then builds or finds every artefact.
pub(crate) fn everything(cache: &Cache) -> Result<()> {
    packages()?;
    lab::prepare(cache)?;
    for (name, path) in Artefacts::ensure(cache)?.variables() {
        eprintln!("    {name}={}", path.display());
    }
    step("setup is complete");
    Ok(())
}

/// Installs the Debian packages that are missing; quick and silent when none is.
pub(crate) fn packages() -> Result<()> {
    let missing = missing_packages()?;
    if missing.is_empty() {
        return Ok(());
    }
    step(&format!("installing Debian packages: {}", missing.join(" ")));
    update_lists()?;
    run(as_root("env")?
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes"])
        .args(["--quiet", "--no-install-recommends"])
        .args(&missing))
}

/// Fetches the current package lists.
pub(crate) fn update_lists() -> Result<()> {
    step("apt-get update");
    run(as_root("apt-get")?.args(["update", "--quiet"]))
}

fn missing_packages() -> Result<Vec<&'static str>> {
    let all: Vec<&str> = PACKAGES.iter().flat_map(|(_, names)| *names).copied().collect();
    // dpkg-query ends with status 1 when it does not know one of the names: not an error here.
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(&all)
        .output();
    let Ok(query) = query else {
        bail!("dpkg-query does not run: xtask installs packages on Debian only");
    };
    let known = String::from_utf8_lossy(&query.stdout).into_owned();
    Ok(all.into_iter().filter(|name| !is_installed(name, &known)).collect())
}

fn is_installed(name: &str, known: &str) -> bool {
    known.lines().any(|line| line.split_once(' ') == Some((name, "installed")))
}

/// The version of an installed package.
pub(crate) fn installed_version(package: &str) -> Result<String> {
    output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", package]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_counts_as_missing() {
        let known = "bc installed\ncpio config-files\nflex not-installed\n";
        assert!(is_installed("bc", known));
        assert!(!is_installed("cpio", known));
        assert!(!is_installed("flex", known));
        assert!(!is_installed("b", known));
    }
}
