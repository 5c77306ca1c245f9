//! What a disk has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// Totals of a disk since it was made, over all its queues and resets.
///
/// The workers add, anyone reads: each number is exact, but two of them may be of different
/// moments.
#[derive(Debug, Default)]
pub struct Counters {
    read_bytes: AtomicU64,
    read_ops: AtomicU64,
    write_bytes: AtomicU64,
    write_ops: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    /// Names and values, as `vm.counters` shows them. Bytes and operations count what succeeded;
    /// `errors` counts requests that were refused or failed.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        [
            ("read_bytes", &self.read_bytes),
            ("read_ops", &self.read_ops),
            ("write_bytes", &self.write_bytes),
            ("write_ops", &self.write_ops),
            ("flushes", &self.flushes),
            ("errors", &self.errors),
        ]
        .map(|(name, value)| (name, value.load(Ordering::Relaxed)))
        .into()
    }

    /// A read of `bytes` has succeeded.
    pub(super) fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.read_ops.fetch_add(1, Ordering::Relaxed);
    }

    /// A write of `bytes` has succeeded.
    pub(super) fn written(&self, bytes: u64) {
        self.write_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.write_ops.fetch_add(1, Ordering::Relaxed);
    }

    /// A flush has succeeded.
    pub(super) fn flushed(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was refused or failed. Returns how many have been by now.
    pub(super) fn failed(&self) -> u64 {
        self.errors.fetch_add(1, Ordering::Relaxed) + 1
    }
}
