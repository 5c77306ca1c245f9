//! `demo`: the program of that name in `benches`, run where guests run.

use anyhow::{Result, bail};

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::lab::{Job, Lab};
use crate::process::step;
use crate::{cargo, setup};

/// Installs and builds what is missing, then runs the show.
pub(crate) fn run(cache: &Cache) -> Result<()> {
    setup::packages()?;
    let artefacts = Artefacts::ensure_ours(cache)?;
    step("building tessera, memctl and the demo");
    let tessera = cargo::release_binary("vmm", "tessera")?;
    let memctl = cargo::release_binary("memctl", "memctl")?;
    let demo = cargo::release_binary("benches", "demo")?;
    let job = Job::new(vec![demo.into()])?
        .with_variable("TESSERA_BIN", tessera)
        .with_variable("MEMCTL_BIN", memctl);
    match Lab::find(cache, false)?.run(&artefacts.given_to(job))? {
        0 => Ok(()),
        status => bail!("the demo ended with status {status}"),
    }
}
