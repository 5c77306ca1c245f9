//! The runs themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::place::Place;
use benches::process::Process;
use benches::samples::Series;
use benches::smaps::{self, MemoryUse};
use benches::{api, kvm_stats, scrub};
use serde_json::Value;

use crate::contender::{Contender, Guest, INIT_MARKER, PROMPT, Task, shown};
use crate::outcome::{Boot, Idle, Measured};

/// Far above any boot, even in the lab on a busy host.
const LIMIT: Duration = Duration::from_secs(180);

/// How long an idle guest is left alone before its memory is looked at.
const SETTLE: Duration = Duration::from_secs(1);

/// How much memory is overwritten before a run in the lab, in sizes of the guest: what the run
/// before it had, and as much again for what the kernel keeps apart.
const SCRUBBED_GUESTS: u64 = 4;

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
    pub(crate) fn run(&self, runs: u32, idle_runs: u32) -> Result<Vec<Measured>> {
        let mut series: Vec<Series> = self.contenders.iter().map(|_| Series::default()).collect();
        for round in 0..=runs {
            for (contender, series) in self.contenders.iter().zip(&mut series) {
                let mut ignored = Series::default();
                self.boot(*contender, if round == 0 { &mut ignored } else { series })?;
            }
            eprintln!("{} vCPU, boots: {round} of {runs} rounds", self.guest.vcpus);
        }
        let mut measured = Vec::new();
        for (contender, mut series) in self.contenders.iter().zip(series) {
            let boot = Boot {
                to_init_s: series.take("to_init_s")?,
                to_exit_s: series.take("to_exit_s")?,
                cpu_to_init_s: series.take("cpu_to_init_s")?,
                cpu_to_exit_s: series.take("cpu_to_exit_s")?,
            };
            measured.push(Measured {
                name: contender.name().to_owned(),
                version: self.version(*contender)?,
                command: shown(&self.words(*contender, Task::PowerOff, None)),
                boot,
                idle: self.idle(*contender, idle_runs)?,
            });
        }
        Ok(measured)
    }

    fn words(&self, contender: Contender, task: Task, socket: Option<&Path>) -> Vec<String> {
        contender.command(self.guest, task, self.tessera, socket)
    }

    /// One boot that powers off.
    fn boot(&self, contender: Contender, series: &mut Series) -> Result<()> {
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
        series.add("to_init_s", init.as_secs_f64());
        series.add("to_exit_s", ended.after.as_secs_f64());
        series.add("cpu_to_init_s", cpu_to_init.as_secs_f64());
        series.add("cpu_to_exit_s", ended.cpu.as_secs_f64());
        Ok(())
    }

    /// Guests that wait at their prompt and are then killed.
    fn idle(&self, contender: Contender, runs: u32) -> Result<Idle> {
        let mut series = Series::default();
        let (mut kvm, mut counters) = (BTreeMap::new(), Value::Null);
        for _ in 0..runs {
            let socket = self.place.socket();
            let words = self.words(contender, Task::Idle, Some(&socket));
            let failed = || format!("{} failed: {}", contender.name(), shown(&words));
            let mut process = Process::start(&mut command_of(&words)).with_context(failed)?;
            process.wait_for(PROMPT, LIMIT).with_context(failed)?;
            kvm = kvm_stats::of_process(process.pid());
            if contender == Contender::Tessera {
                counters = api::request(&socket, "GET", "vm.counters")
                    .context("vm.counters gives no answer")?;
            }
            thread::sleep(SETTLE);
            let memory = smaps::memory_use(process.pid(), self.guest.memory_bytes)?;
            add_memory(&mut series, &memory);
            let threads = fs::read_dir(format!("/proc/{}/task", process.pid()))?.count();
            series.add("threads", threads as f64);
        }
        Ok(Idle {
            own_memory_bytes: series.take("own_memory_bytes")?,
            own_private_bytes: series.take("own_private_bytes")?,
            guest_resident_bytes: series.take("guest_resident_bytes")?,
            threads: series.take("threads")?,
            kvm,
            counters,
        })
    }

    /// The first line that the program says about its version.
    fn version(&self, contender: Contender) -> Result<String> {
        let program = self.words(contender, Task::PowerOff, None).swap_remove(0);
        let output = Command::new(&program)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot start {program}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

fn add_memory(series: &mut Series, memory: &MemoryUse) {
    series.add("own_memory_bytes", memory.own as f64);
    series.add("own_private_bytes", memory.own_private as f64);
    series.add("guest_resident_bytes", memory.guest as f64);
}

fn command_of(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}
