//! The machine a result comes from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// What a reader must know of the machine to judge a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The processor, as it calls itself.
    pub cpu: String,
    /// How many of them the programs had.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// The release of the host's kernel.
    pub kernel: String,
    /// Whether the processor is emulated by software: the lab.
    pub lab: bool,
}

impl Machine {
    /// Looks at this machine; what cannot be read is empty or zero.
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::parse(
            &text("/proc/cpuinfo"),
            &text("/proc/meminfo"),
            &text("/proc/sys/kernel/osrelease"),
        )
    }

    fn parse(cpuinfo: &str, meminfo: &str, release: &str) -> Self {
        let cpu = field(cpuinfo, "model name").unwrap_or_default().to_owned();
        let total = field(meminfo, "MemTotal").and_then(|value| value.strip_suffix(" kB"));
        Self {
            lab: cpu.contains("TCG"),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count() as u32,
            memory_bytes: total.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024,
            kernel: release.trim().to_owned(),
            cpu,
        }
    }

    /// Where it was measured, for the reader of a figure.
    pub fn describe(&self) -> String {
        if self.lab {
            "Measured in the lab, whose CPU is emulated by software: compare bars with each other, \
             not with times on hardware."
                .to_owned()
        } else {
            format!("Measured on {}, Linux {}.", self.cpu, self.kernel)
        }
    }
}

/// The value of the first line `NAME : VALUE`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

/// The release that an uncompressed kernel names, such as `6.12.1`; empty where it names none.
///
/// # Errors
/// It can't be read.
pub fn kernel_release(vmlinux: &Path) -> Result<String> {
    let image = fs::read(vmlinux).context("cannot read the guest kernel")?;
    Ok(release(&image).unwrap_or_default())
}

fn release(image: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let releases = image.windows(BANNER.len()).enumerate().filter(|(_, w)| *w == BANNER);
    releases
        .map(|(at, _)| image[at + BANNER.len()..].split(|byte| *byte == b' ').next())
        .filter_map(|word| std::str::from_utf8(word?).ok())
        .find(|word| word.len() < 64 && word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_is_known_by_its_processor() {
        let cpuinfo = "processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\nprocessor\t: 1\n";
        let machine = Machine::parse(cpuinfo, "MemTotal:  8 kB\nMemFree: 1 kB\n", "6.12.1\n");
        assert!(machine.lab && machine.describe().contains("lab"));
        assert_eq!((machine.cpus, machine.memory_bytes), (2, 8192));
        let machine = Machine::parse("model name : Some CPU", "", "6.12.1\n");
        assert!(!machine.lab && machine.describe().contains("Some CPU, Linux 6.12.1"));
    }

    #[test]
    fn the_kernel_names_its_release() {
        let image = b"\x7fELF Linux version %s (%s)\0..Linux version 6.12.1-x (a@b) (gcc)";
        assert_eq!(release(image).as_deref(), Some("6.12.1-x"));
        assert_eq!(release(b"Linux version 6.1"), Some("6.1".to_owned()));
        assert_eq!(release(b"nothing"), None);
    }
}
