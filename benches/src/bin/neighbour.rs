//! `neighbour`: how long a function's requests take while the memory of others is taken back
//! (Squeezy, EuroSys '26, figure 9).
//!
//! Four functions of 1 GiB, interleaved, and a fifth that answers a request every 10 ms
//! (`tests/guest/latency.c`). Three of the four are killed; then the fifth is watched twice for the
//! same time, once with nothing else going on, and once while the memory of the three is taken back.
//! The host frees that memory: with one CPU for all, as in the lab by default, the neighbour waits
//! for it, and that is all one sees. `--cpus 2` gives the lab machine another.
//! Results go to `neighbour.json`, `.md` and `.svg`, and as tables to the terminal.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use benches::comparison::{Comparison, Entry, Merit};
use benches::elastic::{Elastic, Guest, MIB};
use benches::facts::Machine;
use benches::output::{Output, command_line};
use benches::place::Place;
use benches::samples::Samples;
use benches::scene::{Functions, Scene};
use benches::unit::Unit;
use benches::way::Way;
use clap::Parser;

/// Functions, the last of which stays.
const FUNCTIONS: u64 = 4;

/// Between the wishes for the memory of two of them, where the guest is quick enough.
const GAP: Duration = Duration::from_secs(2);

const WAYS: [Way; 2] = [Way::Partition, Way::Stock];

/// How to run the measurement.
#[derive(Parser)]
#[command(about = "A function's latency while the memory of others is taken back")]
struct Options {
    #[command(flatten)]
    output: Output,
    /// Guests of each kind.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Memory of a function, in MiB.
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// For how many seconds the neighbour is watched.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
}

/// What a watched neighbour says at the end, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Latency {
    median: f64,
    p99: f64,
    longest: f64,
}

/// By the way memory is taken back, and whether any was.
type Measured = BTreeMap<(Way, bool), Vec<Latency>>;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("neighbour: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let base = Guest::staged(&place, 512 * MIB)?;
    let mut measured = Measured::new();
    for round in 0..options.runs {
        for way in WAYS {
            let case = Functions::new(FUNCTIONS, options.size * MIB);
            let scene = Scene::boot(way, &base, case, &place.socket())?;
            let (quiet, releases) = watch(&scene, options.seconds)?;
            measured.entry((way, false)).or_default().push(quiet);
            measured.entry((way, true)).or_default().push(releases);
        }
        eprintln!("{} of {} rounds", round + 1, options.runs);
    }
    report(&measured, options, &base.kernel_release()?)?.publish(&options.output)
}

/// The neighbour's latency with nothing else going on, and while memory is taken back.
fn watch(scene: &Scene, seconds: u64) -> Result<(Latency, Latency)> {
    scene.place("neighbour", 64 * MIB)?;
    let mut hogs = scene.start()?;
    for number in 0..FUNCTIONS - 1 {
        scene.kill(&mut hogs, number)?;
    }
    let quiet = watched(scene.vm(), seconds, || Ok(()))?;
    let releases = watched(scene.vm(), seconds, || {
        (0..FUNCTIONS - 1).try_for_each(|number| {
            let asked = Instant::now();
            scene.take_back(number)?;
            thread::sleep(GAP.saturating_sub(asked.elapsed()));
            Ok(())
        })
    })?;
    Ok((quiet, releases))
}

/// The neighbour's latency while `meanwhile` runs. What the guest is asked for otherwise would take
/// the neighbour's CPU, so it is asked for nothing.
fn watched(vm: &Elastic, seconds: u64, meanwhile: impl FnOnce() -> Result<()>) -> Result<Latency> {
    let start = format!("latency {seconds} cgroup=/sys/fs/cgroup/neighbour > /tmp/latency");
    vm.shell(&format!("({start} 2>&1 &)"))?;
    vm.shell("until grep -q ready /tmp/latency; do usleep 20000; done")?;
    let end = Instant::now() + Duration::from_secs(seconds);
    meanwhile()?;
    thread::sleep(end.saturating_duration_since(Instant::now()));
    let line =
        vm.shell("while pidof latency > /dev/null; do sleep 1; done; tail -n 1 /tmp/latency")?;
    latency(&line).with_context(|| format!("the neighbour said {line:?}"))
}

/// Reads "requests N p50 US p99 US max US".
fn latency(line: &str) -> Option<Latency> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name| {
        let at = words.iter().position(|word| *word == name)?;
        let micros: f64 = words.get(at + 1)?.parse().ok()?;
        Some(micros / 1e6)
    };
    Some(Latency { median: after("p50")?, p99: after("p99")?, longest: after("max")? })
}

fn report(measured: &Measured, options: &Options, release: &str) -> Result<Comparison> {
    let name = |way: Way, releases: bool| {
        let when = if releases { "memory taken back" } else { "nothing else" };
        format!("{}: {when}", way.name())
    };
    // Ours with releases comes first: it is what all others are compared with.
    let order = WAYS.into_iter().flat_map(|way| [(way, true), (way, false)]);
    let order: Vec<_> = order.filter(|case| measured.contains_key(case)).collect();
    let merit = |title: &str, value: fn(&Latency) -> f64| -> Result<Merit> {
        let entries = order.iter().map(|&(way, releases)| {
            let values = measured[&(way, releases)].iter().map(value).collect();
            Ok(Entry { name: name(way, releases), samples: Samples::new(values)? })
        });
        Ok(Merit::new(title, Unit::Seconds, entries.collect::<Result<_>>()?))
    };
    let p99 = merit("99th percentile of a request's time", |latency| latency.p99)?;
    Ok(Comparison {
        name: options.output.stem("neighbour"),
        title: "A function's requests while others' memory is taken back".into(),
        how: format!(
            "{} guests of each kind, in turn; same kernel (Linux {release}), 1 vCPU; a request \
             every 10 ms for {} s; three functions of {} MiB are taken back meanwhile, a fourth \
             stays in the way.",
            options.runs, options.seconds, options.size
        ),
        command: command_line(),
        machine: Machine::read(),
        merits: vec![
            p99.promised(&name(Way::Partition, false), 1.05),
            merit("Median of a request's time", |latency| latency.median)?,
            merit("The longest request", |latency| latency.longest)?,
        ],
    })
}

#[cfg(test)]
mod tests {
    use benches::comparison::Verdict;

    use super::*;

    #[test]
    fn the_last_line_is_read_whatever_its_order() {
        let read = latency("requests 5000 p50 210 p99 1500 max 9000");
        assert_eq!(read, Some(Latency { median: 210e-6, p99: 1.5e-3, longest: 9e-3 }));
        assert_eq!(latency("mmap: out of memory"), None);
    }

    #[test]
    fn ours_with_releases_is_held_against_ours_without() {
        let at = |p99| vec![Latency { median: p99 / 2.0, p99, longest: p99 * 2.0 }];
        let measured = Measured::from([
            ((Way::Partition, false), at(1.0e-3)),
            ((Way::Partition, true), at(1.04e-3)),
            ((Way::Stock, false), at(1.0e-3)),
            ((Way::Stock, true), at(300e-3)),
        ]);
        let options = Options::parse_from(["neighbour"]);
        let report = report(&measured, &options, "6.12").unwrap();
        assert_eq!(report.merits[0].verdicts(), [Verdict::Met]);
        assert_eq!(report.merits[0].entries[0].name, "Tessera, partitions: memory taken back");
    }
}
