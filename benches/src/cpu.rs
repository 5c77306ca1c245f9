//! CPU time of a monitor's threads, told apart by what they do.

use std::time::Duration;

use anyhow::Result;
use guest_tests::Process;

/// CPU time by kind of thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Threads that run the guest.
    pub vcpus: Duration,
    /// All others.
    pub monitor: Duration,
}

impl CpuTime {
    /// Of the threads that a process has now. A thread that has ended is not counted any more.
    ///
    /// # Errors
    /// The process is gone, or the kernel does not tell.
    pub fn of_process(pid: u32) -> Result<Self> {
        let mut sum = Self::default();
        for (name, time) in Process::from(pid).cpu_times()? {
            *if is_vcpu(&name) { &mut sum.vcpus } else { &mut sum.monitor } += time;
        }
        Ok(sum)
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(before.vcpus),
            monitor: self.monitor.saturating_sub(before.monitor),
        }
    }
}

/// Tessera calls them `vcpu0`, QEMU `CPU 0/KVM`.
fn is_vcpu(name: &str) -> bool {
    name.strip_prefix("vcpu").is_some_and(|rest| rest.parse::<u32>().is_ok())
        || (name.starts_with("CPU ") && name.ends_with("/KVM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_run_the_guest_are_known_by_name() {
        assert!(is_vcpu("vcpu0") && is_vcpu("vcpu17") && is_vcpu("CPU 3/KVM"));
        assert!(!is_vcpu("vcpus") && !is_vcpu("virtio-mem") && !is_vcpu("CPU"));
    }

    #[test]
    fn times_add_up_and_only_grow() {
        let before = CpuTime::of_process(std::process::id()).unwrap();
        let mut x = 1u64;
        for i in 0..5_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005) ^ i);
        }
        let spent = CpuTime::of_process(std::process::id()).unwrap().since(&before);
        assert!(spent.monitor > Duration::ZERO && spent.vcpus == Duration::ZERO, "{spent:?}");
    }
}
