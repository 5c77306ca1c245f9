//! CPU time of a monitor's threads, told apart by what they do.

use std::fs;
use std::io;
use std::time::Duration;

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
    /// The process is gone.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let mut sum = Self::default();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = thread?.path();
            let read = |file| fs::read_to_string(path.join(file));
            // A thread may end between the listing and the reading.
            let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) else { continue };
            let time = run_time(&times).ok_or_else(|| io::Error::other("no times in schedstat"))?;
            *if is_vcpu(name.trim()) { &mut sum.vcpus } else { &mut sum.monitor } += time;
        }
        Ok(sum)
    }

    /// Of all threads together.
    pub fn total(&self) -> Duration {
        self.vcpus + self.monitor
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

/// The first number of a `schedstat`: nanoseconds on a CPU.
fn run_time(schedstat: &str) -> Option<Duration> {
    let nanos = schedstat.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
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

    #[test]
    fn a_text_without_a_number_is_no_time() {
        assert_eq!(run_time("1500 7 3\n"), Some(Duration::from_nanos(1500)));
        assert_eq!(run_time(""), None);
    }
}
