//! What a device has done so far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memctl::{Answer, Bytes};

use super::request::{Malformed, Request};

/// Totals of a device since it was made, over all resets.
///
/// The worker adds, anyone reads: each number is exact, but two of them may be of different
/// moments.
#[derive(Debug, Default)]
pub struct Counters {
    plugs: AtomicU64,
    unplugs: AtomicU64,
    unplug_alls: AtomicU64,
    states: AtomicU64,
    part_plugs: AtomicU64,
    part_releases: AtomicU64,
    part_shrinks: AtomicU64,
    part_queries: AtomicU64,
    part_notifies: AtomicU64,
    malformed: AtomicU64,
    acks: AtomicU64,
    nacks: AtomicU64,
    busies: AtomicU64,
    errors: AtomicU64,
    unanswered: AtomicU64,
    plugged_bytes: AtomicU64,
    unplugged_bytes: AtomicU64,
    releases: AtomicU64,
    released_bytes: AtomicU64,
    refused: AtomicU64,
    host_failures: AtomicU64,
    pub(super) opening: Timing,
    pub(super) releasing: Timing,
}

/// How long the host took for its part of a request.
#[derive(Debug, Default)]
pub(super) struct Timing {
    last_ns: AtomicU64,
    total_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Timing {
    /// The host's part of one request took `time`, whatever came of it.
    pub(super) fn took(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.last_ns.store(ns, Ordering::Relaxed);
        self.total_ns.fetch_add(ns, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
    }
}

impl Counters {
    /// Names and values, as `vm.counters` shows them.
    ///
    /// Requests by type (`malformed` ones have none), answers by code (`unanswered`: the chain had
    /// no room for one), bytes that changed hands, and the microseconds that the host took to open
    /// and to release memory. `releases` counts partitions given back and `released_bytes` what they
    /// had, which `unplugged_bytes` and `release_us_*` include. `refused` counts requests that no
    /// correct driver makes, `host_failures` those that were BUSY because the host failed.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let micros = |(name, ns): (&'static str, &AtomicU64)| (name, get(ns) / 1000);
        let times = [
            ("open_us_last", &self.opening.last_ns),
            ("open_us_total", &self.opening.total_ns),
            ("open_us_max", &self.opening.max_ns),
            ("release_us_last", &self.releasing.last_ns),
            ("release_us_total", &self.releasing.total_ns),
            ("release_us_max", &self.releasing.max_ns),
        ];
        let counts = [
            ("plug", &self.plugs),
            ("unplug", &self.unplugs),
            ("unplug_all", &self.unplug_alls),
            ("state", &self.states),
            ("part_plug", &self.part_plugs),
            ("part_release", &self.part_releases),
            ("part_shrink", &self.part_shrinks),
            ("part_query", &self.part_queries),
            ("part_notify", &self.part_notifies),
            ("malformed", &self.malformed),
            ("ack", &self.acks),
            ("nack", &self.nacks),
            ("busy", &self.busies),
            ("error", &self.errors),
            ("unanswered", &self.unanswered),
            ("plugged_bytes", &self.plugged_bytes),
            ("unplugged_bytes", &self.unplugged_bytes),
            ("releases", &self.releases),
            ("released_bytes", &self.released_bytes),
            ("refused", &self.refused),
            ("host_failures", &self.host_failures),
        ];
        counts
            .map(|(name, count)| (name, get(count)))
            .into_iter()
            .chain(times.map(micros))
            .collect()
    }

    /// A chain was taken from the ring.
    pub(super) fn received(&self, request: &Result<Request, Malformed>) {
        increment(match request {
            Ok(Request::Plug(_)) => &self.plugs,
            Ok(Request::Unplug(_)) => &self.unplugs,
            Ok(Request::UnplugAll) => &self.unplug_alls,
            Ok(Request::State(_)) => &self.states,
            Ok(Request::PartPlug(_)) => &self.part_plugs,
            Ok(Request::PartRelease(_)) => &self.part_releases,
            Ok(Request::PartShrink(..)) => &self.part_shrinks,
            Ok(Request::PartQuery { .. }) => &self.part_queries,
            Ok(Request::PartNotify(..)) => &self.part_notifies,
            Err(_) => &self.malformed,
        });
    }

    /// A chain is given back, with `answer` if there was room for one.
    pub(super) fn answered(&self, answer: Option<Answer>) {
        increment(match answer {
            Some(Answer::Ack) => &self.acks,
            Some(Answer::Nack) => &self.nacks,
            Some(Answer::Busy) => &self.busies,
            Some(Answer::Error) => &self.errors,
            None => &self.unanswered,
        });
    }

    /// The guest has so much more.
    pub(super) fn plugged(&self, bytes: Bytes) {
        self.plugged_bytes.fetch_add(bytes.as_u64(), Ordering::Relaxed);
    }

    /// The guest has so much less.
    pub(super) fn unplugged(&self, bytes: Bytes) {
        self.unplugged_bytes.fetch_add(bytes.as_u64(), Ordering::Relaxed);
    }

    /// The guest has given a partition back, of which it had so much.
    pub(super) fn released(&self, bytes: Bytes) {
        increment(&self.releases);
        self.released_bytes.fetch_add(bytes.as_u64(), Ordering::Relaxed);
    }

    /// A request that no correct driver makes. Returns how many there have been by now.
    pub(super) fn refused(&self) -> u64 {
        increment(&self.refused)
    }

    /// The host's part of a request failed. Returns how often it has by now.
    pub(super) fn host_failed(&self) -> u64 {
        increment(&self.host_failures)
    }
}

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

fn increment(count: &AtomicU64) -> u64 {
    count.fetch_add(1, Ordering::Relaxed) + 1
}
