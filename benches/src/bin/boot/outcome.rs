//! What was measured, as it is written to `boot.json`. Times are in seconds, sizes in bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use benches::facts::Machine;
use benches::samples::Samples;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One run of the whole benchmark.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) benchmark: String,
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) guest_kernel: String,
    pub(crate) guest_memory_bytes: u64,
    pub(crate) tessera_file_bytes: u64,
    pub(crate) cases: Vec<Case>,
}

/// One size of guest, with all contenders.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) vcpus: u32,
    pub(crate) contenders: Vec<Measured>,
}

/// What one contender did.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) command: String,
    pub(crate) boot: Boot,
    pub(crate) idle: Idle,
}

/// Boots that power off as soon as init runs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Boot {
    /// From exec to the line that init writes.
    pub(crate) to_init_s: Samples,
    /// From exec to the end of the process.
    pub(crate) to_exit_s: Samples,
    /// CPU time of the whole process, guest included, until that line.
    pub(crate) cpu_to_init_s: Samples,
    /// CPU time of the whole process, guest included, until its end.
    pub(crate) cpu_to_exit_s: Samples,
}

/// A guest at its shell prompt, with a control socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Idle {
    /// Resident memory other than the guest's RAM.
    pub(crate) own_memory_bytes: Samples,
    /// The part of it that no other process shares.
    pub(crate) own_private_bytes: Samples,
    /// Resident pages of the guest's RAM.
    pub(crate) guest_resident_bytes: Samples,
    /// Threads of the process.
    pub(crate) threads: Samples,
    /// KVM's counters of one guest, from exec to the prompt; empty where debugfs is not to be had.
    pub(crate) kvm: BTreeMap<String, u64>,
    /// What `vm.counters` answered; null for others than Tessera.
    pub(crate) counters: Value,
}

impl Outcome {
    /// Reads a result file.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no result", file.display()))
    }
}
