//! Memory hogs in a guest: `tests/guest/hog.c`, steered over its shell.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::patience::{until, within};
use crate::tessera::Tessera;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Processes in a guest that hold memory. They live until [`Hogs::end`] or the guest's own.
pub struct Hogs<'a> {
    vm: &'a Tessera,
    /// What they say.
    log: String,
    pids: Vec<u32>,
}

impl Tessera {
    /// Starts `count` hogs of `mib` MiB each, with more `options` of the program's, and waits until
    /// they have touched all their memory.
    ///
    /// # Errors
    /// The guest has no room for them.
    pub fn hogs(&self, count: usize, mib: u64, options: &str) -> Result<Hogs<'_>> {
        let log = format!("/tmp/hogs{}", COUNT.fetch_add(1, Ordering::Relaxed));
        // Through a pipe: pages of a file that a hog wrote would lie where its own memory is to.
        self.shell(&format!(
            "( (hog {count} {mib} {options} 2>&1; echo ended) | cat > {log} &); \
             until grep -qE 'ready|ended' {log}; do sleep 0.1; done"
        ))?;
        let told = self.shell(&format!("cat {log}"))?;
        ensure!(told.contains("ready"), "hog {count} {mib} {options}: {told}");
        Ok(Hogs { vm: self, log, pids: hog_processes(&told, count)? })
    }
}

impl Hogs<'_> {
    /// The process of hog `number`.
    pub fn pid(&self, number: usize) -> u32 {
        self.pids[number]
    }

    /// Has all of them look at what they wrote.
    ///
    /// # Errors
    /// Memory of one has changed, or one does not answer.
    pub fn check(&self) -> Result<()> {
        // With those of earlier checks.
        let answers = || self.vm.shell(&format!("grep -E 'intact|corrupt' {} || true", self.log));
        let expected = answers()?.lines().count() + self.pids.len();
        self.vm.shell(&format!("kill -USR1 {}", self.words()))?;
        let told = until("the hogs to look at their memory", within(30), || {
            Ok(Some(answers()?).filter(|told| told.lines().count() == expected))
        })?;
        ensure!(!told.contains("corrupt"), "{told}");
        Ok(())
    }

    /// Ends them and waits until they are gone, their memory with them.
    ///
    /// # Errors
    /// The guest hangs.
    pub fn end(self) -> Result<()> {
        let (pids, log) = (self.words(), &self.log);
        self.vm.shell(&format!("kill -9 {pids}; until grep -q ended {log}; do sleep 0.1; done"))?;
        Ok(())
    }

    /// Their processes, for the shell.
    fn words(&self) -> String {
        let words: Vec<_> = self.pids.iter().map(u32::to_string).collect();
        words.join(" ")
    }
}

/// The processes of the first `count` hogs that the log names, in the order of their numbers.
///
/// # Errors
/// One is missing.
pub fn hog_processes(log: &str, count: usize) -> Result<Vec<u32>> {
    let pid = |number| {
        let line = log.lines().find_map(|line| line.strip_prefix(&format!("hog {number} ")));
        line.and_then(|pid| pid.parse().ok()).with_context(|| format!("no hog {number} in {log:?}"))
    };
    (0..count).map(pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_by_number_whatever_their_order() {
        let log = "hog 1 12\nhog 0 11\nhog 10 99\nhogs ready";
        assert_eq!(hog_processes(log, 2).unwrap(), [11, 12]);
        assert!(hog_processes(log, 3).unwrap_err().to_string().contains("no hog 2"));
    }
}
