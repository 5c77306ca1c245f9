//! `neighbour`: how long a function's requests take while the memory of others is taken back
//! (Squeezy, EuroSys '26, figure 9).
//!
//! Four functions of 1 GiB, interleaved, and a fifth that answers a request every 10 ms
//! (`tests/guest/latency.c`). Three of the four are killed; then the fifth is watched twice for the
//! same time, once with nothing else going on, and once while the memory of the three is taken back.
//! Then all begins anew in the same guest. A release of ours is over long before the next: the
//! requests that it met are shown by themselves too, against as many that met none.
//! The host frees that memory: with one CPU for all, as in the lab by default, the neighbour waits
//! for it, and that is all one sees. `--cpus 2` gives the lab machine another.
//! Results go to `neighbour.json`, `.md` and `.svg`, and as tables to the terminal.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use benches::clock::Reading;
use benches::comparison::{Comparison, Judge, Merit};
use benches::elastic::{Elastic, Guest};
use benches::output::Output;
use benches::place::Place;
use benches::samples::Samples;
use benches::scene::{Functions, Scene};
use benches::unit::Unit;
use benches::way::Way;
use clap::Parser;
use guest_tests::MIB;

/// Functions, the last of which stays.
const FUNCTIONS: u64 = 4;

/// Between the wishes for the memory of two of them, where the guest is quick enough.
const GAP: Duration = Duration::from_secs(2);

/// The most that a request may take longer for releases.
const GOAL: f64 = 1.05;

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
    /// How often the functions of a guest begin anew.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Memory of a function, in MiB.
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// For how many seconds the neighbour is watched.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
}

/// One request of a watched neighbour.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Request {
    due: Instant,
    took: Duration,
}

/// When a release began and when it was over.
type Window = (Instant, Instant);

/// What a neighbour did in one watch.
struct Watch {
    requests: Vec<Request>,
    releases: Vec<Window>,
    /// The most that the releases may be off.
    within: Duration,
}

/// The watches of one round: first with nothing else going on, then with releases.
type Round = [Watch; 2];

type Measured = BTreeMap<Way, Vec<Round>>;

