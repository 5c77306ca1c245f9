//! What a running job prints, copied as it comes, and its end, waited for with a limit.

use std::io::{self, Read, Write};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// For a command whose answer takes seconds, a look 50 times a second is soon enough.
const POLL: Duration = Duration::from_millis(20);

/// Where a job's standard output and error go.
pub(crate) struct Sinks {
    pub(crate) out: Box<dyn Write + Send>,
    pub(crate) err: Box<dyn Write + Send>,
}

impl Sinks {
    /// Those of this process.
    pub(crate) fn terminal() -> Self {
        Self { out: Box::new(io::stdout()), err: Box::new(io::stderr()) }
    }
}

/// Copies the child's pipes, if it has any, until it ends. At the time-out it is killed, and there
/// is no status.
pub(crate) fn watch(
    child: &mut Child,
    sinks: Sinks,
    timeout: Duration,
) -> Result<Option<ExitStatus>> {
    let Sinks { out, err } = sinks;
    let out = child.stdout.take().map(|pipe| copy(pipe, out));
    let err = child.stderr.take().map(|pipe| copy(pipe, err));
    let status = wait(child, timeout)?;
    for copy in [out, err].into_iter().flatten() {
        // A sink that is gone (a closed pipe) must not hide the job's status.
        let _ = copy.join();
    }
    Ok(status)
}

/// Copies as it comes: a waiting person sees each line at once.
fn copy(
    mut from: impl Read + Send + 'static,
    mut to: Box<dyn Write + Send>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
                return;
            }
        }
    })
}

fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > timeout {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::mpsc;

    use super::*;

    /// Sends what is written through a channel.
    struct Channel(mpsc::Sender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_owned()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_process_that_hangs_is_ended_at_the_time_out() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let start = Instant::now();
        assert!(wait(&mut child, Duration::from_millis(50)).unwrap().is_none());
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn output_and_error_go_to_their_own_sinks() {
        let (out, out_bytes) = mpsc::channel();
        let (err, err_bytes) = mpsc::channel();
        let sinks = Sinks { out: Box::new(Channel(out)), err: Box::new(Channel(err)) };
        let mut child = Command::new("sh")
            .args(["-c", "echo one; echo two >&2; exit 3"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = watch(&mut child, sinks, Duration::from_secs(60)).unwrap().unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(out_bytes.iter().flatten().collect::<Vec<u8>>(), b"one\n");
        assert_eq!(err_bytes.iter().flatten().collect::<Vec<u8>>(), b"two\n");
    }
}
