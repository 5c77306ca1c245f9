//! How much memory the host can still give.

use std::fs;
use std::path::{Path, PathBuf};

use memctl::Bytes;

use crate::machine::spec::Backing;

/// What the host's kernel says of its memory, in `/proc` and `/sys`.
pub struct HostMemory {
    root: PathBuf,
}

impl Default for HostMemory {
    fn default() -> Self {
        Self { root: PathBuf::from("/") }
    }
}

impl HostMemory {
    /// What is left for guest memory of `backing`, now: what the host could give without swapping,
    /// within the limits of this process's control groups; for huge pages, what is left of their
    /// pool. `None` where the kernel does not say.
    pub fn free(&self, backing: Backing) -> Option<Bytes> {
        match backing {
            Backing::Anonymous | Backing::Shared => {
                let host = Bytes::new(self.meminfo("MemAvailable:")?);
                Some(self.cgroups_free().map_or(host, |free| free.min(host)))
            }
            Backing::Hugetlb { page, .. } => {
                let pool = format!("sys/kernel/mm/hugepages/hugepages-{}kB", page.as_u64() >> 10);
                let count = |file| self.number(&Path::new(&pool).join(file));
                page.checked_mul(count("free_hugepages")?.saturating_sub(count("resv_hugepages")?))
            }
        }
    }

    /// A line of `/proc/meminfo`, in bytes.
    fn meminfo(&self, name: &str) -> Option<u64> {
        let text = self.read(Path::new("proc/meminfo"))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// What the tightest of this process's control groups (version 2) leaves; `None` without one
    /// that has a limit.
    fn cgroups_free(&self) -> Option<Bytes> {
        let text = self.read(Path::new("proc/self/cgroup"))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let groups = Path::new("sys/fs/cgroup");
        Path::new(path).ancestors().filter_map(|group| self.group_free(&groups.join(group))).min()
    }

    fn group_free(&self, group: &Path) -> Option<Bytes> {
        let limit = self.number(&group.join("memory.max"))?;
        let used = self.number(&group.join("memory.current"))?;
        // Cache counts as used, and goes when memory is short.
        let stat = self.read(&group.join("memory.stat")).unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
        let cache: u64 = cache.and_then(|count| count.parse().ok()).unwrap_or_default();
        Some(Bytes::new(limit.saturating_sub(used.saturating_sub(cache))))
    }

    /// A file that holds one number; `None` for anything else, such as `max`.
    fn number(&self, path: &Path) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    fn read(&self, path: &Path) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A host whose kernel says what these files say.
    fn host(files: &[(&str, &str)]) -> (TempDir, HostMemory) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let root = dir.path().to_owned();
        (dir, HostMemory { root })
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       8388608 kB\nMemAvailable:   4194304 kB\nSwapFree: 0 kB\n",
    );

    #[test]
    fn without_a_limit_all_that_is_available_is_free() {
        let (_dir, host) = host(&[MEMINFO, ("proc/self/cgroup", "0::/vm.slice\n")]);
        assert_eq!(host.free(Backing::Anonymous), Some(Bytes::gib(4)));
        assert_eq!(host.free(Backing::Shared), Some(Bytes::gib(4)));
    }

    #[test]
    fn the_tightest_control_group_counts_and_its_cache_does_not() {
        let group = "sys/fs/cgroup/vm.slice/one";
        let (_dir, host) = host(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/vm.slice/one\n"),
            (&format!("{group}/memory.max"), "max\n"),
            (&format!("{group}/memory.current"), "1073741824\n"),
            ("sys/fs/cgroup/vm.slice/memory.max", "3221225472\n"),
            ("sys/fs/cgroup/vm.slice/memory.current", "2147483648\n"),
            ("sys/fs/cgroup/vm.slice/memory.stat", "anon 1\ninactive_file 1073741824\nfile 2\n"),
        ]);
        assert_eq!(host.free(Backing::Anonymous), Some(Bytes::gib(2)));
    }

    #[test]
    fn a_group_over_its_limit_has_nothing_left() {
        let (_dir, host) = host(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "4096\n"),
            ("sys/fs/cgroup/memory.current", "8192\n"),
        ]);
        assert_eq!(host.free(Backing::Anonymous), Some(Bytes::ZERO));
    }

    #[test]
    fn huge_pages_have_a_pool_of_their_own() {
        let pool = "sys/kernel/mm/hugepages/hugepages-2048kB";
        let (_dir, host) = host(&[
            MEMINFO,
            (&format!("{pool}/free_hugepages"), "512\n"),
            (&format!("{pool}/resv_hugepages"), "256\n"),
        ]);
        let backing = |page| Backing::Hugetlb { page, shared: false };
        assert_eq!(host.free(backing(Bytes::mib(2))), Some(Bytes::mib(512)));
        assert_eq!(host.free(backing(Bytes::gib(1))), None);
    }

    #[test]
    fn this_host_says_something() {
        assert!(HostMemory::default().free(Backing::Anonymous).unwrap() > Bytes::ZERO);
    }
}
