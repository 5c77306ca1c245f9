//! Guest tests: their programs run in labs, two side by side, one for each core.
//!
//! A program's tests are dealt out in small groups, each of which gets a fresh lab, so no lab has
//! much more to do than the other. What a test that kills its lab leaves over runs in another one.
//!
//! With `--long`, tests of what functions do in partitions run once more, with a guest kernel that
//! checks itself.
//!
//! An emulated lab can stop for a reason of its own (its heartbeat is against the one that is known).
//! So the test that was running gets a second lab; one that stops both has failed.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::artefacts::Artefacts;
use crate::cache::Cache;
use crate::cargo::{self, Program};
use crate::kernel;
use crate::lab::{Job, Lab, Sinks};
use crate::libtest::{self, Tally};
use crate::process::{output, step};
use crate::test::Options;

/// A lab takes five seconds to start; a group of tests is worth that.
const GROUP: usize = 6;

/// Labs at a time: one for each core of the smallest machine, 8 GiB each.
const LABS: usize = 2;

/// For one group; a guest test takes seconds, so a group that takes this long hangs.
const TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The same where tests are to take their time.
const LONG_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Programs that run once more with the debug kernel.
const DEBUGGED: &[&str] = &["behave", "partitions", "stress"];

/// What the names of tests begin with that need it.
const DEBUG_ONLY: &str = "with_the_debug_kernel_";

/// How many times as long the debug kernel may take.
const DEBUG_SCALE: &str = "6";

/// Some tests of one program.
#[derive(Clone)]
struct Group {
    label: String,
    path: PathBuf,
    directory: PathBuf,
    tests: Vec<String>,
    /// Our guest kernel, unless it is the usual one.
    kernel: Option<PathBuf>,
    /// The one of them whose first lab stopped.
    again: Option<String>,
}

impl Group {
    /// What is to run in another lab after this one stopped: the test that was running, unless it
    /// has had its second lab, and those after it. `None` when there is nothing left.
    fn rest(&self, output: &str) -> Option<Self> {
        let running = libtest::running(output).filter(|name| self.again.as_deref() != Some(*name));
        let again = running.map(str::to_owned);
        let mut tests: Vec<String> = again.iter().cloned().collect();
        tests.extend(libtest::not_reached(&self.tests, output));
        // A program that reached no test at all will not do better.
        let any = !tests.is_empty() && tests != self.tests || again.is_some();
        any.then(|| Self { tests, again, ..self.clone() })
    }
}

/// What all labs need.
struct Bench {
    lab: Lab,
    artefacts: Artefacts,
    tessera: PathBuf,
    memctl: PathBuf,
    long: bool,
    start: Instant,
    queue: Mutex<VecDeque<Group>>,
}

/// Runs the tests of these programs that were asked for.
pub(super) fn run(cache: &Cache, programs: &[Program], options: &Options) -> Result<Tally> {
    let mut queue = VecDeque::new();
    for program in programs {
        queue.extend(groups(program, &options.filter)?);
    }
    if queue.is_empty() {
        return Ok(Tally::default());
    }
    if options.long {
        let debugged = debugged(cache, &queue)?;
        for group in &mut queue {
            group.tests.retain(|name| !name.starts_with(DEBUG_ONLY));
        }
        queue.retain(|group| !group.tests.is_empty());
        queue.extend(debugged);
    }
    let artefacts = Artefacts::ensure(cache)?;
    let lab = Lab::find(cache, false)?;
    step("building tessera for the guest tests");
    let tessera = cargo::release_binary("vmm", "tessera")?;
    let memctl = cargo::release_binary("memctl", "memctl")?;
    step(&format!("guest tests: {} groups of up to {GROUP}", queue.len()));
    let (start, long) = (Instant::now(), options.long);
    let bench = Bench { lab, artefacts, tessera, memctl, long, start, queue: queue.into() };
    let mut total = Tally::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..LABS).map(|_| scope.spawn(|| bench.work())).collect();
        for worker in workers {
            match worker.join() {
                Ok(tally) => total.add(tally),
                Err(_) => total.fail("a thread that drives a lab panicked".to_owned()),
            }
        }
    });
    Ok(total)
}

fn groups(program: &Program, filter: &str) -> Result<Vec<Group>> {
    let list = output(Command::new(&program.path).args(["--list", "--format", "terse"]))
        .with_context(|| format!("cannot list the tests of {}", program.label()))?;
    let mut names = libtest::listed(&list);
    names.retain(|name| program.name == filter || name.contains(filter));
    let groups = names.chunks(GROUP).map(|tests| Group {
        label: program.name.clone(),
        path: program.path.clone(),
        directory: program.directory.clone(),
        tests: tests.to_vec(),
        kernel: None,
        again: None,
    });
    Ok(groups.collect())
}

