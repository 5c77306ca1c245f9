//! `api_ready`: what it costs to start Tessera, until its API answers.
//!
//! No guest and no KVM: it runs on any machine, and says little in the lab, where a program that
//! starts is first of all a program to be translated. So it is best run there: `--here` of `cargo
//! xtask bench`.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use benches::comparison::{Comparison, Merit};
use benches::facts::Machine;
use benches::output::Output;
use benches::place::Place;
use benches::process::Process;
use benches::unit::Unit;
use clap::Parser;
use guest_tests::Connection;

/// What the project promises: CPU time from exec until the API answers.
const GOAL_S: f64 = 0.008;

/// Far above any start, even in the lab on a busy host.
const LIMIT: Duration = Duration::from_secs(60);

/// How often a socket that is not there yet is tried.
const RETRY: Duration = Duration::from_millis(1);

/// How to run the measurement.
#[derive(Parser)]
#[command(about = "CPU time and time from exec until the API answers vmm.ping")]
struct Options {
    #[command(flatten)]
    output: Output,
    /// Starts.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

fn main() -> ExitCode {
    benches::exit("api_ready", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let tessera = place.staged("TESSERA_BIN")?;
    // The first start warms the page cache up.
    start(&place, &tessera)?;
    let starts = (0..options.runs).map(|_| start(&place, &tessera));
    let (cpu, time) = starts.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let merit = |name, values| Merit::new(name, Unit::Seconds, [("Tessera", values)]);
    let cpu = merit("CPU time from exec until the API answers", cpu)?;
    // The promise is about hardware.
    let cpu = if Machine::read().lab { cpu } else { cpu.at_most(GOAL_S) };
    let time = merit("Time from exec until the API answers", time)?;
    let size = Unit::Bytes.format(fs::metadata(&tessera)?.len() as f64);
    let how = format!("{} starts without a VM; the binary has {size}.", options.runs);
    Comparison::new(&options.output, "api_ready", "API ready", how, vec![cpu, time])
        .publish(&options.output)
}

/// Starts Tessera without a VM until its API has answered, and shuts it down. CPU time and time until
/// the answer, in seconds.
fn start(place: &Place, tessera: &Path) -> Result<(f64, f64)> {
    let socket = place.socket();
    let mut command = Command::new(tessera);
    command.arg("--api-socket").arg(format!("path={}", socket.display()));
    let started = Instant::now();
    let process = Process::start(&mut command)?;
    let mut answered = ping(&socket);
    while answered.is_err() && started.elapsed() <= LIMIT {
        thread::sleep(RETRY);
        answered = ping(&socket);
    }
    let mut connection = answered.context("the API never answered vmm.ping")?;
    let time = started.elapsed();
    // Still connected, so that the thread that answered counts.
    let cpu = process.cpu_time()?;
    connection.call("PUT", "vmm.shutdown", None)?.expect(204)?;
    let ended = process.wait_for_end(LIMIT)?;
    if !ended.status.success() {
        bail!("after vmm.shutdown tessera ended with {}:\n{}", ended.status, ended.output);
    }
    Ok((cpu.as_secs_f64(), time.as_secs_f64()))
}

/// A connection over which the API has answered.
fn ping(socket: &Path) -> Result<Connection> {
    let mut connection = Connection::over(UnixStream::connect(socket)?)?;
    connection.call("GET", "vmm.ping", None)?.expect(200)?;
    Ok(connection)
}