fn main() -> ExitCode {
    benches::exit("neighbour", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let base = Guest::staged(&place, 512 * MIB)?;
    let mut measured = Measured::new();
    let mut lost = 0;
    for run in 0..options.runs {
        // What the others have measured is not lost with a guest.
        match guests(&base, &place, options) {
            Ok(rounds) => rounds.into_iter().for_each(|(way, its)| {
                measured.entry(way).or_default().extend(its);
            }),
            Err(error) => {
                eprintln!("left out: {error:#}");
                lost += 1;
            }
        }
        eprintln!("{} of {} guests of each kind", run + 1, options.runs);
    }
    ensure!(!measured.is_empty(), "no guest lasted until its last round");
    report(&measured, options, lost, &base.kernel_release()?)?.publish(&options.output)
}

/// All rounds of one guest of each kind.
fn guests(base: &Guest, place: &Place, options: &Options) -> Result<Measured> {
    let rounds = |way| {
        let case = Functions::new(FUNCTIONS, options.size * MIB);
        let scene = Scene::boot(way, base, case, &place.socket())?;
        scene.place("neighbour", 64 * MIB)?;
        let round = |again| {
            if again > 0 {
                (0..FUNCTIONS - 1).try_for_each(|number| scene.add(number).map(drop))?;
            }
            watch(&scene, options.seconds)
        };
        Ok((way, (0..options.rounds).map(round).collect::<Result<_>>()?))
    };
    WAYS.into_iter().map(rounds).collect()
}

/// One round, at the end of which three functions are gone and one has ended.
fn watch(scene: &Scene, seconds: u64) -> Result<Round> {
    let mut hogs = scene.start()?;
    for number in 0..FUNCTIONS - 1 {
        scene.kill(&mut hogs, number)?;
    }
    let quiet = watched(scene.vm(), seconds, || Ok(Vec::new()))?;
    let busy = watched(scene.vm(), seconds, || {
        let release = |number| {
            let asked = Instant::now();
            scene.take_back(number)?;
            let done = Instant::now();
            thread::sleep(GAP.saturating_sub(asked.elapsed()));
            Ok((asked, done))
        };
        (0..FUNCTIONS - 1).map(release).collect()
    })?;
    hogs.end()?;
    Ok([quiet, busy])
}

/// The neighbour's requests while `meanwhile` runs. What the guest is asked for otherwise would take
/// the neighbour's CPU, so it is asked for nothing.
fn watched(
    vm: &Elastic,
    seconds: u64,
    meanwhile: impl FnOnce() -> Result<Vec<Window>>,
) -> Result<Watch> {
    let before = Reading::of(vm)?;
    let start = format!("latency {seconds} cgroup=/sys/fs/cgroup/neighbour > /tmp/latency");
    vm.shell(&format!("({start} 2>&1 &)"))?;
    vm.shell("until grep -q ready /tmp/latency; do usleep 20000; done")?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let releases = meanwhile()?;
    thread::sleep(end.saturating_duration_since(Instant::now()));
    let said =
        vm.shell("while pidof latency > /dev/null; do sleep 1; done; tail -n 1 /tmp/latency")?;
    let after = Reading::of(vm)?;
    let requests = requests(&said, |guest| before.host_time(&after, guest))
        .with_context(|| format!("the neighbour said {said:?}"))?;
    Ok(Watch { requests, releases, within: before.within.max(after.within) })
}

/// Reads "from NS every NS took US US ...".
fn requests(said: &str, host_time: impl Fn(u64) -> Instant) -> Option<Vec<Request>> {
    let (times, took) = said.strip_prefix("from ")?.split_once(" took")?;
    let (first, period) = times.split_once(" every ")?;
    let (first, period): (u64, u64) = (first.parse().ok()?, period.parse().ok()?);
    let dues = (0..).map(|index| host_time(first + index * period));
    let request = |(due, took): (Instant, &str)| {
        Some(Request { due, took: Duration::from_micros(took.parse().ok()?) })
    };
    dues.zip(took.split_whitespace()).map(request).collect()
}

impl Watch {
    /// All requests, in seconds.
    fn all(&self) -> Result<Samples> {
        Ok(Samples::new(self.requests.iter().map(|one| one.took.as_secs_f64()).collect())?)
    }

    /// Which requests were due or under way while a release ran.
    fn met(&self) -> Vec<usize> {
        let meets = |one: &Request| {
            let met = |(asked, done): &Window| one.due <= *done && one.due + one.took >= *asked;
            self.releases.iter().any(met)
        };
        (0..self.requests.len()).filter(|&index| meets(&self.requests[index])).collect()
    }
}

/// All requests that met a release; or as many without any, those at the same places of the watch
/// before.
fn met(rounds: &[Round], releases: bool) -> Vec<f64> {
    let seconds = |[quiet, busy]: &Round| {
        let watch = if releases { busy } else { quiet };
        let requests = busy.met().into_iter().filter_map(|index| watch.requests.get(index));
        requests.map(|one| one.took.as_secs_f64()).collect::<Vec<_>>()
    };
    rounds.iter().flat_map(seconds).collect()
}

fn report(measured: &Measured, options: &Options, lost: u32, release: &str) -> Result<Comparison> {
    let name = |way: Way, releases: bool| {
        let when = if releases { "memory taken back" } else { "nothing else" };
        format!("{}: {when}", way.name())
    };
    // Ours with releases comes first: it is what all others are compared with.
    let order: Vec<_> = measured.keys().flat_map(|&way| [(way, true), (way, false)]).collect();
    type Values<'a> = &'a dyn Fn(&[Round], bool) -> Result<Vec<f64>>;
    let merit = |title: &str, values: Values<'_>| -> Result<Merit> {
        // Releases that are over before a request falls due meet none, and have no values.
        let values = order
            .iter()
            .map(|&(way, releases)| Ok((name(way, releases), values(&measured[&way], releases)?)));
        Ok(Merit::new(title, Unit::Seconds, values.collect::<Result<Vec<_>>>()?)?)
    };
    let of_watches = |title: &str, quantile: f64| {
        merit(title, &|rounds, releases| {
            let watches = rounds.iter().map(|round| &round[usize::from(releases)]);
            watches.map(|watch| Ok(watch.all()?.quantile(quantile))).collect()
        })
    };
    let (busy, quiet) = (name(Way::Partition, true), name(Way::Partition, false));
    let p99 = of_watches("99th percentile of a request's time", 0.99)?;
    let met = merit("Requests that met a release", &|rounds, releases| Ok(met(rounds, releases)))?;
    let mut merits = vec![
        p99.judged(&busy, &quiet, GOAL, Judge::Rounds),
        met.judged(&busy, &quiet, GOAL, Judge::Tails),
        of_watches("Median of a request's time", 0.5)?,
        of_watches("The longest request", 1.0)?,
    ];
    merits.retain(|merit| !merit.entries.is_empty());
    let watches = measured.values().flatten().flatten();
    let within = watches.map(|watch| watch.within).max().unwrap_or_default();
    let left_out = match lost {
        0 => String::new(),
        _ => format!(" ({lost} more left out, as one of the two died)"),
    };
    Ok(Comparison::new(
        &options.output,
        "neighbour",
        "A function's requests while others' memory is taken back",
        format!(
            "{} guests of each kind{left_out}, in turn, and {} rounds in each; same kernel \
             (Linux {release}), 1 vCPU; a request every 10 ms for {} s; three functions of {} MiB \
             are taken back meanwhile, a fourth stays in the way. A request that was due or under \
             way between the wish and its end met the release (clocks are lined up to {}); as many \
             at the same places without any are beside them.",
            options.runs - lost,
            options.rounds,
            options.seconds,
            options.size,
            Unit::Seconds.format(within.as_secs_f64())
        ),
        merits,
    ))
}

