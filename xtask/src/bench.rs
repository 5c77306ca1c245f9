//! `bench`: the programs of the `benches` package, run where guests run.

use std::env;
use std::ffi::OsString;
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
    /// Run on this machine, for a program that needs no KVM.
    #[arg(long, conflicts_with_all = ["cpus", "icount"])]
    here: bool,
    /// Where the programs write their results.
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    output: PathBuf,
    /// Options of the program's own; `-- --help` lists them.
    #[arg(last = true, requires = "name", value_name = "OPTION")]
    own: Vec<OsString>,
}

/// Builds the release binaries and runs the programs one after the other, each in its own lab.
pub(crate) fn run(cache: &Cache, options: &Options) -> Result<()> {
    setup::packages()?;
    step("building the release binaries");
    let mut words = vec!["build", "--release", "--package", "benches"];
    match &options.name {
        // Of a name that there is not, cargo says which there are.
        Some(name) => words.extend(["--bin", name]),
        None => words.push("--bins"),
    }
    let mut programs = cargo::build(&words)?;
    // The demo measures too, but for people to watch.
    programs.retain(|program| options.name.is_some() || program.name != "demo");
    let tessera = cargo::release_binary("vmm", "tessera")?;
    let memctl = cargo::release_binary("memctl", "memctl")?;
    let artefacts = Artefacts::ensure_ours(cache)?;
    let output = workspace().join(&options.output);
    let lab = if options.here { Lab::Host } else { Lab::find(cache, false)?.with_cpu(options.cpu) };
    for program in programs {
        step(&format!("bench {}", program.name));
        let command = command_line(&program.name, options.name.is_some(), env::args().skip(2));
        let mut words = vec![program.path.into()];
        words.extend(options.own.iter().cloned());
        let mut job = Job::new(words)?
            .with_shares(vec![output.clone()])?
            .with_variable("TESSERA_BIN", &tessera)
            .with_variable("MEMCTL_BIN", &memctl)
            .with_variable("TESSERA_COMMAND", command)
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

/// The command line that runs `program` as it is run now; `given` is what followed `bench`, the
/// program among it if `named`.
fn command_line(program: &str, named: bool, given: impl Iterator<Item = String>) -> String {
    let mut line = "cargo xtask bench".to_owned();
    let name = (!named).then(|| program.to_owned());
    for word in name.into_iter().chain(given) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            line += &format!(" {word}");
        } else {
            line += &format!(" '{}'", word.replace('\'', r"'\''"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        bench: Options,
    }

    #[test]
    fn a_result_names_the_command_that_makes_it_again() {
        let line = |named, words: &[&str]| {
            command_line("plug", named, words.iter().map(|&word| word.to_owned()))
        };
        assert_eq!(line(false, &["--cpus", "2"]), "cargo xtask bench plug --cpus 2");
        let own = line(true, &["plug", "--", "--sizes", "128,512", "--name", "a b"]);
        assert_eq!(own, "cargo xtask bench plug -- --sizes 128,512 --name 'a b'");
    }

    #[test]
    fn options_behind_the_dashes_are_the_programs_own_and_need_a_program() {
        let parse = |words: &[&str]| Cli::try_parse_from(["bench"].iter().chain(words));
        let cli = parse(&["plug", "--cpus", "2", "--", "--runs", "3"]).ok().unwrap();
        assert_eq!(cli.bench.own, ["--runs", "3"]);
        assert!(parse(&["--", "--runs", "3"]).is_err());
        assert!(parse(&["plug", "--runs", "3"]).is_err());
    }
}
