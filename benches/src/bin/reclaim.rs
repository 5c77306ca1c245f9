//! `reclaim`: a function ends, and the host has its memory back. How long that takes, by size and
//! by the way it is done (Squeezy, EuroSys '26, figures 5 and 7).
//!
//! Functions fill a guest's memory, their pages interleaved; they are killed one by one, and the
//! memory of each is taken back before the next one goes. Contenders run in turn. Results go to
//! `reclaim.json`, `.md` and `.svg`, and as tables to the terminal.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result};
use benches::comparison::{Comparison, Merit};
use benches::elastic::{Guest, Monitor};
use benches::facts::Machine;
use benches::kvm_stats;
use benches::output::Output;
use benches::place::Place;
use benches::scene::{Functions, Release, Scene};
use benches::unit::Unit;
use benches::way::Way;
use clap::{Parser, ValueEnum};
use guest_tests::{HugePages, MIB};

/// Functions in a guest, and the most memory that all of them have.
const FUNCTIONS: u64 = 4;
const MOST: u64 = 6144 * MIB;

/// The size that the details are shown for, in MiB.
const DETAILED: u64 = 1024;

/// The most that ours may take, as a part of what others take: at any size, and at the detailed one.
const GOALS: [(Way, f64); 1] = [(Way::Stock, 0.1)];
const DETAILED_GOALS: [(Way, f64); 2] = [(Way::Stock, 0.01), (Way::Node, 0.11)];

/// The longest that the guest may take for a release without its request, in seconds.
const GUEST_GOAL_S: f64 = 3e-4;

/// How to run the measurement.
#[derive(Parser)]
#[command(about = "The end of a function, and its memory back on the host, by size and by way")]
struct Options {
    #[command(flatten)]
    output: Output,
    /// Guests of each way and size.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Memory of a function, in MiB.
    #[arg(long, default_value = "128,256,512,1024,2048", value_delimiter = ',')]
    sizes: Vec<u64>,
    /// Only these ways; ours comes first.
    #[arg(long, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Only these cases, for 1024 MiB; other sizes have the plain one.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Processes that keep the guest's vCPU busy, in the loaded cases.
    #[arg(long, default_value_t = 2)]
    burners: u32,
}

/// What else is so in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Case {
    /// Huge pages, and nothing else to do.
    Plain,
    /// Other processes keep the vCPU busy.
    Busy,
    /// The functions have pages of 4 KiB.
    SmallPages,
    /// Other processes keep the vCPU busy, and the functions have pages of 4 KiB.
    BusySmallPages,
    /// Guest memory is huge pages that the host keeps for guests (hugetlb); Tessera only.
    KeptPages,
    /// The guest's platform ends them, and nobody asks for the memory of a partition.
    EndToEnd,
    /// The same, with pages of 4 KiB.
    EndToEndSmallPages,
}

/// What was measured, by size in MiB, case, and way.
type Measured = BTreeMap<(u64, Case, Way), Vec<Release>>;

