//! `bench`: the programs of the `benches` package, run where guests run.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::lab::{Cpu, Job, Lab};
use crate::process::{step, workspace};
use crate::{cargo, kernel, setup};

/// How much longer than a test a program waits before it gives up what it has measured so far: it
/// fills gigabytes, and may have to share the machine.
const PATIENCE: &str = "5";

/// The program that wants a kernel without our patches too.
const COMPARES_KERNELS: &str = "faults";

/// What `cargo xtask bench` can be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Run only the program of this name.
    name: Option<String>,
    #[command(flatten)]
    cpu: Cpu,
    /// Where the programs write their results.
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    output: PathBuf,
}

/// Builds the release binaries and runs the programs one after the other, each in its own lab.
pub(crate) fn run(cache: &Cache, options: &Options) -> Result<()> {
    setup::packages()?;
    let artefacts = Artefacts::ensure(cache)?;
    step("building the release binaries");
    let tessera = cargo::release_binary("vmm", "tessera")?;
    let mut programs = cargo::build(&["build", "--release", "--package", "benches", "--bins"])?;
    // The demo measures too, but for people to watch.
    programs.retain(|program| match &options.name {
        Some(name) => *name == program.name,
        None => program.name != "demo",
    });
    if programs.is_empty() {
        bail!("no benchmark program of that name");
    }
    let output = workspace().join(&options.output);
    let lab = Lab::find(cache, false)?.with_cpu(options.cpu);
    for program in programs {
        step(&format!("bench {}", program.name));
        let mut job = Job::new(vec![program.path.into()])?
            .with_shares(vec![output.clone()])?
            .with_variable("TESSERA_BIN", &tessera)
            .with_variable("TESSERA_OUTPUT", &output)
            .with_variable("TESSERA_TEST_TIMEOUT_SCALE", PATIENCE);
        if program.name == COMPARES_KERNELS {
            job = job.with_variable("TESSERA_PLAIN_VMLINUX", kernel::ensure_plain(cache)?);
        }
        let status = lab.run(&artefacts.given_to(job))?;
        if status != 0 {
            bail!("{} ended with status {status}", program.name);
        }
    }
    Ok(())
}
