//! `virtio_mem`: a stock guest grows and shrinks, under Tessera and under Debian's QEMU.
//!
//! Idle: the guest has nothing in the memory that comes and goes. Loaded: eight hogs, whose pages
//! interleave, fill it; one is killed, and an eighth is asked back, so that the guest has to move
//! what the others have in the way. Same kernel, same initial file system, monitors in turn.
//! Results go to `virtio_mem.json`, `.md` and `.svg`, and as tables to the terminal.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use benches::comparison::{Comparison, Merit};
use benches::elastic::{Elastic, Guest, Monitor, turned};
use benches::hogs::Hogs;
use benches::output::Output;
use benches::place::Place;
use benches::unit::Unit;
use clap::Parser;
use guest_tests::MIB;

/// The hogs of a loaded guest: one of them goes.
const HOGS: u64 = 8;

/// What a hog leaves of its share, for its page tables and its program.
const SLACK: u64 = 8 * MIB;

/// For one resize in the lab. A stock guest whose first attempt fails waits 50 s.
const LIMIT: Duration = Duration::from_secs(240);

const MONITORS: [(Monitor, &str); 2] = [(Monitor::Tessera, "Tessera"), (Monitor::Qemu, "QEMU q35")];

/// How to run the measurement.
#[derive(Parser)]
#[command(about = "Growing and shrinking a stock guest, against QEMU")]
struct Options {
    #[command(flatten)]
    output: Output,
    /// Guests of each monitor.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Sizes in MiB: how much comes and goes.
    #[arg(long, default_value = "512,1024,2048,4096", value_delimiter = ',')]
    sizes: Vec<u64>,
}

/// What is done to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Grow,
    Shrink,
    ShrinkLoaded,
}

impl Step {
    fn describe(self, mib: u64) -> String {
        match self {
            Step::Grow => format!("Grow by {mib} MiB"),
            Step::Shrink => format!("Shrink by {mib} MiB, nothing in use"),
            Step::ShrinkLoaded => {
                format!("Shrink by {} MiB of {mib} MiB in use by {HOGS} hogs", mib / HOGS)
            }
        }
    }
}

/// Seconds by size in MiB, what was done, and monitor.
type Measured = BTreeMap<(u64, Step, usize), Vec<f64>>;

fn main() -> ExitCode {
    benches::exit("virtio_mem", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let most = options.sizes.iter().max().context("no sizes")?;
    let guest = Guest { room: most * MIB, ..Guest::staged(&place, 512 * MIB)? };
    let mut measured = Measured::new();
    // The first round warms up: the lab translates each program's code when it first runs.
    for round in 0..=options.runs {
        for (index, (monitor, name)) in MONITORS.into_iter().enumerate() {
            let vm = Elastic::boot(monitor, &guest, &place.socket())?;
            for mib in turned(&options.sizes, round) {
                let mut note = |step, time: Duration| {
                    let values: &mut Vec<f64> = measured.entry((mib, step, index)).or_default();
                    values.extend((round > 0).then_some(time.as_secs_f64()));
                };
                measure(&vm, &guest, mib * MIB, &mut note).with_context(|| name.to_owned())?;
            }
        }
        eprintln!("{round} of {} rounds", options.runs);
    }
    report(measured, options, &guest.kernel_release()?)?.publish(&options.output)
}

/// Grows and shrinks an idle guest by `size`, then a loaded one.
fn measure(
    vm: &Elastic,
    guest: &Guest,
    size: u64,
    note: &mut dyn FnMut(Step, Duration),
) -> Result<()> {
    note(Step::Grow, vm.reach(guest, size, LIMIT)?);
    note(Step::Shrink, vm.reach(guest, 0, LIMIT)?);
    vm.reach(guest, size, LIMIT)?;
    let share = size / HOGS;
    let each = (share - SLACK) / MIB;
    let mut hogs = Hogs::start(vm, HOGS, each, "")?;
    hogs.kill(3)?;
    note(Step::ShrinkLoaded, vm.reach(guest, size - share, LIMIT)?);
    hogs.check()?;
    hogs.end()?;
    vm.reach(guest, 0, LIMIT)?;
    Ok(())
}

fn report(measured: Measured, options: &Options, release: &str) -> Result<Comparison> {
    let mut cases = BTreeMap::<_, Vec<_>>::new();
    for ((mib, step, index), values) in measured {
        cases.entry((mib, step)).or_default().push((MONITORS[index].1, values));
    }
    let mut merits = Vec::new();
    for ((mib, step), values) in cases {
        let merit = Merit::new(&step.describe(mib), Unit::Seconds, values)?;
        merits.push(merit.promised(MONITORS[1].1, 1.0));
    }
    Ok(Comparison::new(
        &options.output,
        "virtio_mem",
        "A stock guest grows and shrinks",
        format!(
            "Medians of {} guests each, in turn; same kernel (Linux {release}), 1 vCPU, 512 MiB \
             at boot, blocks of 2 MiB. Time from the wish until the monitor says that the guest has \
             the size.",
            options.runs
        ),
        merits,
    ))
}
