//! `faults`: what a page fault costs in a partition, outside of one, and in a guest that has none.
//!
//! One, two and four threads of a function touch fresh memory (`tests/guest/faults.c`): in a
//! partition and beside it in the same guest, in a guest without partitions, where the hooks of our
//! kernel are off, and with `TESSERA_PLAIN_VMLINUX`, as `cargo xtask bench` has it, in a kernel
//! without our patches. All guests are up at the same time and each round goes through all of them,
//! there and back in turn, so that a slow minute of the machine meets neighbours alike. What is
//! promised is judged by the ratios of neighbours, not by medians of times that spread more than
//! the promise allows. `--cpus` gives the lab machine CPUs for as many vCPUs; with two of each
//! QEMU's emulation was seen to hang, and not with `--vcpus 2` on one.
//! Results go to `faults.json`, `.md` and `.svg`, and as tables to the terminal.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use benches::comparison::{Comparison, Judge, Merit};
use benches::elastic::{Elastic, Guest, Monitor};
use benches::facts::Machine;
use benches::output::Output;
use benches::place::Place;
use benches::samples::Samples;
use benches::unit::Unit;
use clap::Parser;
use guest_tests::MIB;
use serde_json::json;

const THREADS: [u64; 3] = [1, 2, 4];

/// The most vCPUs that are of use to so many threads.
const MOST_VCPUS: u32 = 4;

/// How much longer faults may take than where they are compared with.
const GOAL: f64 = 1.02;

/// For the guest to take the partition.
const LIMIT: Duration = Duration::from_secs(120);

/// How to run the measurement.
#[derive(Parser)]
#[command(about = "Page faults in a partition and outside")]
struct Options {
    #[command(flatten)]
    output: Output,
    /// How often each guest is booted.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How often each set of threads touches its memory in each guest.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// vCPUs of the guests; by default as many as the machine has CPUs, at most 4.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Option<u32>,
    /// Memory that the threads touch together, in MiB.
    #[arg(long, default_value_t = 256)]
    size: u64,
    /// A kernel without partitions to compare with.
    #[arg(long, value_name = "FILE", env = "TESSERA_PLAIN_VMLINUX")]
    plain_vmlinux: Option<PathBuf>,
}

/// Where a page comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Partition,
    Beside,
    NoPartitions,
    PlainKernel,
}

impl Options {
    fn vcpus(&self) -> u32 {
        self.vcpus.unwrap_or_else(|| Machine::read().cpus.clamp(1, MOST_VCPUS))
    }
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Partition => "in a partition",
            Self::Beside => "beside it, from the buddy",
            Self::NoPartitions => "a guest without partitions",
            Self::PlainKernel => "a kernel without our patches",
        }
    }

    fn cgroup(self) -> &'static str {
        if self == Self::Partition { "fn" } else { "other" }
    }
}

/// Seconds by threads, size of the pages, and source.
type Measured = BTreeMap<(u64, bool, Source), Vec<f64>>;

