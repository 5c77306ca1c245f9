//! What `/proc` says about a process, and pages that it is given.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::config::MIB;

/// The only pages the tests use.
const HUGE_PAGE: u64 = 2 * MIB;
/// Where Linux tells of them, and is told how many there should be.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// A running process.
#[derive(Clone, Copy, Debug)]
pub struct Process(u32);

/// One mapping of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Address space it takes, in bytes.
    pub size: u64,
    /// Memory it takes, in bytes.
    pub resident: u64,
    /// The part of that which no other process shares, in bytes.
    pub private: u64,
    /// The file behind it, or what the kernel calls it; empty for anonymous memory.
    pub name: String,
}

impl From<u32> for Process {
    /// The process of this number.
    fn from(id: u32) -> Self {
        Self(id)
    }
}

impl Process {
    /// A process we started.
    pub fn of(child: &Child) -> Self {
        Self(child.id())
    }

    /// Its number.
    pub fn id(self) -> u32 {
        self.0
    }

    /// The names of its threads, sorted.
    ///
    /// # Errors
    /// As [`Process::cpu_times`].
    pub fn threads(self) -> Result<Vec<String>> {
        Ok(sorted(self.cpu_times()?.into_iter().map(|(name, _)| name)))
    }

    /// What its descriptors are open on, sorted.
    ///
    /// # Errors
    /// It has ended.
    pub fn descriptors(self) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.file("fd")).context("no such process")?;
        let targets = entries.filter_map(|entry| {
            let target = fs::read_link(entry.ok()?.path()).ok()?;
            Some(without_number(&target.to_string_lossy()))
        });
        Ok(sorted(targets))
    }

    /// Its mappings, in the order of their addresses.
    ///
    /// # Errors
    /// It has ended.
    pub fn mappings(self) -> Result<Vec<Mapping>> {
        let text = fs::read_to_string(self.file("smaps")).context("no such process")?;
        Ok(mappings(&text))
    }

    /// The time its threads have spent on a CPU, together.
    ///
    /// # Errors
    /// As [`Process::cpu_times`].
    pub fn cpu_time(self) -> Result<Duration> {
        Ok(self.cpu_times()?.iter().map(|(_, time)| time).sum())
    }

    /// Its threads' names, each with the time it has spent on a CPU, exact to the nanosecond. Threads
    /// that have ended are not among them.
    ///
    /// # Errors
    /// It has ended, or the kernel does not tell.
    pub fn cpu_times(self) -> Result<Vec<(String, Duration)>> {
        let mut times = Vec::new();
        for entry in fs::read_dir(self.file("task")).context("no such process")? {
            let folder = entry?.path();
            let read = |file| fs::read_to_string(folder.join(file));
            // A thread may end between the list and the look.
            let (Ok(name), Ok(text)) = (read("comm"), read("schedstat")) else { continue };
            let time = text.split_whitespace().next().context("schedstat is empty")?;
            times.push((name.trim_end().to_owned(), Duration::from_nanos(time.parse()?)));
        }
        let any = times.iter().any(|(_, time)| !time.is_zero());
        ensure!(any, "the kernel does not tell CPU times");
        Ok(times)
    }

    fn file(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }
}

fn sorted(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// `socket:[1234]` is the same to us as `socket:[1235]`.
fn without_number(target: &str) -> String {
    target.split(":[").next().unwrap_or(target).to_owned()
}

/// Reads `/proc/PID/smaps` (proc(5)).
fn mappings(text: &str) -> Vec<Mapping> {
    let mut mappings = Vec::<Mapping>::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        match (first.strip_suffix(':'), mappings.last_mut()) {
            (None, _) => {
                let name = words.skip(4).collect::<Vec<_>>().join(" ");
                mappings.push(Mapping { name, ..Mapping::default() });
            }
            (Some("Size"), Some(mapping)) => mapping.size = kilobytes(words.next()),
            (Some("Rss"), Some(mapping)) => mapping.resident = kilobytes(words.next()),
            (Some("Private_Clean" | "Private_Dirty"), Some(mapping)) => {
                mapping.private += kilobytes(words.next());
            }
            _ => {}
        }
    }
    mappings
}

fn kilobytes(number: Option<&str>) -> u64 {
    number.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Huge pages of 2 MiB that the host holds ready. The pool is as before when dropped.
pub struct HugePages {
    before: u64,
}

impl HugePages {
    /// Enough for `bytes` more.
    ///
    /// # Errors
    /// We are not root, or memory is short or too fragmented.
    pub fn reserve(bytes: u64) -> Result<Self> {
        // From here on what is changed is put back.
        let guard = Self { before: pages("nr_hugepages")? };
        let wanted = guard.before + bytes.div_ceil(HUGE_PAGE);
        set_pages(wanted).context("only root can reserve huge pages")?;
        let found = pages("nr_hugepages")?;
        ensure!(found >= wanted, "the host found {found} huge pages of {wanted}");
        Ok(guard)
    }

    /// How many pages of the pool nobody uses.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn free(&self) -> Result<u64> {
        pages("free_hugepages")
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = set_pages(self.before) {
            println!("the huge pages stay reserved: {error}");
        }
    }
}

fn pages(file: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("{POOL}/{file}"));
    Ok(text.context("the host has no huge pages")?.trim().parse()?)
}

fn set_pages(count: u64) -> io::Result<()> {
    fs::write(format!("{POOL}/nr_hugepages"), count.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d5c4a00000-55d5c4c00000 r-xp 00000000 08:01 1234  /usr/bin/my program
Size:               2048 kB
Rss:                 100 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Size:             131072 kB
Rss:                4096 kB
Private_Clean:         8 kB
Private_Dirty:      4000 kB
";

    #[test]
    fn mappings_are_read_with_their_sizes_and_names() {
        let program = "/usr/bin/my program".to_owned();
        let expected = [
            Mapping { size: 2 * MIB, resident: 100 << 10, private: 0, name: program },
            Mapping {
                size: 128 * MIB,
                resident: 4 * MIB,
                private: 4008 << 10,
                name: String::new(),
            },
        ];
        assert_eq!(mappings(SMAPS), expected);
    }

    #[test]
    fn our_own_process_can_be_looked_at() {
        let process = Process::from(std::process::id());
        assert!(!process.threads().unwrap().is_empty());
        assert!(process.descriptors().unwrap().len() > 2);
        assert!(process.cpu_time().unwrap() > Duration::ZERO);
    }
}
