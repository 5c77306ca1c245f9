//! Memory hogs in a guest: `tests/guest/hog.c`, steered over its shell.

use anyhow::{Context, Result, ensure};
use guest_tests::hog_processes;

use crate::elastic::Elastic;

/// Where their output goes in the guest.
const LOG: &str = "/tmp/hogs";

/// Processes that hold memory whose pages interleave. They end with [`Hogs::end`] or the guest.
pub struct Hogs<'a> {
    vm: &'a Elastic,
    /// Which are there, by their number.
    alive: Vec<Option<u32>>,
}

impl<'a> Hogs<'a> {
    /// Starts `count` of `mib` MiB each, with more `options` of the program's, and waits until all
    /// have touched theirs.
    ///
    /// # Errors
    /// The guest has no room for them.
    pub fn start(vm: &'a Elastic, count: u64, mib: u64, options: &str) -> Result<Self> {
        vm.shell(&format!("rm -f {LOG}; (hog {count} {mib} {options} > {LOG} 2>&1 &)"))?;
        vm.shell(&format!(
            "until grep -q ready {LOG}; do pidof hog > /dev/null || {{ cat {LOG}; break; }}; \
             usleep 50000; done; grep -q ready {LOG}"
        ))?;
        let log = vm.shell(&format!("cat {LOG}"))?;
        Ok(Self { vm, alive: hog_processes(&log, count as usize)?.into_iter().map(Some).collect() })
    }

    /// The process of hog `number`.
    ///
    /// # Errors
    /// It was killed.
    pub fn pid(&self, number: usize) -> Result<u32> {
        self.alive[number].with_context(|| format!("hog {number} is gone"))
    }

    /// Kills one and waits until it is gone, its memory with it.
    ///
    /// # Errors
    /// It was killed before.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        let pid = self.pid(number)?;
        self.vm.shell(&format!("kill -9 {pid}; while [ -e /proc/{pid} ]; do usleep 5000; done"))?;
        self.forget(number);
        Ok(())
    }

    /// Hog `number` was killed by other means.
    pub fn forget(&mut self, number: usize) {
        self.alive[number] = None;
    }

    /// Has all of those that are left check what they wrote.
    ///
    /// # Errors
    /// Memory of one has changed, or one does not answer.
    pub fn check(&self) -> Result<()> {
        for (number, pid) in self.alive.iter().enumerate() {
            let Some(pid) = pid else { continue };
            // Answers of earlier checks stand in the log too.
            let answers = format!("$(grep -c 'hog {number} [ic]' {LOG})");
            self.vm.shell(&format!(
                "had={answers}; kill -USR1 {pid}; until [ {answers} -gt $had ]; do usleep 5000; done"
            ))?;
            let corrupt =
                self.vm.shell(&format!("grep -c 'hog {number} corrupt' {LOG} || true"))?;
            ensure!(corrupt == "0", "memory of hog {number} has changed");
        }
        Ok(())
    }

    /// Ends all of them and waits until they are gone.
    ///
    /// # Errors
    /// The guest hangs.
    pub fn end(self) -> Result<()> {
        self.vm.shell("killall -9 hog; while pidof hog > /dev/null; do usleep 5000; done")?;
        Ok(())
    }
}
