//! `cargo xtask`: the one tool of this repository. What CI runs is what a person runs.
//!
//! Everything that is built outside the workspace (guest kernels, disk images, the lab machine)
//! lives in a [`cache::Cache`] outside the checkout, each under the hash of what it was made from.
#![forbid(unsafe_code)]

mod artefacts;
mod bench;
mod cache;
mod cargo;
mod check;
mod cpio;
mod demo;
mod guest_programs;
mod initramfs;
mod kconfig;
mod kernel;
mod lab;
mod libtest;
mod process;
mod rootfs;
mod selftest;
mod series;
mod setup;
mod stock_kernel;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::cache::Cache;

/// Build, test and try Tessera.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the missing Debian packages and build every cached artefact.
    Setup,
    /// Build the guest kernel and print the path of its vmlinux.
    Kernel {
        /// Instead, build and boot a small kernel after each patch of the series, from PATCH on
        /// (0011, say), and in each configuration of all of them: three minutes each.
        #[arg(long, value_name = "PATCH", num_args = 0..=1, default_missing_value = "")]
        series: Option<String>,
        /// Instead, build the kernel that checks itself (KASAN, lockdep, DEBUG_VM and more).
        #[arg(long, conflicts_with = "series")]
        debug: bool,
        /// Instead, build a kernel without our patches, which ours is compared with.
        #[arg(long, conflicts_with_all = ["series", "debug"])]
        plain: bool,
    },
    /// Run a command where KVM runs Linux guests: here, or in an emulated machine.
    Lab(lab::Options),
    /// Run every check and every test; FILTER picks tests by name.
    Test(test::Options),
    /// Check format, lints, documentation and size limits.
    Check,
    /// Show functions come and go in one VM, and their memory with them.
    Demo,
    /// Run the benchmark programs; NAME picks one, and takes options of its own after `--`.
    Bench(bench::Options),
}

/// Runs the command and gives the status of the process: an error is 1, except that `lab` gives
/// back the status of what it ran.
fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let cache = Cache::open()?;
    match command {
        Command::Setup => setup::everything(&cache)?,
        Command::Kernel { series: Some(first), .. } => series::check(&cache, &first)?,
        Command::Kernel { debug: true, .. } => {
            println!("{}", kernel::ensure_debug(&cache)?.display())
        }
        Command::Kernel { plain: true, .. } => {
            println!("{}", kernel::ensure_plain(&cache)?.display())
        }
        Command::Kernel { .. } => println!("{}", kernel::ensure(&cache)?.vmlinux.display()),
        Command::Lab(options) => return lab::run(&cache, options),
        Command::Test(options) => return test::run(&cache, &options),
        Command::Check => return check::run(),
        Command::Demo => demo::run(&cache)?,
        Command::Bench(options) => bench::run(&cache, &options)?,
    }
    Ok(ExitCode::SUCCESS)
}
