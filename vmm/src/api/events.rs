//! The event monitor: what happens to the VM, told as it happens.
//!
//! Events are JSON objects, one per line, in the words of Cloud Hypervisor's `--event-monitor`. A
//! thread of its own writes them, so that a reader who does not read never holds up the VM: when
//! the queue is full, events are counted instead, and the count is told when there is room.
//!
//! A guest can't fill the file or that queue: of each kind of event that it brings about, at most 16
//! a second are told of each partition and memory device, as they happen, and at the end of the
//! second what came of the rest. All others are told always.

mod queue;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use serde::Serialize;

use super::descriptor::Endpoint;
use queue::Queue;

/// Enough for one `write`.
const STACK: usize = 64 << 10;
/// How long the end of the monitor waits for a reader.
const FLUSH: Duration = Duration::from_secs(1);

/// A handle on the event monitor; cheap to clone, and to call when there is none. The last handle
/// that is dropped waits up to a second for what is left to be written.
#[derive(Clone, Default)]
pub struct EventMonitor(Option<Arc<Inner>>);

struct Inner {
    start: Instant,
    queue: Arc<Queue>,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

/// One event, as it is written.
#[derive(Serialize)]
struct Event<'a> {
    timestamp: Timestamp,
    source: &'a str,
    event: &'a str,
    properties: Option<BTreeMap<&'a str, String>>,
}

/// Time since the monitor started.
#[derive(Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

impl EventMonitor {
    /// Starts a monitor that writes to `sink`.
    ///
    /// # Errors
    /// The sink cannot be opened, or the host refused a thread.
    pub fn start(sink: &Endpoint) -> io::Result<Self> {
        let file = sink.create()?;
        let queue = Arc::new(Queue::new());
        let (end, ended) = sync_channel(0);
        let start = Instant::now();
        let events = Arc::clone(&queue);
        thread::Builder::new().name("event-monitor".into()).stack_size(STACK).spawn(move || {
            write_events(file, &events, start);
            drop(end);
        })?;
        let inner = Inner { start, queue, ended: Mutex::new(ended) };
        Ok(Self(Some(Arc::new(inner))))
    }

    /// Tells that `event` happened to `source`. Any thread; never waits. `properties` are only
    /// turned into text when someone listens.
    pub fn event(&self, source: &str, event: &str, properties: &[(&str, &dyn Display)]) {
        let Some(inner) = &self.0 else { return };
        inner.queue.push(inner.line(source, event, properties));
    }

    /// As [`EventMonitor::event`], of what a guest may bring about as often as it likes: how `id`
    /// is now.
    pub fn state(
        &self,
        source: &'static str,
        event: &'static str,
        id: &str,
        properties: &[(&str, &dyn Display)],
    ) {
        let Some(inner) = &self.0 else { return };
        let line = inner.line(source, event, properties);
        inner.queue.push_of_guest((source, id.to_owned()), event, line);
    }

    /// As [`EventMonitor::event`]: `id`, whose [`state`](EventMonitor::state) was told, is no more.
    pub fn end(
        &self,
        source: &'static str,
        event: &str,
        id: &str,
        properties: &[(&str, &dyn Display)],
    ) {
        let Some(inner) = &self.0 else { return };
        inner.queue.push_end(&(source, id.to_owned()), inner.line(source, event, properties));
    }
}

impl Inner {
    fn line(&self, source: &str, event: &str, properties: &[(&str, &dyn Display)]) -> Vec<u8> {
        let properties = (!properties.is_empty())
            .then(|| properties.iter().map(|(name, value)| (*name, value.to_string())).collect());
        line(self.start, source, event, properties)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(FLUSH) == Err(RecvTimeoutError::Timeout) {
            warn!("event monitor: nobody reads; events are lost");
        }
    }
}

fn line(
    start: Instant,
    source: &str,
    event: &str,
    properties: Option<BTreeMap<&str, String>>,
) -> Vec<u8> {
    let elapsed = start.elapsed();
    let timestamp = Timestamp { secs: elapsed.as_secs(), nanos: elapsed.subsec_nanos() };
    let event = Event { timestamp, source, event, properties };
    let mut line = serde_json::to_vec(&event).expect("a map with text keys is always JSON");
    line.push(b'\n');
    line
}

fn write_events(mut file: File, events: &Queue, start: Instant) {
    let mut write_all = || -> io::Result<()> {
        while let Some((event, lost)) = events.pop() {
            file.write_all(&event)?;
            if lost > 0 {
                let properties = BTreeMap::from([("count", lost.to_string())]);
                file.write_all(&line(start, "vmm", "events_lost", Some(properties)))?;
            }
        }
        Ok(())
    };
    if let Err(error) = write_all() {
        warn!("event monitor: {error}; no more events are written");
        events.close();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use serde_json::Value;

    use super::*;

    fn events(text: &str) -> Vec<Value> {
        let events = serde_json::Deserializer::from_str(text).into_iter();
        events.map(Result::unwrap).collect()
    }

    #[test]
    fn events_are_json_objects_one_after_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let monitor = EventMonitor::start(&Endpoint::Path(path.clone())).unwrap();
        monitor.event("vm", "booting", &[]);
        monitor.clone().event("partition", "released", &[("bytes", &4096), ("id", &"fn-7")]);
        drop(monitor);

        let events = events(&std::fs::read_to_string(path).unwrap());
        assert_eq!(events.len(), 2);
        assert_eq!(events[0]["source"], "vm");
        assert_eq!(events[0]["event"], "booting");
        assert_eq!(events[0]["properties"], Value::Null);
        assert!(events[0]["timestamp"]["secs"].is_u64());
        assert!(events[0]["timestamp"]["nanos"].is_u64());
        assert_eq!(events[1]["properties"], serde_json::json!({"bytes": "4096", "id": "fn-7"}));
    }

    #[test]
    fn events_without_a_monitor_go_nowhere() {
        EventMonitor::default().event("vm", "booting", &[("at", &1)]);
    }

    #[test]
    fn reader_who_does_not_read_holds_up_nobody_and_is_told_what_was_lost() {
        let (reader, writer) = io::pipe().unwrap();
        let monitor = EventMonitor::start(&Endpoint::Fd(writer.as_raw_fd())).unwrap();
        drop(writer);
        // More than fits a pipe of 64 KiB and the queue, before anyone reads.
        for number in 0..2000 {
            monitor.event("vm", "tick", &[("number", &number), ("fill", &"x".repeat(100))]);
        }
        let reader = thread::spawn(move || io::read_to_string(reader).unwrap());
        drop(monitor);

        let (mut ticks, mut lost) = (0, 0);
        for event in events(&reader.join().unwrap()) {
            match event["properties"]["count"].as_str() {
                Some(count) => lost += count.parse::<u32>().unwrap(),
                None => ticks += 1,
            }
        }
        assert!(lost > 0);
        assert_eq!(ticks + lost, 2000);
    }

    #[test]
    fn writer_ends_when_the_reader_is_gone() {
        let (reader, writer) = io::pipe().unwrap();
        let monitor = EventMonitor::start(&Endpoint::Fd(writer.as_raw_fd())).unwrap();
        drop((reader, writer));
        for _ in 0..1000 {
            monitor.event("vm", "tick", &[]);
        }
        let before = Instant::now();
        drop(monitor);
        assert!(before.elapsed() < FLUSH);
    }
}
