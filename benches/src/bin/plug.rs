//! `plug`: a function is to start, and gets memory. How long until it has it, by size and by the way
//! it is given.
//!
//! A partition at a place that never had one (the guest makes its bookkeeping first), at one that it
//! has prepared, and again at one that was given back; and, for comparison, a stock guest that
//! grows, under Tessera and under QEMU. Results go to `plug.json`, `.md` and `.svg`, and as tables
//! to the terminal.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use benches::comparison::{Comparison, Judge, Merit};
use benches::elastic::{Elastic, Guest, Monitor, Timing, turned};
use benches::output::Output;
use benches::place::Place;
use benches::unit::Unit;
use clap::Parser;
use guest_tests::MIB;
use serde_json::json;

/// For one plug.
const LIMIT: Duration = Duration::from_secs(120);

/// The size that the guest's own time is shown for, in MiB.
const DETAILED: u64 = 1024;

/// The longest that the guest's driver may take for it again, in seconds. A prepared one is to be as
/// fast as that.
const GOAL_S: f64 = 1e-3;

/// What each guest has before, in MiB: a driver that does something for the first time is slow.
const WARM: u64 = 128;

/// How to run the measurement.
#[derive(Parser)]
#[command(about = "Memory for a function that is to start, by size and by way")]
struct Options {
    #[command(flatten)]
    output: Output,
    /// Guests of each kind.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Memory of the function, in MiB.
    #[arg(long, default_value = "128,512,1024", value_delimiter = ',')]
    sizes: Vec<u64>,
    /// Leave QEMU out: in a lab machine with several CPUs its firmware dies one time in ten.
    #[arg(long)]
    no_qemu: bool,
}

/// A way to give memory to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Again,
    Prepared,
    First,
    Stock,
    Qemu,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Again => "a partition again",
            Self::Prepared => "a prepared partition",
            Self::First => "a partition, first time",
            Self::Stock => "Tessera, stock virtio-mem",
            Self::Qemu => "QEMU, stock virtio-mem",
        }
    }
}

/// What one plug took.
#[derive(Clone, Copy, Debug)]
struct Plug {
    /// Seen from the host.
    host: Duration,
    /// Seen from the guest's driver; partitions only.
    guest: Option<Timing>,
}

/// By size in MiB and way.
type Measured = BTreeMap<(u64, Way), Vec<Plug>>;

fn main() -> ExitCode {
    benches::exit("plug", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let base = Guest::staged(&place, 512 * MIB)?;
    let total = (WARM + options.sizes.iter().sum::<u64>()) * MIB;
    let mut measured = Measured::new();
    // The first round warms up: the lab translates each program's code when it first runs.
    for round in 0..=options.runs {
        let mut plugs = Vec::new();
        let sizes = turned(&options.sizes, round);
        partitions(&place, &base, (total, 0), &sizes, &mut plugs)?;
        partitions(&place, &base, (total, total), &sizes, &mut plugs)?;
        for (way, monitor) in [(Way::Stock, Monitor::Tessera), (Way::Qemu, Monitor::Qemu)] {
            if options.no_qemu && way == Way::Qemu {
                continue;
            }
            stock(&place, &base, way, monitor, &sizes, &mut plugs)?;
        }
        for (case, plug) in plugs {
            measured.entry(case).or_default().extend((round > 0).then_some(plug));
        }
        eprintln!("{round} of {} rounds", options.runs);
    }
    report(&measured, options, &base.kernel_release()?)?.publish(&options.output)
}

type Plugs = Vec<((u64, Way), Plug)>;

/// Each size at a place of its own. Without preparation, then the same place again.
fn partitions(
    place: &Place,
    base: &Guest,
    (total, prepared): (u64, u64),
    sizes: &[u64],
    plugs: &mut Plugs,
) -> Result<()> {
    let memory = json!({ "partitions": { "size": total, "prepare": prepared } });
    let guest = Guest { room: 128 * MIB, memory, ..base.clone() };
    let vm = Elastic::boot(Monitor::Tessera, &guest, &place.socket())?;
    let ready =
        format!("until [ $(cat /sys/bus/virtio/devices/*/partitions/prepared) -ge {prepared} ]");
    vm.shell(&format!("{ready}; do usleep 20000; done"))?;
    add(&vm, "warm", WARM)?;
    for &mib in sizes {
        let first = if prepared == 0 { Way::First } else { Way::Prepared };
        plugs.push(((mib, first), add(&vm, &format!("first-{mib}"), mib)?));
        if prepared == 0 {
            let gone = json!({ "id": format!("first-{mib}"), "timeout_ms": 60_000 });
            vm.put("vm.remove-partition", &gone)?.expect(200)?;
            plugs.push(((mib, Way::Again), add(&vm, &format!("again-{mib}"), mib)?));
        }
    }
    Ok(())
}

fn add(vm: &Elastic, id: &str, mib: u64) -> Result<Plug> {
    let host = vm.add_partition(id, mib * MIB, "manual", LIMIT)?;
    Ok(Plug { host, guest: Some(vm.partition_timing("last_plug")?) })
}

fn stock(
    place: &Place,
    base: &Guest,
    way: Way,
    monitor: Monitor,
    sizes: &[u64],
    plugs: &mut Plugs,
) -> Result<()> {
    let room = (WARM + sizes.iter().sum::<u64>()) * MIB;
    let guest = Guest { room, ..base.clone() };
    let vm = Elastic::boot(monitor, &guest, &place.socket())?;
    let mut has = WARM * MIB;
    vm.reach(&guest, has, LIMIT)?;
    for &mib in sizes {
        has += mib * MIB;
        let host = vm.reach(&guest, has, LIMIT)?;
        plugs.push(((mib, way), Plug { host, guest: None }));
    }
    Ok(())
}

fn report(measured: &Measured, options: &Options, release: &str) -> Result<Comparison> {
    let merit = |name: &str, mib: u64, value: fn(&Plug) -> Option<Duration>| {
        let of_size = measured.iter().filter(|((size, _), _)| *size == mib);
        let values = of_size.map(|((_, way), plugs)| {
            let seconds = plugs.iter().filter_map(|plug| Some(value(plug)?.as_secs_f64()));
            (way.name(), seconds.collect())
        });
        Merit::new(name, Unit::Seconds, values)
    };
    let mut merits = Vec::new();
    for &mib in &options.sizes {
        merits.push(merit(&format!("{mib} MiB, seen from the host"), mib, |plug| Some(plug.host))?);
    }
    if options.sizes.contains(&DETAILED) {
        let held = |merit: Merit| {
            let (prepared, again) = (Way::Prepared.name(), Way::Again.name());
            merit.at_most(GOAL_S).judged(prepared, again, 1.0, Judge::Medians)
        };
        let name = format!("{DETAILED} MiB, the guest's driver, request included");
        merits.push(held(merit(&name, DETAILED, |plug| Some(plug.guest?.total))?));
        let name = format!("{DETAILED} MiB, the guest's driver without the request");
        merits.push(held(merit(&name, DETAILED, |plug| Some(plug.guest?.guest()))?));
    }
    Ok(Comparison::new(
        &options.output,
        "plug",
        "A function starts: memory for it",
        format!(
            "{} guests of each kind, in turn; same kernel (Linux {release}), 1 vCPU. Time from the \
             wish until the monitor says that the guest has the memory, and can use it. Each guest \
             had {WARM} MiB before, and starts with another size than the one before it.",
            options.runs
        ),
        merits,
    ))
}
