//! `lab`: a command runs where KVM runs Linux guests.
//!
//! On a machine whose KVM has hardware virtualisation that is here. Elsewhere it is the lab
//! machine: QEMU's software emulation of an AMD CPU with SVM, in which Debian's own kernel loads
//! `kvm-amd`. The lab machine sees the host's files (read-only 9p under a scratch overlay), so any
//! command runs in it unchanged; what it writes is gone at its end, except below shared folders.
//!
//! Debian's generic kernel, not its cloud kernel: only the generic one has 9p, and so the lab needs
//! no disk image to be built and no second process on the host.

mod host;
mod image;
mod job;
mod machine;
mod output;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::setup;

pub(crate) use job::Job;
pub(crate) use machine::Machine;
pub(crate) use output::Sinks;

/// A person who runs a command on the terminal ends it when it takes too long.
const FOREVER: Duration = Duration::MAX;

/// What `cargo xtask lab` can be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Memory of the lab machine, in GiB.
    #[arg(long, default_value_t = 8, value_name = "GIB")]
    memory: u32,
    #[command(flatten)]
    cpu: Cpu,
    /// Give up after so many minutes.
    #[arg(long, default_value_t = 30, value_name = "MINUTES")]
    timeout: u64,
    /// A folder of the host that the command may write to, at the same path; may be repeated.
    #[arg(long = "share", value_name = "DIR")]
    shares: Vec<PathBuf>,
    /// Connect this terminal to the command (end it with its own means, not with Ctrl-C).
    #[arg(long)]
    tty: bool,
    /// Put the paths of all guest artefacts into TESSERA_* variables, as the tests have them.
    #[arg(long)]
    artefacts: bool,
    /// Use the lab machine even where the host's KVM would do.
    #[arg(long)]
    emulate: bool,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// The CPU of the emulated machine.
#[derive(Args, Clone, Copy)]
pub(crate) struct Cpu {
    /// CPUs of the lab machine. With several, its kernel was seen to die of QEMU's emulation.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    cpus: u32,
    /// Have the lab machine's clock count instructions, one a nanosecond: what is measured hardly
    /// varies, but is no time.
    #[arg(long, conflicts_with = "cpus")]
    icount: bool,
}

/// Where guests run on this machine.
pub(crate) enum Lab {
    /// The host's own KVM.
    Host,
    /// The emulated machine.
    Emulated(Machine),
}

impl Lab {
    /// Finds out which one it is; `emulate` asks for the emulated one in any case.
    pub(crate) fn find(cache: &Cache, emulate: bool) -> Result<Self> {
        let facts = host::Facts::read();
        if !emulate && facts.runs_guests() {
            return Ok(Lab::Host);
        }
        Ok(Lab::Emulated(Machine::ensure(cache)?))
    }

    /// With this CPU where it is emulated.
    pub(crate) fn with_cpu(self, cpu: Cpu) -> Self {
        match self {
            Lab::Host => Lab::Host,
            Lab::Emulated(machine) => Lab::Emulated(machine.with_cpu(cpu)),
        }
    }

    /// Runs a job with the terminal as its output, and gives its status.
    pub(crate) fn run(&self, job: &Job) -> Result<u8> {
        match self {
            Lab::Host => job.run_here(None, FOREVER),
            Lab::Emulated(machine) => machine.run(job, Sinks::terminal()),
        }
    }

    /// Runs a job with other outputs and a time-out, and gives its status.
    pub(crate) fn run_into(&self, job: &Job, sinks: Sinks, timeout: Duration) -> Result<u8> {
        match self {
            Lab::Host => job.run_here(Some(sinks), timeout),
            Lab::Emulated(machine) => machine.clone().with_timeout(timeout).run(job, sinks),
        }
    }
}

/// Builds what the lab machine needs, where it is needed.
pub(crate) fn prepare(cache: &Cache) -> Result<()> {
    setup::packages()?;
    match Lab::find(cache, false)? {
        Lab::Host => eprintln!("    guests run on this machine's own KVM"),
        Lab::Emulated(_) => eprintln!("    guests run in the lab machine: no usable KVM here"),
    }
    Ok(())
}

/// Runs the command and gives its status back.
pub(crate) fn run(cache: &Cache, options: Options) -> Result<ExitCode> {
    let mut job = Job::new(options.command)?.with_shares(options.shares)?.with_tty(options.tty);
    if options.artefacts {
        job = Artefacts::ensure(cache)?.given_to(job);
    }
    let lab = match Lab::find(cache, options.emulate)?.with_cpu(options.cpu) {
        Lab::Host => Lab::Host,
        Lab::Emulated(machine) => Lab::Emulated(
            machine
                .with_memory(options.memory)
                .with_timeout(Duration::from_secs(options.timeout * 60)),
        ),
    };
    Ok(ExitCode::from(lab.run(&job)?))
}
