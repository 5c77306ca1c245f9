//! `boot`: how long a guest takes to boot and to power off, and what the monitor costs meanwhile.
//!
//! Tessera against Debian's QEMU, machines `microvm` and `q35`: the same kernel, the same initial
//! file system, in turn (A B C A B C ...), so that a slow minute of the host meets all of them.
//! Results go to `boot.json`, `.md` and `.svg`, and as tables to the terminal.
#![forbid(unsafe_code)]

mod contender;
mod measure;
mod report;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use benches::comparison::Comparison;
use benches::facts::{Machine, kernel_release};
use benches::kvm_stats;
use benches::output::Output;
use benches::place::Place;
use benches::unit::Unit;
use clap::Parser;
use guest_tests::MIB;

use crate::contender::{Contender, Guest};
use crate::measure::Bench;

/// What the project promises of its binary.
const FILE_GOAL: f64 = (4 * MIB) as f64;

/// How to run the measurement.
#[derive(Parser)]
#[command(about = "Time from exec to init and to power off, and the monitor's own cost")]
struct Options {
    #[command(flatten)]
    output: Output,
    /// Boots of each contender.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Idle guests of each contender whose memory and exits are looked at.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    idle_runs: u32,
    /// vCPUs of the guests; several numbers make several cases.
    #[arg(long, default_value = "1", value_delimiter = ',')]
    vcpus: Vec<u32>,
    /// Only Tessera: to look for changes quickly. Writes no files.
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    benches::exit("boot", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let place = Place::new()?;
    let guest = Guest {
        vmlinux: place.staged("TESSERA_VMLINUX")?,
        initramfs: place.staged("TESSERA_INITRAMFS")?,
        memory_bytes: 128 * MIB,
        vcpus: 1,
    };
    let tessera = place.staged("TESSERA_BIN")?;
    let contenders: &[Contender] =
        if options.quick { &Contender::ALL[..1] } else { &Contender::ALL };
    let lab = Machine::read().lab;
    if lab {
        kvm_stats::mount().context("cannot mount debugfs")?;
    }
    let (mut merits, mut commands) = (Vec::new(), String::new());
    for &vcpus in &options.vcpus {
        let guest = Guest { vcpus, ..guest.clone() };
        let bench = Bench { place: &place, guest: &guest, tessera: &tessera, lab, contenders };
        merits.extend(report::merits(vcpus, bench.run(options.runs, options.idle_runs)?)?);
        if commands.is_empty() {
            commands = bench.command_lines()?;
        }
    }
    let how = format!(
        "Medians of {} boots and {} idle guests each, in turn; same kernel (Linux {}), same initial \
         file system, same kernel command line, {} MiB. Tessera's binary has {} (goal: {}).",
        options.runs,
        options.idle_runs,
        kernel_release(&guest.vmlinux)?,
        guest.memory_bytes / MIB,
        Unit::Bytes.format(fs::metadata(&tessera)?.len() as f64),
        Unit::Bytes.format(FILE_GOAL)
    );
    let title = "Boot and power off: Tessera against QEMU";
    let footer = format!("\nCommand lines:\n\n```sh\n{commands}```\n");
    let comparison = Comparison::new(&options.output, "boot", title, how, merits);
    if options.quick {
        print!("{}", comparison.text());
        return Ok(());
    }
    Comparison { footer, ..comparison }.publish(&options.output)
}
