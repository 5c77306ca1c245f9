//! Whether the host's KVM runs Linux guests: a decision by fact, not by the presence of a device.

use std::fs::{self, OpenOptions};
use std::path::Path;

/// What the decision rests on. A software KVM has a device too, but neither of the other two.
pub(crate) struct Facts {
    cpu_virtualises: bool,
    module_loaded: bool,
    device_opens: bool,
}

impl Facts {
    /// Looks at this machine.
    pub(crate) fn read() -> Self {
        let modules = ["/sys/module/kvm_intel", "/sys/module/kvm_amd"];
        Self {
            cpu_virtualises: has_flag(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            module_loaded: modules.iter().any(|path| Path::new(path).exists()),
            device_opens: OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok(),
        }
    }

    /// Whether unmodified guests run here at hardware speed.
    pub(crate) fn runs_guests(&self) -> bool {
        self.cpu_virtualises && self.module_loaded && self.device_opens
    }
}

/// Whether the `flags` line of `/proc/cpuinfo` has VMX or SVM.
fn has_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == "flags")
        .any(|(_, flags)| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flags_line_counts_and_only_whole_words() {
        assert!(has_flag("model name\t: x\nflags\t\t: fpu svm nx\n"));
        assert!(has_flag("flags : vmx"));
        assert!(!has_flag("vmx flags\t: vnmi vmx\nflags\t: fpu svm_lock\n"));
        assert!(!has_flag(""));
    }

    #[test]
    fn every_fact_is_needed() {
        for bits in 0..8 {
            let facts = Facts {
                cpu_virtualises: bits & 1 != 0,
                module_loaded: bits & 2 != 0,
                device_opens: bits & 4 != 0,
            };
            assert_eq!(facts.runs_guests(), bits == 7, "{bits:03b}");
        }
    }
}
