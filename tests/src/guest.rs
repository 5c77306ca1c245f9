//! What is asked of a guest over its shell.

use anyhow::{Context, Result};

use crate::tessera::Tessera;

/// What the guest's kernel says when it has found itself in a state that it should not be in, or
/// when a test of its own has failed.
const COMPLAINTS: &str = "WARNING|BUG|UBSAN|Oops|Bad page|Bad rss|general protection|page dumped|\
                          pagealloc|detected (expedited )?stall|blocked for more than|not ok ";

/// The bit of `/proc/sys/kernel/tainted` of a kernel that has tests of its own.
const TESTS: u32 = 1 << 18;

impl Tessera {
    /// Mounts the control groups at `/cg`, where those of functions may account their memory.
    ///
    /// # Errors
    /// The guest can't.
    pub fn mount_cgroups(&self) -> Result<()> {
        let mount = "mkdir -p /cg; mount -t cgroup2 cg /cg";
        self.shell(&format!("{mount}; echo +memory > /cg/cgroup.subtree_control")).map(drop)
    }

    /// What the guest counts under this name in `/proc/meminfo`, in bytes.
    ///
    /// # Errors
    /// The guest does not say.
    pub fn meminfo(&self, key: &str) -> Result<u64> {
        self.bytes_in("/proc/meminfo", key)
    }

    /// The same of one of its NUMA nodes.
    ///
    /// # Errors
    /// As [`Tessera::meminfo`].
    pub fn on_node(&self, node: u64, key: &str) -> Result<u64> {
        let file = format!("/sys/devices/system/node/node{node}/meminfo");
        self.bytes_in(&file, &format!("Node {node} {key}"))
    }

    fn bytes_in(&self, file: &str, key: &str) -> Result<u64> {
        let kib = self.shell(&format!("sed -n 's/^{key}: *\\([0-9]*\\) kB/\\1/p' {file}"))?;
        Ok(kib.parse::<u64>().with_context(|| format!("no {key} in {file}"))? << 10)
    }

    /// Takes all memory devices from their driver.
    ///
    /// # Errors
    /// The guest can't.
    pub fn unbind_memory(&self) -> Result<()> {
        let driver = "/sys/bus/virtio/drivers/virtio_mem";
        let each = "for device in virtio*; do echo $device > unbind; done";
        self.shell(&format!("cd {driver}; {each}; cd /")).map(drop)
    }

    /// How many pages the guest's kernel has moved since it booted.
    ///
    /// # Errors
    /// The guest does not say.
    pub fn migrated(&self) -> Result<u64> {
        Ok(self.shell("sed -n 's/^pgmigrate_success //p' /proc/vmstat")?.parse()?)
    }

    /// The first lines, if any, in which the guest's kernel complains, and how tainted it is: that
    /// stays when the lines have gone from its log.
    ///
    /// # Errors
    /// The guest does not say.
    pub fn complaints(&self) -> Result<String> {
        self.shell(&format!(
            "dmesg | grep -E '{COMPLAINTS}' | head -5; taint=$(cat /proc/sys/kernel/tainted); \
             [ $((taint & ~{TESTS})) = 0 ] || echo tainted: $taint"
        ))
    }
}
