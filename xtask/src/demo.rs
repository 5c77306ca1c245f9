//! `demo`: a guest boots on the terminal from one JSON file, is asked a few things, and powers off.

mod show;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cache::Cache;
use crate::lab::{Job, Lab};
use crate::process::step;
use crate::{cargo, initramfs, kernel, setup};

pub(crate) use show::{Options, show};

/// Installs and builds what is missing, then runs the show where guests run.
pub(crate) fn run(cache: &Cache) -> Result<()> {
    setup::packages()?;
    let kernel = kernel::ensure(cache)?.vmlinux;
    let initramfs = initramfs::ensure(cache)?;
    step("building tessera");
    let tessera = cargo::release_binary("vmm", "tessera")?;
    let lab = Lab::find(cache, false)?;
    let folder = tempfile::Builder::new().prefix("tessera-demo-").tempdir()?;
    let config = folder.path().join("vm.json");
    fs::write(&config, serde_json::to_string_pretty(&config_of(&kernel, &initramfs))?)?;
    let xtask = std::env::current_exe().context("cannot tell where xtask is")?;
    let command = vec![xtask.into(), "demo-show".into(), tessera.into(), config.into()];
    match lab.run(&Job::new(command)?)? {
        0 => Ok(()),
        status => bail!("the demo ended with status {status}"),
    }
}

fn config_of(kernel: &Path, initramfs: &Path) -> serde_json::Value {
    json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
        "memory": { "size": 128 << 20 },
        "payload": { "kernel": kernel, "initramfs": initramfs, "cmdline": "console=ttyS0 quiet" },
        "serial": { "mode": "Tty" },
        "console": { "mode": "Off" }
    })
}
