//! The runs themselves.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::place::Place;
use benches::process::Process;
use benches::{kvm_stats, scrub, smaps};

use crate::contender::{Contender, Guest, INIT_MARKER, PROMPT, Task, shown};
use crate::report::{
    CPU_TO_EXIT, CPU_TO_INIT, GUEST_MEMORY, KVM_COUNTERS, Measured, OWN_MEMORY, OWN_PRIVATE,
    THREADS, TO_EXIT, TO_INIT,
};

/// Far above any boot, even in the lab on a busy host.
const LIMIT: Duration = Duration::from_secs(180);

/// How long an idle guest is left alone before its memory is looked at.
const SETTLE: Duration = Duration::from_secs(1);

/// How much memory is overwritten before a run in the lab, in sizes of the guest: what the run
/// before it had, and as much again for what the kernel keeps apart.
const SCRUBBED_GUESTS: u64 = 4;

/// What one run has measured, by name.
type Values = Vec<(&'static str, f64)>;

/// One size of guest, to be booted by all contenders.
pub(crate) struct Bench<'a> {
    pub(crate) place: &'a Place,
    pub(crate) guest: &'a Guest,
    pub(crate) tessera: &'a Path,
    pub(crate) lab: bool,
    pub(crate) contenders: &'a [Contender],
}

impl Bench<'_> {
    /// Runs all contenders in turn, once to warm up and then `runs` times, then the idle guests.
    pub(crate) fn run(&self, runs: u32, idle_runs: u32) -> Result<Measured> {
        let mut measured = Measured::new();
        let mut note = |contender, values: Values| {
            for (name, value) in values {
                measured.entry((name, contender)).or_default().push(value);
            }
        };
        for round in 0..=runs {
            for &contender in self.contenders {
                let values = self.boot(contender)?;
                note(contender, if round > 0 { values } else { Values::new() });
            }
            eprintln!("{} vCPU, boots: {round} of {runs} rounds", self.guest.vcpus);
        }
        for &contender in self.contenders {
            for _ in 0..idle_runs {
                note(contender, self.idle(contender)?);
            }
        }
        Ok(measured)
    }

    /// How the contenders are started, for readers, each below its version.
    pub(crate) fn command_lines(&self) -> Result<String> {
        let lines = self.contenders.iter().map(|&contender| {
            let words = self.words(contender, Task::PowerOff, None);
            Ok(format!("# {}, {}\n{}\n", contender.name(), version(&words[0])?, shown(&words)))
        });
        lines.collect()
    }

    fn words(&self, contender: Contender, task: Task, socket: Option<&Path>) -> Vec<String> {
        contender.command(self.guest, task, self.tessera, socket)
    }

    /// One boot that powers off.
    fn boot(&self, contender: Contender) -> Result<Values> {
        let words = self.words(contender, Task::PowerOff, None);
        let failed = || format!("{} failed: {}", contender.name(), shown(&words));
        if self.lab {
            scrub::overwrite_free_memory(self.guest.memory_bytes * SCRUBBED_GUESTS);
        }
        let mut process = Process::start(&mut command_of(&words)).with_context(failed)?;
        let init = process.wait_for(INIT_MARKER, LIMIT).with_context(failed)?;
        let cpu_to_init = process.cpu_time()?;
        let ended = process.wait_for_end(LIMIT).with_context(failed)?;
        if !ended.status.success() {
            bail!("{}: {}, with the output:\n{}", failed(), ended.status, ended.output);
        }
        Ok(vec![
            (TO_INIT, init.as_secs_f64()),
            (TO_EXIT, ended.after.as_secs_f64()),
            (CPU_TO_INIT, cpu_to_init.as_secs_f64()),
            (CPU_TO_EXIT, ended.cpu.as_secs_f64()),
        ])
    }

    /// A guest that waits at its prompt, with a control socket, and is then killed.
    fn idle(&self, contender: Contender) -> Result<Values> {
        let words = self.words(contender, Task::Idle, Some(&self.place.socket()));
        let failed = || format!("{} failed: {}", contender.name(), shown(&words));
        let mut process = Process::start(&mut command_of(&words)).with_context(failed)?;
        process.wait_for(PROMPT, LIMIT).with_context(failed)?;
        let kvm = kvm_stats::of_process(process.pid());
        thread::sleep(SETTLE);
        let memory = smaps::memory_use(process.pid(), self.guest.memory_bytes)?;
        let threads = guest_tests::Process::from(process.pid()).threads()?;
        let mut values = vec![
            (OWN_MEMORY, memory.own as f64),
            (OWN_PRIVATE, memory.own_private as f64),
            (GUEST_MEMORY, memory.guest as f64),
            (THREADS, threads.len() as f64),
        ];
        if !kvm.is_empty() {
            let count = |counter| kvm.get(counter).copied().unwrap_or(0) as f64;
            values.extend(KVM_COUNTERS.map(|(counter, name)| (name, count(counter))));
        }
        Ok(values)
    }
}

/// The first line that the program says about its version.
fn version(program: &str) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn command_of(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}
