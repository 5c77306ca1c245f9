//! `demo`: a guest boots on the terminal, from nothing but a JSON file.

use std::fs;

use anyhow::{Result, bail};
use serde_json::json;

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::lab::{Job, Lab};
use crate::process::step;
use crate::{cargo, setup};

/// Installs, builds, and boots our kernel with an init that powers the guest off.
pub(crate) fn run(cache: &Cache) -> Result<()> {
    setup::packages()?;
    let artefacts = Artefacts::ensure(cache)?;
    step("building tessera");
    let tessera = cargo::release_binary("vmm", "tessera")?;
    let lab = Lab::find(cache, false)?;
    let folder = tempfile::Builder::new().prefix("tessera-demo-").tempdir()?;
    let config = folder.path().join("vm.json");
    let text = serde_json::to_string_pretty(&config_of(&artefacts))?;
    fs::write(&config, &text)?;
    step(&format!("tessera --config vm.json, where vm.json is\n{text}"));
    let status = lab.run(&Job::new(vec![tessera.into(), "--config".into(), config.into()])?)?;
    if status != 0 {
        bail!("tessera ended with status {status}");
    }
    step("the guest booted and powered itself off");
    Ok(())
}

fn config_of(artefacts: &Artefacts) -> serde_json::Value {
    json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
        "memory": { "size": 128 << 20 },
        "payload": {
            "kernel": artefacts.vmlinux(),
            "initramfs": artefacts.initramfs(),
            "cmdline": "console=ttyS0 quiet panic=-1 tessera.run=poweroff"
        },
        "serial": { "mode": "Tty" },
        "console": { "mode": "Off" }
    })
}
