//! What was measured, and what is shown of it.

use std::collections::BTreeMap;

use anyhow::Result;
use benches::comparison::Merit;
use benches::unit::Unit;
use guest_tests::MIB;

use crate::contender::Contender;

/// What the project promises of itself.
const BOOT_GOAL: f64 = 0.75;
const MEMORY_GOAL: f64 = (5 * MIB) as f64;

pub(crate) const TO_INIT: &str = "exec to init";
pub(crate) const TO_EXIT: &str = "exec to init to clean power off";
pub(crate) const CPU_TO_INIT: &str = "CPU time to init, guest included";
pub(crate) const CPU_TO_EXIT: &str = "CPU time to exit, guest included";
pub(crate) const OWN_MEMORY: &str = "monitor's own memory, idle guest (RSS less guest pages)";
pub(crate) const OWN_PRIVATE: &str = "of it private";
pub(crate) const GUEST_MEMORY: &str = "resident guest pages, idle guest";
pub(crate) const THREADS: &str = "threads, idle guest";

const METRICS: [(&str, Unit); 8] = [
    (TO_INIT, Unit::Seconds),
    (TO_EXIT, Unit::Seconds),
    (CPU_TO_INIT, Unit::Seconds),
    (CPU_TO_EXIT, Unit::Seconds),
    (OWN_MEMORY, Unit::Bytes),
    (OWN_PRIVATE, Unit::Bytes),
    (GUEST_MEMORY, Unit::Bytes),
    (THREADS, Unit::Count),
];

/// KVM's counters that are shown where the host has them, and what they are called then.
pub(crate) const KVM_COUNTERS: [(&str, &str); 6] = [
    ("exits", "exits to a prompt, all kinds"),
    ("io_exits", "exits for port access"),
    ("mmio_exits", "exits for memory-mapped access"),
    ("halt_exits", "exits for a halt"),
    ("pf_taken", "page faults on guest memory"),
    ("irq_injections", "interrupts injected"),
];

/// Values in base units, by what they are of and whose.
pub(crate) type Measured = BTreeMap<(&'static str, Contender), Vec<f64>>;

/// What is shown of guests with so many vCPUs.
pub(crate) fn merits(vcpus: u32, mut measured: Measured) -> Result<Vec<Merit>> {
    let counters = KVM_COUNTERS.map(|(_, name)| (name, Unit::Count));
    let mut merits = Vec::new();
    for (name, unit) in METRICS.into_iter().chain(counters) {
        let values = Contender::ALL.map(|contender| {
            (contender.name(), measured.remove(&(name, contender)).unwrap_or_default())
        });
        let merit = Merit::new(&format!("{vcpus} vCPU: {name}"), unit, values)?;
        merits.push(match name {
            TO_EXIT => merit.promised(Contender::QemuMicrovm.name(), BOOT_GOAL),
            OWN_MEMORY => merit.at_most(MEMORY_GOAL),
            _ => merit,
        });
    }
    merits.retain(|merit| merit.entries.iter().any(|entry| entry.samples.max() > 0.0));
    Ok(merits)
}

#[cfg(test)]
mod tests {
    use benches::comparison::Verdict;

    use super::*;

    #[test]
    fn a_boot_is_held_against_microvm() {
        let times = |contender, seconds| ((TO_EXIT, contender), vec![seconds; 8]);
        let measured = [
            times(Contender::Tessera, 0.6),
            times(Contender::QemuMicrovm, 1.0),
            times(Contender::QemuQ35, 0.1),
        ];
        let merits = merits(2, measured.into()).unwrap();
        assert_eq!(merits[0].name, "2 vCPU: exec to init to clean power off");
        assert_eq!(merits[0].verdicts(), [Verdict::Met]);
    }

    #[test]
    fn what_nobody_has_is_not_shown_and_tessera_alone_is() {
        let (_, halts) = KVM_COUNTERS[3];
        let ours = |name, value| ((name, Contender::Tessera), vec![value]);
        let merits = merits(1, [ours(OWN_MEMORY, 1e6), ours(halts, 0.0)].into()).unwrap();
        assert_eq!(merits.len(), 1);
        assert_eq!(merits[0].most, Some(MEMORY_GOAL));
    }
}