#[cfg(test)]
mod tests {
    use benches::comparison::Verdict;

    use super::*;

    /// A request every 10 ms; those from `slow` on, `count` of them, take 30 ms and not 1.
    fn watch(slow: usize, count: usize, releases: &[(u64, u64)]) -> Watch {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let took = |index| if (slow..slow + count).contains(&index) { 30 } else { 1 };
        let request = |index: usize| Request {
            due: at(10 * index as u64),
            took: Duration::from_millis(took(index)),
        };
        Watch {
            requests: (0..1200).map(request).collect(),
            releases: releases.iter().map(|(from, to)| (at(*from), at(*to))).collect(),
            within: Duration::from_millis(1),
        }
    }

    #[test]
    fn requests_are_read_with_their_times_on_this_machine() {
        let start = Instant::now();
        let host_time = |guest| start + Duration::from_nanos(guest);
        let read = requests("from 5000 every 10000000 took 210 9000", host_time).unwrap();
        let due = [5_000, 10_005_000].map(|nanos| start + Duration::from_nanos(nanos));
        let took = [210, 9000].map(Duration::from_micros);
        let want = [0, 1].map(|index| Request { due: due[index], took: took[index] });
        assert_eq!(read, want);
        assert!(requests("mmap: out of memory", host_time).is_none());
    }

    #[test]
    fn requests_due_or_under_way_met_the_release() {
        // 49 and 50 are due at 490 and 500 ms, 49 is over at 491.
        assert_eq!(watch(50, 1, &[(495, 505)]).met(), [50]);
        assert_eq!(watch(49, 1, &[(495, 505)]).met(), [49, 50]);
        assert_eq!(watch(0, 0, &[(491, 499)]).met(), [49]);
        assert!(watch(0, 0, &[(492, 499)]).met().is_empty());
    }

    #[test]
    fn a_release_that_only_its_own_requests_feel_is_seen() {
        let round = || [watch(0, 0, &[]), watch(50, 3, &[(495, 525)])];
        let measured: Measured = [Way::Partition, Way::Stock]
            .map(|way| (way, (0..200).map(|_| round()).collect()))
            .into();
        let options = Options::parse_from(["neighbour"]);
        let report = report(&measured, &options, 0, "6.12").unwrap();
        // 3 of 1200 are no matter for the 99th percentile of all.
        assert_eq!(report.merits[0].verdicts(), [Verdict::Met]);
        assert_eq!(report.merits[1].verdicts(), [Verdict::NotMet]);
        assert_eq!(report.merits[1].entries[0].name, "Tessera, partitions: memory taken back");
        let met = report.merits[1].entries.iter().map(|entry| entry.samples.n());
        assert_eq!(met.collect::<Vec<_>>(), [600; 4]);
    }
}
