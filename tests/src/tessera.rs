//! The monitor as a process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::artefact::Artefact;
use crate::cgroup::Cgroup;
use crate::config::{Config, MIB};
use crate::console::Console;
use crate::http::Api;
use crate::output::Output;
use crate::patience::{until, within};
use crate::process::Process;

/// For a monitor to end by itself: the guest's own power-off comes first.
const PATIENCE: u32 = 60;

/// For the guest to plug or unplug what it is to.
const RESIZING: u32 = 120;

/// Where a monitor's events are, in its folder.
const EVENTS: &str = "events";

/// A VM that has not been started.
pub struct Vm {
    config: Option<Config>,
    socket: Option<PathBuf>,
    terminal: Option<(File, File)>,
    prompt: Option<&'static str>,
    cgroup: Option<PathBuf>,
    events: bool,
}

impl From<Config> for Vm {
    /// A VM as `config` describes it.
    fn from(config: Config) -> Self {
        Self { config: Some(config), ..Self::absent() }
    }
}

impl Vm {
    /// No VM: the monitor waits for one to be created.
    pub fn absent() -> Self {
        Self {
            config: None,
            socket: None,
            terminal: None,
            prompt: None,
            cgroup: None,
            events: false,
        }
    }

    /// The API at this place, not in a folder of its own.
    #[must_use]
    pub fn api_socket(mut self, socket: &Path) -> Self {
        self.socket = Some(socket.to_owned());
        self
    }

    /// The guest's shell has another prompt than our own guest's.
    #[must_use]
    pub fn prompt(mut self, prompt: &'static str) -> Self {
        self.prompt = Some(prompt);
        self
    }

    /// The monitor runs in this cgroup from its first instruction on.
    #[must_use]
    pub fn in_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.processes());
        self
    }

    /// The monitor tells its events, for [`Tessera::events`].
    #[must_use]
    pub fn with_events(mut self) -> Self {
        self.events = true;
        self
    }

    /// The monitor gets a terminal, not pipes: `near` is the side a person sits at, `far` the
    /// monitor's, which becomes its controlling terminal.
    #[must_use]
    pub fn terminal(mut self, near: File, far: File) -> Self {
        self.terminal = Some((near, far));
        self
    }

    /// Starts the monitor, and in it the VM. Does not wait for either.
    ///
    /// # Errors
    /// An artefact is missing, or the host refused.
    pub fn boot(self) -> Result<Tessera> {
        let folder = TempDir::new()?;
        let socket = self.socket.clone().unwrap_or_else(|| folder.path().join("api.sock"));
        let mut command = self.command(folder.path(), &socket)?;
        let mut child = match &self.terminal {
            None => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
            Some((_, far)) => command.stdin(far.try_clone()?).stdout(far.try_clone()?),
        }
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the monitor")?;
        let console = match self.terminal {
            None => {
                let (output, input) = (child.stdout.take(), child.stdin.take());
                Console::new(output.context("no pipe")?, input.context("no pipe")?)?
            }
            Some((near, _)) => Console::new(near.try_clone()?, near)?,
        };
        let console = match self.prompt {
            None => console,
            Some(prompt) => console.with_prompt(prompt),
        };
        let log = Output::of(child.stderr.take().context("no pipe")?)?;
        Ok(Tessera { child, console, log, socket, folder })
    }

    fn command(&self, folder: &Path, socket: &Path) -> Result<Command> {
        let program = Artefact::Tessera.path()?;
        let mut command = match (&self.terminal, &self.cgroup) {
            (None, None) => Command::new(program),
            // The shell joins and becomes the monitor.
            (None, Some(processes)) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(processes).arg(program);
                shell
            }
            // A session of its own, with the terminal: the kernel then tells of a new size.
            (Some(_), _) => {
                let mut setsid = Command::new("setsid");
                setsid.arg("--ctty").arg(program);
                setsid
            }
        };
        command.arg("--api-socket").arg(socket).arg("-v");
        if let Some(config) = &self.config {
            let path = folder.join("vm.json");
            config.write_to(&path)?;
            command.arg("--config").arg(path);
        }
        if self.events {
            let path = format!("path={}", folder.join(EVENTS).display());
            command.arg("--event-monitor").arg(path);
        }
        Ok(command)
    }
}

/// A running monitor. Killed when dropped; then it prints what it logged last, as its console does
/// with what the guest said. The test harness shows that for a test that failed.
pub struct Tessera {
    child: Child,
    console: Console,
    log: Output,
    socket: PathBuf,
    folder: TempDir,
}

impl Tessera {
    /// A monitor without a VM.
    ///
    /// # Errors
    /// As [`Vm::boot`].
    pub fn idle() -> Result<Self> {
        Vm::absent().boot()
    }

    /// What is connected to the monitor's standard streams: the guest's console, as [`Config`]
    /// makes it.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Runs a command in the guest's shell; see [`Console::shell`].
    ///
    /// # Errors
    /// As [`Console::shell`].
    pub fn shell(&self, command: &str) -> Result<String> {
        self.console.shell(command)
    }

    /// Powers off a guest whose kernel has complained of nothing.
    ///
    /// # Errors
    /// It has, or the monitor does not end well.
    pub fn power_off_unharmed(self) -> Result<()> {
        let complaints = self.complaints()?;
        ensure!(complaints.is_empty(), "{complaints}");
        self.power_off()
    }