/// Those of the groups that run once more, with the debug kernel.
fn debugged(cache: &Cache, groups: &VecDeque<Group>) -> Result<Vec<Group>> {
    let chosen = groups.iter().filter(|group| DEBUGGED.contains(&group.label.as_str()));
    let debugged = |group: &Group| {
        let label = format!("{} with the debug kernel", group.label);
        Ok(Group { label, kernel: Some(kernel::ensure_debug(cache)?), ..group.clone() })
    };
    chosen.map(debugged).collect()
}

impl Bench {
    fn work(&self) -> Tally {
        let mut total = Tally::default();
        loop {
            // The queue is whole whatever happened to the thread that held the lock.
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(group) => total.add(self.group(&group)),
                None => return total,
            }
        }
    }

    fn group(&self, group: &Group) -> Tally {
        let record = Record::default();
        let result = self.job(group).and_then(|job| {
            let lines = Lines::new(&group.label, self.start, record.clone());
            let err = Lines::new(&group.label, self.start, Record::default());
            let sinks = Sinks { out: Box::new(lines), err: Box::new(err) };
            let limit = if self.long { LONG_TIMEOUT } else { TIMEOUT };
            self.lab.run_into(&job, sinks, limit)
        });
        let success = match &result {
            Ok(status) => *status == 0,
            Err(error) => {
                eprintln!("{}: {error:#}", group.label);
                false
            }
        };
        let output = record.text();
        let rest = result.is_err().then(|| group.rest(&output)).flatten();
        let again = rest.as_ref().and_then(|rest| rest.again.clone());
        if let Some(rest) = rest {
            self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(rest);
        }
        match again {
            Some(name) => {
                let name = format!("{}: {name}", group.label);
                eprintln!("{name} gets another lab");
                Tally { second_labs: vec![name], ..libtest::ended(&group.label, &output) }
            }
            None => libtest::tally(&group.label, &output, success),
        }
    }

    fn job(&self, group: &Group) -> Result<Job> {
        let mut command = vec![group.path.clone().into()];
        command.extend(["--exact", "--test-threads=1"].map(Into::into));
        command.extend(self.long.then(|| "--include-ignored".into()));
        command.extend(group.tests.iter().map(Into::into));
        let job = Job::new(command)?
            .in_directory(group.directory.clone())
            .with_variable("CARGO_MANIFEST_DIR", &group.directory)
            .with_variable("TESSERA_BIN", &self.tessera)
            .with_variable("MEMCTL_BIN", &self.memctl);
        let job = if self.long { job.with_variable("TESSERA_LONG", "1") } else { job };
        let job = self.artefacts.given_to(job);
        Ok(match &group.kernel {
            None => job,
            Some(kernel) => job
                .with_variable("TESSERA_VMLINUX", kernel)
                .with_variable("TESSERA_TEST_TIMEOUT_SCALE", DEBUG_SCALE),
        })
    }
}

/// All that a program printed.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Vec<u8>>>);

impl Record {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Shows whole lines on stderr as they come, each with its program and time, and records them.
struct Lines {
    label: String,
    start: Instant,
    line: Vec<u8>,
    record: Record,
}

impl Lines {
    fn new(label: &str, start: Instant, record: Record) -> Self {
        Self { label: label.to_owned(), start, line: Vec::new(), record }
    }

    fn show(&mut self) {
        let text = String::from_utf8_lossy(&self.line);
        let seconds = self.start.elapsed().as_secs();
        if !text.trim().is_empty() {
            eprintln!("{seconds:5} s {}: {}", self.label, text.trim_end());
        }
        self.line.clear();
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.record.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' {
                self.show();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Lines {
    /// The last line of a program that died has no end.
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.show();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_whose_lab_stopped_gets_one_more_and_those_after_it_run_in_any_case() {
        let tests: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let (label, path, directory) = (String::new(), PathBuf::new(), PathBuf::new());
        let group = Group { label, path, directory, tests, kernel: None, again: None };
        let second = group.rest("test a ... ok\ntest b ... ").unwrap();
        assert_eq!((second.tests.join(" "), second.again.as_deref()), ("b c".into(), Some("b")));
        let third = second.rest("test b ... ").unwrap();
        assert_eq!((third.tests.join(" "), third.again), ("c".into(), None));
        let other = second.rest("test b ... ok\ntest c ... ").unwrap();
        assert_eq!(other.again.as_deref(), Some("c"));
        assert!(group.rest("no lab").is_none());
        assert!(group.rest("test a ... ok\ntest b ... ok\ntest c ... ok\n").is_none());
    }

    #[test]
    fn a_record_has_all_bytes_whatever_their_lines() {
        let record = Record::default();
        let mut lines = Lines::new("x", Instant::now(), record.clone());
        for part in ["test a ... ", "ok\ntest b", " ... ok"] {
            lines.write_all(part.as_bytes()).unwrap();
        }
        drop(lines);
        assert_eq!(record.text(), "test a ... ok\ntest b ... ok");
    }
}
