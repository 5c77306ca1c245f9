//! Text that arrives while a test does something else.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Lines shown of a guest or a monitor when its test failed.
const SHOWN: usize = 80;

/// All that was read from somewhere so far; a thread of its own reads on, until the end.
#[derive(Clone, Default)]
pub(crate) struct Output(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Output {
    /// Reads `source` to its end.
    ///
    /// # Errors
    /// The host refused a thread.
    pub(crate) fn of(mut source: impl Read + Send + 'static) -> Result<Self> {
        let output = Self::default();
        let shared = output.clone();
        let read = move || {
            let mut buffer = [0; 4096];
            // A pseudo-terminal whose other side was closed reports an error, not an end.
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                shared.lock().bytes.extend_from_slice(&buffer[..count]);
                shared.0.changed.notify_all();
            }
            shared.lock().ended = true;
            shared.0.changed.notify_all();
        };
        thread::Builder::new()
            .name("output".into())
            .spawn(read)
            .context("cannot start a thread")?;
        Ok(output)
    }

    /// Waits for `text` behind `from`; returns what lies between, and where it ends.
    ///
    /// # Errors
    /// It did not come in time, or can't come any more.
    pub(crate) fn wait_for(
        &self,
        text: &str,
        from: usize,
        limit: Duration,
    ) -> Result<(String, usize)> {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(at) = find(&state.bytes[from..], text.as_bytes()) {
                let before = String::from_utf8_lossy(&state.bytes[from..from + at]);
                return Ok((before.into_owned(), from + at + text.len()));
            }
            if state.ended {
                bail!("the output ended without {text:?}");
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waited {} s for {text:?}", limit.as_secs());
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until nothing more can come, so that what a dead process said last is there.
    pub(crate) fn wait_for_end(&self, limit: Duration) {
        let waiting = |state: &mut State| !state.ended;
        drop(self.0.changed.wait_timeout_while(self.lock(), limit, waiting));
    }

    /// How much there is.
    pub(crate) fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// All of it, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).replace('\r', "")
    }

    /// Its last lines, under a title. Printed on the test's own output, which the test harness
    /// shows when the test fails.
    pub(crate) fn show(&self, title: &str) {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(SHOWN);
        println!("---- {title}: {} lines, the last {} ----", lines.len(), lines.len() - skipped);
        lines[skipped..].iter().for_each(|line| println!("{line}"));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn text_is_found_across_writes_and_once() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let output = Output::of(reader).unwrap();
        writer.write_all(b"Debian\r\nlog").unwrap();
        assert!(output.wait_for("login:", 0, Duration::from_millis(50)).is_err());
        writer.write_all(b"in: x").unwrap();
        let (before, end) = output.wait_for("login:", 0, SOON).unwrap();
        assert_eq!(before, "Debian\r\n");
        assert!(output.wait_for("login:", end, Duration::ZERO).is_err());
        assert_eq!(output.text(), "Debian\nlogin: x");
    }

    #[test]
    fn the_end_is_noticed_at_once() {
        let (reader, writer) = std::io::pipe().unwrap();
        let output = Output::of(reader).unwrap();
        drop(writer);
        output.wait_for_end(SOON);
        let error = output.wait_for("never", 0, SOON).unwrap_err();
        assert_eq!(error.to_string(), "the output ended without \"never\"");
    }
}
