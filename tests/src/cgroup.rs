//! A group of processes whose memory the host counts: what is charged to a group is taken from the
//! host, whatever the process has mapped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A cgroup (version 2) of our own, with the memory controller. Gone when dropped, if its processes
/// are.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// An empty one.
    ///
    /// # Errors
    /// We are not root, or the host has another hierarchy mounted.
    pub fn new() -> Result<Self> {
        let help = "cannot make a cgroup: it takes root and cgroup2 on /sys/fs/cgroup";
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+memory").context(help)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(ROOT).join(format!("tessera-test-{}-{number}", process::id()));
        fs::create_dir(&path).context(help)?;
        Ok(Self(path))
    }

    /// Bytes that its processes have taken from the host: guest memory, page tables, page cache.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn memory(&self) -> Result<u64> {
        self.number("memory.current")
    }

    /// Of these, bytes of memory that is no file's.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn anonymous(&self) -> Result<u64> {
        let stat = fs::read_to_string(self.0.join("memory.stat"))?;
        let line = stat.lines().find_map(|line| line.strip_prefix("anon "));
        Ok(line.context("memory.stat without anon")?.parse()?)
    }

    /// Where a process that joins writes its number.
    pub(crate) fn processes(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    fn number(&self, file: &str) -> Result<u64> {
        let text = fs::read_to_string(self.0.join(file)).with_context(|| format!("no {file}"))?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            println!("{} stays: {error}", self.0.display());
        }
    }
}

/// What the host could give to new processes, in bytes.
///
/// # Errors
/// The host does not tell.
pub fn available_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.context("meminfo without MemAvailable")?.trim().trim_end_matches(" kB");
    Ok(kib.parse::<u64>()? << 10)
}
