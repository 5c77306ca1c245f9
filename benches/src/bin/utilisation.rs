//! `utilisation`: how long the memory of one function takes to come back, by how much of the rest
//! is in use (Squeezy, EuroSys '26, figure 6).
//!
//! Functions fill a guest's memory, their pages interleaved. Some are killed and their memory stays
//! with the guest, as free memory; then that of one of them is taken back. Contenders run in turn.
//! Results go to `utilisation.json`, `.md` and `.svg`, and as tables to the terminal.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use benches::comparison::{Comparison, Merit};
use benches::elastic::Guest;
use benches::output::Output;
use benches::place::Place;
use benches::scene::{Functions, Release, Scene};
use benches::unit::Unit;
use benches::way::Way;
use clap::Parser;
use guest_tests::MIB;

/// How many of the functions are left, in the order of the tables.
const LEFT: [u64; 5] = [0, 1, 3, 5, 7];

const FUNCTIONS: u64 = 8;

const WAYS: [Way; 3] = [Way::Partition, Way::Node, Way::Stock];

/// How to run the measurement.
#[derive(Parser)]
#[command(about = "A function's memory back, by how much of the rest is in use")]
struct Options {
    #[command(flatten)]
    output: Output,
    /// Guests of each way and utilisation.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Memory of a function, in MiB.
    #[arg(long, default_value_t = 512)]
    size: u64,
}

/// By how many functions are left, and way.
type Measured = BTreeMap<(u64, Way), Vec<Release>>;

fn main() -> ExitCode {
    benches::exit("utilisation", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let base = Guest::staged(&place, 512 * MIB)?;
    let functions = Functions::new(FUNCTIONS, options.size * MIB);
    let mut measured = Measured::new();
    for round in 0..options.runs {
        for (left, way) in LEFT.into_iter().flat_map(|left| WAYS.map(|way| (left, way))) {
            let release = Scene::boot(way, &base, functions, &place.socket())
                .and_then(|scene| release(&scene, left))
                .with_context(|| format!("{}, {left} left", way.name()))?;
            measured.entry((left, way)).or_default().push(release);
        }
        eprintln!("{} of {} rounds", round + 1, options.runs);
    }
    report(&measured, options, &base.kernel_release()?)?.publish(&options.output)
}

/// Kills all functions but the last `left`, and takes the memory of the first one back.
fn release(scene: &Scene, left: u64) -> Result<Release> {
    let mut hogs = scene.start()?;
    for number in 0..FUNCTIONS - left {
        scene.kill(&mut hogs, number)?;
    }
    let release = scene.release(0)?;
    ensure!(release.left == FUNCTIONS - 1, "more than one function's memory went");
    hogs.check()?;
    Ok(release)
}

fn report(measured: &Measured, options: &Options, release: &str) -> Result<Comparison> {
    let merit = |title: &str, unit, left: u64, value: fn(&Release) -> f64| {
        let releases = WAYS.into_iter().filter_map(|way| Some((way, measured.get(&(left, way))?)));
        let values = releases.map(|(way, all)| (way.name(), all.iter().map(value).collect()));
        Merit::new(title, unit, values)
    };
    let mut merits = Vec::new();
    for left in LEFT {
        let title = format!("{} % of the rest in use", 100 * left / (FUNCTIONS - 1));
        let time = |release: &Release| release.time.as_secs_f64();
        merits.push(merit(&title, Unit::Seconds, left, time)?);
    }
    let title = "100 % of the rest in use: pages moved by the guest";
    merits.push(merit(title, Unit::Count, FUNCTIONS - 1, |release| release.migrated as f64)?);
    Ok(Comparison::new(
        &options.output,
        "utilisation",
        "Memory back, by how much of the rest is in use",
        format!(
            "{} guests of each way and utilisation, in turn; same kernel (Linux {release}), 1 vCPU; \
             the memory of one of {FUNCTIONS} functions of {} MiB. Time from the wish until the \
             host has the memory.",
            options.runs, options.size
        ),
        merits,
    ))
}
