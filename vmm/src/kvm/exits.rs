//! How often, and why, vCPUs leave the guest for the monitor.

use std::sync::atomic::{AtomicU64, Ordering};

/// Exits to the monitor since the machine was made, by kind.
#[derive(Default)]
pub struct ExitCounters {
    pub(super) port_read: AtomicU64,
    pub(super) port_write: AtomicU64,
    pub(super) memory_read: AtomicU64,
    pub(super) memory_write: AtomicU64,
    pub(super) interrupted: AtomicU64,
}

impl ExitCounters {
    /// Names and values, for `vm.counters`.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("exits_port_read", value(&self.port_read)),
            ("exits_port_write", value(&self.port_write)),
            ("exits_memory_read", value(&self.memory_read)),
            ("exits_memory_write", value(&self.memory_write)),
            ("exits_interrupted", value(&self.interrupted)),
        ]
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
