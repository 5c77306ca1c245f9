//! A process under measurement: when it says something, when it ends, what it costs until then.

use std::fs;
use std::io::{self, PipeReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;

/// How much output is kept; what comes after it is read and dropped.
const OUTPUT_LIMIT: usize = 4 << 20;

/// Why a process gave no measurement.
#[derive(Debug, Error)]
pub enum Error {
    /// It could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not do in time what was waited for.
    #[error("no {awaited} within {seconds} s; the output ends with:\n{output}")]
    TimeOut {
        /// What was waited for.
        awaited: String,
        /// For how long.
        seconds: u64,
        /// The end of the output.
        output: String,
    },
    /// It ended before it wrote what was waited for.
    #[error("ended before it wrote {awaited}; the output ends with:\n{output}")]
    Ended {
        /// What was waited for.
        awaited: String,
        /// The end of the output.
        output: String,
    },
    /// The system refused to tell about it.
    #[error("cannot watch the process")]
    Watch(#[from] io::Error),
}

/// A running process. Its input is empty; output and errors are read together. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    end: OwnedFd,
    output: PipeReader,
    output_open: bool,
    text: Vec<u8>,
    started: Instant,
}

/// A process that has ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// Time from its start to its end.
    pub after: Duration,
    /// CPU time of all its threads, in user and system mode and in the guest, to 10 ms.
    pub cpu: Duration,
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote.
    pub output: String,
}

impl Process {
    /// Starts the command; the clock starts just before.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(command: &mut Command) -> Result<Self, Error> {
        let (output, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let started = Instant::now();
        let spawned = command.spawn();
        // The command keeps the writing end open, and with it the pipe: replace it.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = spawned.map_err(|source| Error::Start {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        })?;
        let end =
            pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(io::Error::from)?;
        Ok(Self { child, end, output, output_open: true, text: Vec::new(), started })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its output holds `marker`, and gives the time since the start.
    ///
    /// # Errors
    /// The process ends, or `limit` since the start passes, without the marker.
    pub fn wait_for(&mut self, marker: &str, limit: Duration) -> Result<Duration, Error> {
        let mut searched = 0;
        loop {
            let from = searched_from(searched, marker);
            if self.text[from..].windows(marker.len()).any(|w| w == marker.as_bytes()) {
                return Ok(self.started.elapsed());
            }
            searched = self.text.len();
            let awaited = || format!("`{}`", marker.trim());
            if !self.output_open {
                return Err(Error::Ended { awaited: awaited(), output: self.last_output() });
            }
            if !self.step(limit)? {
                return Err(self.timed_out(awaited(), limit));
            }
        }
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// It still runs when `limit` since the start has passed.
    pub fn wait_for_end(mut self, limit: Duration) -> Result<Ended, Error> {
        while !self.has_ended()? {
            if !self.step(limit)? {
                return Err(self.timed_out("end of the process".to_owned(), limit));
            }
        }
        let after = self.started.elapsed();
        // Until it is reaped, the kernel still has the sum of all threads that it had.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let cpu = total_cpu(&stat, rustix::param::clock_ticks_per_second())
            .ok_or_else(|| io::Error::other("no times in /proc/PID/stat"))?;
        while self.output_open && self.step(limit)? {}
        let status = self.child.wait()?;
        let output = String::from_utf8_lossy(&self.text).into_owned();
        Ok(Ended { after, cpu, status, output })
    }

    /// CPU time of its threads that run now, to the nanosecond.
    ///
    /// # Errors
    /// The process is gone.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        guest_tests::Process::of(&self.child).cpu_time()
    }

    /// Waits for output or for the end; false once the limit has passed.
    fn step(&mut self, limit: Duration) -> Result<bool, Error> {
        let left = limit.saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds =
            [PollFd::new(&self.end, PollFlags::IN), PollFd::new(&self.output, PollFlags::IN)];
        // A closed pipe is always ready: leave it out.
        let watched = if self.output_open { 2 } else { 1 };
        match poll(&mut fds[..watched], Some(&timeout)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let readable = watched == 2 && !fds[1].revents().is_empty();
        if readable {
            self.read_output()?;
        }
        Ok(true)
    }

    fn read_output(&mut self) -> Result<(), Error> {
        let mut chunk = [0; 16 << 10];
        let count = self.output.read(&mut chunk)?;
        self.output_open = count > 0;
        let room = OUTPUT_LIMIT.saturating_sub(self.text.len()).min(count);
        self.text.extend_from_slice(&chunk[..room]);
        Ok(())
    }

    fn has_ended(&self) -> Result<bool, Error> {
        let mut fds = [PollFd::new(&self.end, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(poll(&mut fds, Some(&now)).map_err(io::Error::from)? > 0)
    }

    fn timed_out(&self, awaited: String, limit: Duration) -> Error {
        Error::TimeOut { awaited, seconds: limit.as_secs(), output: self.last_output() }
    }

    /// The last lines of the output, for messages.
    fn last_output(&self) -> String {
        let text = String::from_utf8_lossy(&self.text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a search goes on: a marker may have begun in what was searched before.
fn searched_from(searched: usize, marker: &str) -> usize {
    searched.saturating_sub(marker.len().saturating_sub(1))
}

/// Fields 14 and 15 of a `stat`, user and system time. The name before them may hold anything.
fn total_cpu(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = user.checked_add(system)?;
    Some(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Process {
        Process::start(Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn the_time_of_a_marker_lies_between_start_and_end() {
        let mut process =
            shell("sleep 0.2; printf 'a mar'; sleep 0.1; echo ker; sleep 0.2; exit 3");
        let marker = process.wait_for("marker", LIMIT).unwrap();
        let ended = process.wait_for_end(LIMIT).unwrap();
        assert!(marker >= Duration::from_millis(300), "{marker:?}");
        assert!(ended.after >= marker.max(Duration::from_millis(500)), "{ended:?}");
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.output, "a marker\n");
    }

    #[test]
    fn a_process_that_ends_or_hangs_is_an_error_with_its_output() {
        let error = shell("echo why >&2").wait_for("marker", LIMIT).unwrap_err();
        assert!(matches!(&error, Error::Ended { .. }) && error.to_string().contains("why"));
        let mut process = shell("echo why; exec sleep 60");
        process.wait_for("why", LIMIT).unwrap();
        let error = process.wait_for("marker", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(&error, Error::TimeOut { .. }) && error.to_string().contains("why"));
        assert!(process.wait_for_end(Duration::from_millis(400)).is_err());
    }

    #[test]
    fn work_shows_as_cpu_time_and_sleep_does_not() {
        let work = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; sleep 0.2";
        let start = Instant::now();
        let mut process = shell(work);
        process.wait_for("done", LIMIT).unwrap();
        let (cpu, took) = (process.cpu_time().unwrap(), start.elapsed());
        assert!(cpu > Duration::from_millis(5) && cpu <= took, "{cpu:?} of {took:?}");
        assert!(shell("sleep 0.3").wait_for_end(LIMIT).unwrap().cpu < Duration::from_millis(200));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Process::start(&mut Command::new("/nonexistent/x")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start /nonexistent/x");
    }

    #[test]
    fn times_are_read_after_a_name_with_blanks_and_parentheses() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        assert_eq!(total_cpu(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(total_cpu("12 (a", 100), None);
    }
}