    /// How `memctl` ends that is called with these words.
    ///
    /// # Errors
    /// It does not start.
    pub fn run_memctl(&self, words: &str) -> Result<process::Output> {
        let mut command = Command::new(Artefact::Memctl.path()?);
        command.arg("--api-socket").arg(self.socket()).args(words.split(' '));
        command.output().context("cannot start memctl")
    }

    /// What it says where it goes well.
    ///
    /// # Errors
    /// It fails; with what it says then.
    pub fn memctl(&self, words: &str) -> Result<String> {
        let output = self.run_memctl(words)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "memctl {words}: {errors}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// All partitions.
    ///
    /// # Errors
    /// The API does not answer as it should.
    pub fn partitions(&self) -> Result<Vec<Value>> {
        let body = self.api().get("vm.partitions")?.expect(200)?.body;
        body.as_array().cloned().context("no list of partitions")
    }

    /// What the monitor says of its VM.
    ///
    /// # Errors
    /// The API does not answer as it should.
    pub fn info(&self) -> Result<Value> {
        Ok(self.api().get("vm.info")?.expect(200)?.body)
    }

    /// What the guest has of memory, in bytes.
    ///
    /// # Errors
    /// As [`Tessera::info`].
    pub fn actual_size(&self) -> Result<u64> {
        self.info()?["memory_actual_size"].as_u64().context("no size")
    }

    /// Wants the guest to have `size` bytes beside its partitions. Does not wait for it to follow.
    ///
    /// # Errors
    /// The monitor refuses.
    pub fn resize(&self, size: u64) -> Result<()> {
        self.api().put_json("vm.resize", &json!({ "desired_ram": size }))?.expect(204).map(drop)
    }

    /// Waits until the guest has `size` bytes in all.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn reaches(&self, size: u64) -> Result<()> {
        until(&format!("{} MiB in the guest", size / MIB), within(RESIZING), || {
            Ok((self.actual_size()? == size).then_some(()))
        })
    }

    /// All counters, by the names of devices.
    ///
    /// # Errors
    /// As [`Tessera::info`].
    pub fn counters(&self) -> Result<Value> {
        Ok(self.api().get("vm.counters")?.expect(200)?.body)
    }

    /// A counter of a device, of `_memory` or of `_vcpus`.
    ///
    /// # Errors
    /// There is none, or as [`Tessera::info`].
    pub fn counter(&self, of: &str, name: &str) -> Result<u64> {
        let counters = self.counters()?;
        counters[of][name].as_u64().with_context(|| format!("{of} has no counter {name}"))
    }

    /// All events so far, of a monitor that was started [`Vm::with_events`].
    ///
    /// # Errors
    /// It was not.
    pub fn events(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.folder().join(EVENTS)).context("no events")?;
        // The last one may not be whole yet.
        Ok(serde_json::Deserializer::from_str(&text).into_iter::<Value>().flatten().collect())
    }

    /// The API.
    pub fn api(&self) -> Api {
        Api::at(&self.socket)
    }

    /// The API's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A folder for this monitor's files, gone when it is dropped.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process.
    pub fn process(&self) -> Process {
        Process::of(&self.child)
    }

    /// What the monitor has logged so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).context("cannot signal the monitor")
    }

    /// Waits for the process to end; returns its status, and 128 and the signal's number for one
    /// that was killed, as a shell does.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn wait(&mut self) -> Result<i32> {
        let status = wait(&mut self.child, within(PATIENCE))?;
        self.console.wait_for_end(within(5));
        self.log.wait_for_end(within(5));
        Ok(code(status))
    }

    /// Kills the process at once, as a crash of the host's would: nothing is written back first.
    ///
    /// # Errors
    /// The host refused.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill the monitor")?;
        ensure!(self.wait()? == 128 + 9, "the monitor ended by itself");
        Ok(())
    }

    /// Powers the guest off from its shell and waits for the monitor to end well.
    ///
    /// # Errors
    /// It did not, or with a status other than 0.
    pub fn power_off(mut self) -> Result<()> {
        self.console.send("poweroff -f\n")?;
        self.end()
    }

    /// Waits for the monitor to end well.
    ///
    /// # Errors
    /// It did not, or with a status other than 0.
    pub fn end(&mut self) -> Result<()> {
        let status = self.wait()?;
        ensure!(status == 0, "the monitor ended with status {status}");
        ensure!(!self.socket.exists(), "the API socket is left behind");
        Ok(())
    }
}

impl Drop for Tessera {
    fn drop(&mut self) {
        // Only fails for a process that has ended, which is as good.
        let _ = self.child.kill();
        if let Err(error) = self.wait() {
            println!("the monitor can't be ended: {error:#}");
        }
        self.log.show("monitor's log");
    }
}

/// A monitor that ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: i32,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to standard error.
    pub error: String,
}

/// Runs the monitor with these arguments until it ends by itself.
///
/// # Errors
/// It did not end in time.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Ended> {
    let mut child = Command::new(Artefact::Tessera.path()?)
        .args(arguments.into_iter().map(Into::into))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the monitor")?;
    let output = Output::of(child.stdout.take().context("no pipe")?)?;
    let error = Output::of(child.stderr.take().context("no pipe")?)?;
    let status = wait(&mut child, within(PATIENCE));
    if status.is_err() {
        let _ = child.kill().and_then(|()| child.wait());
        output.show("output");
        error.show("monitor's log");
    }
    let status = code(status?);
    output.wait_for_end(within(5));
    error.wait_for_end(within(5));
    Ok(Ended { status, output: output.text(), error: error.text() })
}

fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    until("the monitor to end", limit, || Ok(child.try_wait()?))
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}
