//! `test`: checks, unit tests and documentation tests on the host, guest tests where guests run.
//!
//! Guest tests drive the release binary: it is what ships, and in the lab each instruction counts.
//! The tests themselves are built with the dev profile, as the unit tests are.

mod guest;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::cache::Cache;
use crate::cargo::{self, Program, cargo};
use crate::check::{self, CHECKS};
use crate::demo;
use crate::libtest::{self, Outcome, Tally};
use crate::process::step;
use crate::setup;

/// How long the demo may take once it is built.
const DEMO: Duration = Duration::from_secs(120);

/// What `cargo xtask test` can be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Run only tests with this in their names, and guest programs of this name.
    #[arg(default_value = "")]
    filter: String,
    /// Run those that are left out otherwise too, for lack of time: long ones, those of partitions in
    /// the debug kernel, which is built, and the demo. Takes an hour.
    #[arg(long)]
    long: bool,
}

/// Runs all of it, and ends with one line of counts. Fails when a test did, or none ran.
pub(crate) fn run(cache: &Cache, options: &Options) -> Result<ExitCode> {
    setup::packages()?;
    let filter = &options.filter;
    let mut total = checks(filter);
    step("building the tests");
    let programs = cargo::build(&["test", "--workspace", "--no-run"])?;
    // Integration tests have the program they test built as well: it is no test itself.
    let tests = programs.into_iter().filter(|p| p.is_test);
    let (guest, host): (Vec<_>, Vec<_>) =
        tests.partition(|p| p.package == "tests" && p.kind == "test");
    for program in &host {
        total.add(host_program(program, filter)?);
    }
    total.add(documentation(filter)?);
    total.add(guest::run(cache, &guest, options)?);
    if "demo".contains(filter.as_str()) {
        total.add(demonstration(cache, options.long)?);
    }
    Ok(report(&total))
}

fn checks(filter: &str) -> Tally {
    let mut tally = Tally::default();
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(filter)) {
        let passed = check::passes(name, *check);
        let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
        tally.count("check", name, outcome, "");
    }
    tally
}

/// Runs one test program of the host in the folder of its package, as cargo would.
fn host_program(program: &Program, filter: &str) -> Result<Tally> {
    let mut command = Command::new(&program.path);
    command
        .current_dir(&program.directory)
        .env("CARGO_MANIFEST_DIR", &program.directory)
        .arg(filter);
    tests_of(&mut command, &program.label())
}

/// Documentation tests are built and run by cargo, one harness for each library.
fn documentation(filter: &str) -> Result<Tally> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--doc", "--no-fail-fast", "--", filter]);
    tests_of(&mut command, "documentation")
}

/// The demo as the README has it. It checks what it shows.
fn demonstration(cache: &Cache, long: bool) -> Result<Tally> {
    let mut tally = Tally::default();
    let name = "eight functions, and the end of each";
    if !long {
        tally.count("demo", name, Outcome::Skipped, "takes a minute: cargo xtask test --long");
        return Ok(tally);
    }
    cargo::build(&["build", "--release", "--package", "benches", "--bin", "demo"])?;
    let start = Instant::now();
    match demo::run(cache) {
        Err(error) => tally.fail(format!("demo: {error:#}")),
        Ok(()) if start.elapsed() > DEMO => {
            let (took, limit) = (start.elapsed().as_secs(), DEMO.as_secs());
            tally.fail(format!("demo: took {took} s, more than {limit}"));
        }
        Ok(()) => tally.count("demo", name, Outcome::Passed, ""),
    }
    Ok(tally)
}

fn tests_of(command: &mut Command, label: &str) -> Result<Tally> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start the tests of {label}"))?;
    let stdout = String::from_utf8_lossy(&out.stdout);
    let tally = libtest::tally(label, &stdout, out.status.success());
    eprintln!("    {label}: {}", tally.line());
    if tally.failed > 0 {
        eprintln!("{stdout}{}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(tally)
}

/// Says which tests were skipped and why, which had more than one lab, which failed, and how many
/// there were of each.
fn report(total: &Tally) -> ExitCode {
    for reason in &total.reasons {
        eprintln!("skipped {reason}");
    }
    if !total.second_labs.is_empty() {
        let (count, names) = (total.second_labs.len(), total.second_labs.join(", "));
        eprintln!("{count} tests needed a second lab: {names}");
    }
    for failure in &total.failures {
        eprintln!("failed  {failure}");
    }
    println!("{}", total.line());
    let good = total.failed == 0 && total.passed > 0;
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