fn main() -> ExitCode {
    benches::exit("faults", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let room = 2 * options.size * MIB;
    let vcpus = options.vcpus();
    let guest = Guest { room: 128 * MIB, vcpus, ..Guest::staged(&place, room + 256 * MIB)? };
    // Of the rest of a memory block Linux makes none.
    let region = room.next_multiple_of(128 * MIB);
    let partitions = json!({ "partitions": { "size": region, "prepare": region } });
    let with = Guest { memory: partitions, ..guest.clone() };
    let plain = options.plain_vmlinux.as_ref().map(|path| {
        let vmlinux = path.clone();
        Guest { vmlinux, ..guest.clone() }
    });
    let mut measured = Measured::new();
    for round in 0..options.runs {
        // A monitor that has been reached needs its socket's name no more.
        let boot = |guest| Elastic::boot(Monitor::Tessera, guest, &place.socket());
        let (with, without) = (boot(&with)?, boot(&guest)?);
        let plain = plain.as_ref().map(boot).transpose()?;
        let mut sources = vec![
            (Source::Partition, &with),
            (Source::Beside, &with),
            (Source::NoPartitions, &without),
        ];
        sources.extend(plain.as_ref().map(|plain| (Source::PlainKernel, plain)));
        // Where its pages happen to be slows all rounds of a guest alike: it counts once.
        for (case, values) in measure(&sources, options)? {
            measured.entry(case).or_default().push(Samples::new(values)?.median());
        }
        eprintln!("{} of {} rounds", round + 1, options.runs);
    }
    report(measured, options, &guest.kernel_release()?)?.publish(&options.output)
}

/// Has each of `sources`, a guest each, give pages to each number of threads, in turn.
fn measure(sources: &[(Source, &Elastic)], options: &Options) -> Result<Measured> {
    let mut measured = Measured::new();
    for (source, vm) in sources {
        let cgroup = source.cgroup();
        vm.shell(&format!(
            "cd /sys/fs/cgroup; echo +memory > cgroup.subtree_control; mkdir {cgroup}; cd /"
        ))?;
        if *source == Source::Partition {
            vm.add_partition(cgroup, 2 * options.size * MIB, "manual", LIMIT)?;
            vm.shell(&format!("echo auto > /sys/fs/cgroup/{cgroup}/memory.partition"))?;
        }
    }
    for (threads, huge) in THREADS.into_iter().flat_map(|n| [(n, false), (n, true)]) {
        // The first round warms up: page tables, and what the lab has to translate.
        for round in 0..=options.rounds {
            let mut turn: Vec<_> = sources.iter().collect();
            if round % 2 == 1 {
                turn.reverse();
            }
            for (source, vm) in turn {
                let time = touch(vm, *source, (threads, huge), options)?;
                if round > 0 {
                    measured.entry((threads, huge, *source)).or_default().push(time);
                }
            }
        }
    }
    Ok(measured)
}

/// The median of three touches, in seconds: a process of its own for each round, so that no source
/// has luckier addresses than another.
fn touch(
    vm: &Elastic,
    source: Source,
    (threads, huge): (u64, bool),
    options: &Options,
) -> Result<f64> {
    let cgroup = source.cgroup();
    let (each, thp) = (options.size / threads, u8::from(huge));
    let text =
        vm.shell(&format!("faults {threads} {each} 3 cgroup=/sys/fs/cgroup/{cgroup} thp={thp}"))?;
    nanos(&text).map(|nanos| nanos as f64 / 1e9).with_context(|| format!("faults said {text:?}"))
}

/// The median of lines "faults NS".
fn nanos(text: &str) -> Option<u64> {
    let lines = text.lines().map(|line| line.trim().strip_prefix("faults ")?.parse().ok());
    let mut all: Vec<u64> = lines.collect::<Option<_>>()?;
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

fn report(measured: Measured, options: &Options, release: &str) -> Result<Comparison> {
    let mut cases = BTreeMap::<_, Vec<_>>::new();
    for ((threads, huge, source), values) in measured {
        cases.entry((threads, huge)).or_default().push((source.name(), values));
    }
    let [inside, beside, plain] =
        [Source::Partition, Source::Beside, Source::PlainKernel].map(Source::name);
    let mut merits = Vec::new();
    for ((threads, huge), values) in cases {
        let pages = if huge { "2 MiB" } else { "4 KiB" };
        let plural = if threads == 1 { "" } else { "s" };
        let title = format!("{} MiB touched by {threads} thread{plural}, {pages}", options.size);
        let merit = Merit::new(&title, Unit::Seconds, values)?
            .judged(inside, beside, GOAL, Judge::Rounds)
            .judged(beside, plain, GOAL, Judge::Rounds);
        merits.push(merit);
    }
    Ok(Comparison::new(
        &options.output,
        "faults",
        "Page faults in a partition and outside",
        format!(
            "{} boots of each guest and the median of {} rounds in each, in turn; same kernel (Linux \
             {release}), vCPUs: {}; time for all pages. Goals are held against the median of the \
             ratios of guests that ran at the same time, beside it where that lies 19 times in 20.",
            options.runs,
            options.rounds,
            options.vcpus()
        ),
        merits,
    ))
}

#[cfg(test)]
mod tests {
    use benches::comparison::Verdict;

    use super::*;

    #[test]
    fn a_process_outside_is_held_against_a_kernel_without_our_patches() {
        // The machine is twice as slow in the second half.
        let times = |source, factor: f64| {
            let slow = |round| if round < 10 { 1.0 } else { 2.0 };
            ((1, false, source), (0..20).map(|round| factor * slow(round)).collect())
        };
        let measured = Measured::from([
            times(Source::Partition, 1.01),
            times(Source::Beside, 1.05),
            times(Source::PlainKernel, 1.0),
        ]);
        let options = Options::parse_from(["faults", "--vcpus", "2"]);
        let report = report(measured, &options, "6.12").unwrap();
        assert!(report.how.contains("vCPUs: 2"));
        assert_eq!(report.merits[0].verdicts(), [Verdict::Met, Verdict::NotMet]);
    }

    #[test]
    fn the_median_of_all_rounds_counts_and_nothing_else_may_be_said() {
        assert_eq!(nanos("faults 30\r\nfaults 10\r\nfaults 20"), Some(20));
        assert_eq!(nanos("faults 30\npage 7 was not zero"), None);
        assert_eq!(nanos(""), None);
    }
}
