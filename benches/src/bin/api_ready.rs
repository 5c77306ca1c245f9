//! `api_ready`: what it costs to start Tessera, until its API answers.
//!
//! No guest and no KVM: it runs on any machine, and says little in the lab, where a program that
//! starts is first of all a program to be translated. So it is best run there: `--here` of `cargo
//! xtask bench`.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use benches::facts::Machine;
use benches::figure::{Colour, Figure, Goal, Panel, Row};
use benches::output::{Output, command_line};
use benches::place::Place;
use benches::process::Process;
use benches::samples::{Samples, Series};
use benches::unit::Unit;
use benches::{api, table::Table};
use clap::Parser;
use serde::Serialize;

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

/// What `api_ready.json` holds. Times are in seconds.
#[derive(Serialize)]
struct Outcome {
    benchmark: String,
    command: String,
    machine: Machine,
    tessera_file_bytes: u64,
    cpu_s: Samples,
    wall_s: Samples,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("api_ready: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let tessera = place.staged("TESSERA_BIN")?;
    let mut series = Series::default();
    // The first start warms the page cache up.
    start(&place, &tessera, &mut Series::default())?;
    for _ in 0..options.runs {
        start(&place, &tessera, &mut series)?;
    }
    let outcome = Outcome {
        benchmark: options.output.stem("api_ready"),
        command: command_line(),
        machine: Machine::read(),
        tessera_file_bytes: fs::metadata(&tessera)?.len(),
        cpu_s: series.take("cpu_s")?,
        wall_s: series.take("wall_s")?,
    };
    print!("{}", table(&outcome).to_text());
    let json = serde_json::to_string_pretty(&outcome)? + "\n";
    let name = &outcome.benchmark;
    options.output.write(&format!("{name}.json"), &json)?;
    options.output.write(&format!("{name}.md"), &markdown(&outcome))?;
    options.output.write(&format!("{name}.svg"), &figure(&outcome).to_svg())
}

/// Starts Tessera without a VM until its API has answered, and shuts it down.
fn start(place: &Place, tessera: &Path, series: &mut Series) -> Result<()> {
    let socket = place.socket();
    let mut command = Command::new(tessera);
    command.arg("--api-socket").arg(format!("path={}", socket.display()));
    let started = Instant::now();
    let process = Process::start(&mut command)?;
    while let Err(error) = api::request(&socket, "GET", "vmm.ping") {
        if started.elapsed() > LIMIT {
            return Err(error).context("the API never answered vmm.ping");
        }
        thread::sleep(RETRY);
    }
    series.add("wall_s", started.elapsed().as_secs_f64());
    series.add("cpu_s", process.cpu_time()?.as_secs_f64());
    api::request(&socket, "PUT", "vmm.shutdown").context("vmm.shutdown failed")?;
    let ended = process.wait_for_end(LIMIT)?;
    if !ended.status.success() {
        bail!("after vmm.shutdown tessera ended with {}:\n{}", ended.status, ended.output);
    }
    Ok(())
}

fn table(outcome: &Outcome) -> Table {
    let mut table = Table::new(&["exec until the API answers", "median", "fastest", "slowest"]);
    for (name, samples) in [("CPU time", &outcome.cpu_s), ("time", &outcome.wall_s)] {
        let values = [samples.median(), samples.min(), samples.max()];
        let cells = values.map(|value| Unit::Seconds.format(value));
        table.row(std::iter::once(name.to_owned()).chain(cells));
    }
    table
}

fn markdown(outcome: &Outcome) -> String {
    format!(
        "## API ready\n\nMade by `{}`. {} starts without a VM; the binary has {}. {}\n\n\
         ![from exec until the API answers](results/{}.svg)\n\n{}",
        outcome.command,
        outcome.cpu_s.n(),
        Unit::Bytes.format(outcome.tessera_file_bytes as f64),
        outcome.machine.describe(),
        outcome.benchmark,
        table(outcome).to_markdown()
    )
}

fn figure(outcome: &Outcome) -> Figure {
    let row = |label: &str, samples: &Samples, colour| Row {
        label: label.to_owned(),
        samples: samples.clone(),
        colour,
        note: String::new(),
    };
    // The promise is about hardware.
    let goal = (!outcome.machine.lab)
        .then(|| Goal { value: GOAL_S, label: "goal for CPU time: 8 ms".to_owned() });
    Figure {
        title: "From exec until the API answers".to_owned(),
        subtitle: format!(
            "{} starts without a VM. {}",
            outcome.cpu_s.n(),
            outcome.machine.describe()
        ),
        panels: vec![Panel {
            title: "Until the answer to vmm.ping".to_owned(),
            unit: Unit::Seconds,
            rows: vec![
                row("CPU time", &outcome.cpu_s, Colour::Blue),
                row("Time", &outcome.wall_s, Colour::Grey),
            ],
            goal,
        }],
        command: outcome.command.clone(),
    }
}
