//! `boot`: how long a guest takes to boot and to power off, and what the monitor costs meanwhile.
//!
//! Tessera against Debian's QEMU, machines `microvm` and `q35`: the same kernel, the same initial
//! file system, in turn (A B C A B C ...), so that a slow minute of the host meets all of them.
//! Results go to `boot.json`, `boot.md`, `boot.svg` and `boot-cost.svg`, and as a table to the
//! terminal.
#![forbid(unsafe_code)]

mod contender;
mod measure;
mod outcome;
mod report;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use benches::facts::{Machine, kernel_release};
use benches::kvm_stats;
use benches::output::{Output, command_line};
use benches::place::Place;
use clap::Parser;

use crate::contender::{Contender, Guest};
use crate::measure::Bench;
use crate::outcome::{Case, Outcome};

const MIB: u64 = 1 << 20;

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
    /// Print Markdown instead of a table for the terminal.
    #[arg(long)]
    markdown: bool,
    /// Measure nothing: write table and figures again from this result file.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let outcome = match &options.from {
        Some(file) => Outcome::read(file)?,
        None => measured(options)?,
    };
    if options.markdown {
        print!("{}", report::markdown(&outcome));
    } else {
        print!("{}", report::text(&outcome));
    }
    if options.quick { Ok(()) } else { write(&outcome, &options.output) }
}

fn measured(options: &Options) -> Result<Outcome> {
    let place = Place::new()?;
    let guest = Guest {
        vmlinux: place.staged("TESSERA_VMLINUX")?,
        initramfs: place.staged("TESSERA_INITRAMFS")?,
        memory_bytes: 128 * MIB,
        vcpus: 1,
    };
    let image = fs::read(&guest.vmlinux).context("cannot read the guest kernel")?;
    let tessera = place.staged("TESSERA_BIN")?;
    let contenders: &[Contender] =
        if options.quick { &Contender::ALL[..1] } else { &Contender::ALL };
    let machine = Machine::read();
    let lab = machine.lab;
    if lab {
        kvm_stats::mount().context("cannot mount debugfs")?;
    }
    let mut cases = Vec::new();
    for &vcpus in &options.vcpus {
        let guest = Guest { vcpus, ..guest.clone() };
        let bench = Bench { place: &place, guest: &guest, tessera: &tessera, lab, contenders };
        cases.push(Case { vcpus, contenders: bench.run(options.runs, options.idle_runs)? });
    }
    Ok(Outcome {
        benchmark: options.output.stem("boot"),
        command: command_line(),
        machine,
        guest_kernel: kernel_release(&image).unwrap_or_default(),
        guest_memory_bytes: guest.memory_bytes,
        tessera_file_bytes: fs::metadata(&tessera)?.len(),
        cases,
    })
}

/// Writes the result and what is drawn from it.
fn write(outcome: &Outcome, output: &Output) -> Result<()> {
    let name = &outcome.benchmark;
    let json = serde_json::to_string_pretty(outcome)? + "\n";
    output.write(&format!("{name}.json"), &json)?;
    output.write(&format!("{name}.md"), &report::markdown(outcome))?;
    let figures = report::figures(outcome)?;
    figures.iter().try_for_each(|(name, svg)| output.write(name, svg))
}