fn main() -> ExitCode {
    benches::exit("reclaim", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let base = Guest::staged(&place, 512 * MIB)?;
    if Machine::read().lab {
        kvm_stats::mount().context("cannot mount debugfs")?;
    }
    let ways = if options.ways.is_empty() { Way::value_variants() } else { &options.ways };
    let cases = if options.cases.is_empty() { Case::value_variants() } else { &options.cases };
    let mut measured = Measured::new();
    for round in 0..options.runs {
        for &mib in &options.sizes {
            let size = mib * MIB;
            let count = FUNCTIONS.min(MOST / size).max(2);
            let cases = if mib == DETAILED { cases } else { &[Case::Plain] };
            for (&way, &case) in ways.iter().flat_map(|way| cases.iter().map(move |c| (way, c))) {
                if case == Case::KeptPages && way.monitor() == Monitor::Qemu {
                    continue;
                }
                let releases =
                    releases((way, case), &base, Functions::new(count, size), &place, options)
                        .with_context(|| format!("{}, {mib} MiB", way.name()))?;
                measured.entry((mib, case, way)).or_default().extend(releases);
            }
            eprintln!("{mib} MiB: {} of {} rounds", round + 1, options.runs);
        }
    }
    report(&measured, options, &base.kernel_release()?)?.publish(&options.output)
}

/// The releases of one guest.
fn releases(
    (way, case): (Way, Case),
    base: &Guest,
    functions: Functions,
    place: &Place,
    options: &Options,
) -> Result<Vec<Release>> {
    let small_pages =
        matches!(case, Case::SmallPages | Case::BusySmallPages | Case::EndToEndSmallPages);
    let auto_release = matches!(case, Case::EndToEnd | Case::EndToEndSmallPages);
    let kept_pages = case == Case::KeptPages;
    let functions = Functions { small_pages, kept_pages, auto_release, ..functions };
    let busy = matches!(case, Case::Busy | Case::BusySmallPages);
    let burners = if busy { options.burners } else { 0 };
    let _kept =
        kept_pages.then(|| HugePages::reserve(base.boot + functions.total())).transpose()?;
    let scene = Scene::boot(way, base, functions, &place.socket())?;
    if auto_release { scene.play_end_to_end() } else { scene.play(burners) }
}

/// One figure of merit: which releases of which case, and what is taken from each.
struct View {
    name: String,
    unit: Unit,
    case: (u64, Case),
    /// Of the last function, which has nothing in its way, instead of all others.
    last: bool,
    value: fn(&Release) -> Option<f64>,
    goals: &'static [(Way, f64)],
    /// What ours is to be at most, in the base unit.
    most: Option<f64>,
}

/// What `view` shows; `None` where nothing of the kind was measured.
fn merit(measured: &Measured, view: &View) -> Result<Option<Merit>> {
    let of_case = measured.iter().filter(|((mib, case, _), _)| (*mib, *case) == view.case);
    let values = of_case.map(|((_, _, way), releases)| {
        let chosen = releases.iter().filter(|release| (release.left == 0) == view.last);
        (way.name(), chosen.filter_map(view.value).collect())
    });
    let mut merit = Merit::new(&view.name, view.unit, values)?;
    for (way, ratio) in view.goals {
        merit = merit.promised(way.name(), *ratio);
    }
    if let Some(most) = view.most {
        merit = merit.at_most(most);
    }
    Ok((!merit.entries.is_empty()).then_some(merit))
}

fn time(release: &Release) -> Option<f64> {
    Some(release.time.as_secs_f64())
}

fn report(measured: &Measured, options: &Options, release: &str) -> Result<Comparison> {
    let mut merits = Vec::new();
    for &mib in &options.sizes {
        let view = View {
            name: format!("{mib} MiB back, other functions in the way"),
            unit: Unit::Seconds,
            case: (mib, Case::Plain),
            last: false,
            value: time,
            goals: if mib == DETAILED { &DETAILED_GOALS } else { &GOALS },
            most: None,
        };
        merits.extend(merit(measured, &view)?);
    }
    for view in details() {
        merits.extend(merit(measured, &view)?);
    }
    Ok(Comparison::new(
        &options.output,
        "reclaim",
        "A function ends: its memory back on the host",
        format!(
            "{} guests of each kind and size, in turn; same kernel (Linux {release}), 1 vCPU, huge \
             pages in guest and host unless said; functions interleave, and end one by one. Time \
             from the wish until the host has the memory. End to end from the kill on: a shell in the \
             guest unbinds the partition when its function is gone, and it goes by itself; for the \
             other ways the shell says so, and the host asks. Details are of releases with other \
             functions in the way.",
            options.runs
        ),
        merits,
    ))
}

/// What is shown for one size only.
fn details() -> Vec<View> {
    let of = |name: &str, unit, case, value| View {
        name: format!("{DETAILED} MiB: {name}"),
        unit,
        case: (DETAILED, case),
        last: false,
        value,
        goals: &[],
        most: None,
    };
    let timed = |name: &str, case| of(name, Unit::Seconds, case, time);
    let held = |name: &str, case| View { goals: &DETAILED_GOALS, ..timed(name, case) };
    let at_most = |most, view: View| View { most: Some(most), ..view };
    let seconds = |name: &str, value| of(name, Unit::Seconds, Case::Plain, value);
    let count = |name: &str, value| of(name, Unit::Count, Case::Plain, value);
    vec![
        held("the vCPU busy with other work", Case::Busy),
        held("functions with pages of 4 KiB", Case::SmallPages),
        held("the vCPU busy, functions with pages of 4 KiB", Case::BusySmallPages),
        held("on huge pages that the host keeps for guests", Case::KeptPages),
        View { last: true, ..timed("no other function left", Case::Plain) },
        timed("end to end, from the kill on", Case::EndToEnd),
        timed("end to end, functions with pages of 4 KiB", Case::EndToEndSmallPages),
        seconds("the host's part", |release| release.host.map(|time| time.as_secs_f64())),
        at_most(
            GUEST_GOAL_S,
            seconds("the guest's part, without the request", |release| {
                release.guest.map(|time| time.as_secs_f64())
            }),
        ),
        seconds("CPU time of the vCPU", |release| Some(release.cpu.vcpus.as_secs_f64())),
        seconds("CPU time of the monitor", |release| Some(release.cpu.monitor.as_secs_f64())),
        count("exits", |release| release.exits.map(|count| count as f64)),
        at_most(0.0, count("pages moved by the guest", |release| Some(release.migrated as f64))),
        at_most(1.0, count("requests", |release| release.requests.map(|count| count as f64))),
    ]
}
