//! A guest's clock and this machine's, lined up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::elastic::Elastic;

/// How often a clock is asked; the quickest answer counts.
const QUESTIONS: u32 = 20;

/// Ends a program's input on a terminal.
const END_OF_INPUT: &str = "\x04";

/// What both clocks said at one time.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Nanoseconds on the guest's monotonic clock.
    guest: u64,
    /// The same time here.
    host: Instant,
    /// At most so far from it.
    pub within: Duration,
}

impl Reading {
    /// Asks `latency clock` in the guest (`tests/guest/latency.c`) over its console: its answer is
    /// from between question and answer.
    ///
    /// # Errors
    /// The guest hangs.
    pub fn of(vm: &Elastic) -> Result<Self> {
        let console = vm.console();
        console.send("latency clock\n")?;
        console.wait_for("ready\r\n")?;
        let mut best: Option<Self> = None;
        for _ in 0..QUESTIONS {
            let asked = Instant::now();
            console.send("\n")?;
            console.wait_for("at ")?;
            let said = console.wait_for("\r\n")?;
            let within = asked.elapsed() / 2;
            let guest = said.parse().with_context(|| format!("the clock said {said:?}"))?;
            if best.is_none_or(|best| within < best.within) {
                best = Some(Self { guest, host: asked + within, within });
            }
        }
        console.send(END_OF_INPUT)?;
        best.context("the clock was not asked")
    }

    /// When the guest's clock said `guest`, after this reading and before `later`. Clocks that run at
    /// different speeds do no harm.
    pub fn host_time(&self, later: &Self, guest: u64) -> Instant {
        let since = |from: u64, to: u64| to.saturating_sub(from) as f64;
        let part = since(self.guest, guest) / since(self.guest, later.guest).max(1.0);
        self.host + (later.host - self.host).mul_f64(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_time_lies_between_the_readings_as_it_does_on_its_own_clock() {
        let within = Duration::ZERO;
        let first = Reading { guest: 5_000_000_000, host: Instant::now(), within };
        // The guest's clock runs at half the speed.
        let later = first.host + Duration::from_secs(8);
        let later = Reading { guest: 9_000_000_000, host: later, within };
        let at = first.host_time(&later, 6_000_000_000);
        assert_eq!(at - first.host, Duration::from_secs(2));
        assert_eq!(first.host_time(&first, 5_000_000_000), first.host);
    }
}
