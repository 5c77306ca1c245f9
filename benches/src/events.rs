//! The events that Tessera tells of itself, as they come.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::Value;

/// The events of one monitor that nobody has waited for yet. To wait for one costs the machine
/// nothing, where asking again and again would take CPU time from the guest that is measured.
pub struct Events(Receiver<Value>);

impl Events {
    /// Has `command` write its events to the other end. To be dropped once the command runs: then
    /// the end of the monitor is the end of the events.
    ///
    /// # Errors
    /// The host has no pipe.
    pub fn of(command: &mut Command) -> io::Result<(Self, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        fcntl_setfd(&writer, FdFlags::empty())?;
        command.arg("--event-monitor").arg(format!("fd={}", writer.as_raw_fd()));
        Ok((Self::from(reader), writer))
    }

    /// Waits until an event that is `wanted` comes; those before it are dropped.
    ///
    /// # Errors
    /// It does not come within `limit`.
    pub fn wait(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + limit;
        let mut last = Value::Null;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.0.recv_timeout(left);
            let event = event.with_context(|| format!("no such event; the last was {last}"))?;
            if wanted(&event) {
                return Ok(event);
            }
            if Instant::now() >= end {
                bail!("no such event in time; the last was {event}");
            }
            last = event;
        }
    }

    /// Drops what has come so far.
    pub fn forget(&self) {
        while self.0.try_recv().is_ok() {}
    }
}

impl From<PipeReader> for Events {
    fn from(reader: PipeReader) -> Self {
        let (sender, events) = channel();
        thread::spawn(move || {
            let lines = BufReader::new(reader).lines().map_while(Result::ok);
            let events = lines.filter_map(|line| serde_json::from_str(&line).ok());
            // Until nobody listens any more.
            let _ = events.map(|event| sender.send(event)).find(Result::is_err);
        });
        Self(events)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_wanted_event_is_found_behind_others_and_its_absence_is_told() {
        let (reader, mut writer) = io::pipe().unwrap();
        let events = Events::from(reader);
        writer.write_all(b"{\"event\":\"a\"}\nnonsense\n{\"event\":\"b\",\"x\":1}\n").unwrap();
        let limit = Duration::from_secs(10);
        assert_eq!(events.wait(limit, |event| event["event"] == "b").unwrap()["x"], 1);
        writer.write_all(b"{\"event\":\"c\"}\n").unwrap();
        drop(writer);
        let error = events.wait(limit, |event| event["event"] == "d").unwrap_err();
        assert!(format!("{error:#}").contains("\"c\""), "{error:#}");
    }
}
