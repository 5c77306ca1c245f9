//! A guest's console: what it says, and a shell on it.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::output::Output;
use crate::patience::{until, within};

/// What our guest's shell says when it waits for a command.
const PROMPT: &str = "tessera# ";

/// For a boot of our guest, and for a command of its shell.
const PATIENCE: u32 = 90;

/// Both directions of a guest's console.
pub struct Console {
    output: Output,
    input: RefCell<Box<dyn Write>>,
    /// What was waited for lies before it.
    seen: Cell<usize>,
    commands: Cell<u32>,
    prompt: &'static str,
    /// The shell of this boot has said its prompt.
    prompted: Cell<bool>,
    /// To be hung up, for the thread that reads has a copy of its own.
    socket: Option<UnixStream>,
    /// What the guest said last is not printed when this is dropped.
    quiet: bool,
}

impl Console {
    /// A console whose output is read from `output`, and to which `input` writes.
    ///
    /// # Errors
    /// The host refused a thread.
    pub fn new(output: impl Read + Send + 'static, input: impl Write + 'static) -> Result<Self> {
        Ok(Self {
            output: Output::of(output)?,
            input: RefCell::new(Box::new(input)),
            seen: Cell::new(0),
            commands: Cell::new(0),
            prompt: PROMPT,
            prompted: Cell::new(false),
            socket: None,
            quiet: false,
        })
    }

    /// The console behind a unix socket, which may still have to be made.
    ///
    /// # Errors
    /// Nobody comes to listen there.
    pub fn connect(socket: &Path) -> Result<Self> {
        // Whoever makes it listens a moment later.
        let early = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
        let what = format!("somebody to listen at {}", socket.display());
        let stream = until(&what, within(30), || match UnixStream::connect(socket) {
            Err(error) if early.contains(&error.kind()) => Ok(None),
            stream => Ok(Some(stream?)),
        })?;
        let mut console = Self::new(stream.try_clone()?, stream.try_clone()?)?;
        console.socket = Some(stream);
        Ok(console)
    }

    /// The console behind a pseudo-terminal.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(terminal: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(terminal);
        let file: File = file.with_context(|| format!("cannot open {}", terminal.display()))?;
        Self::new(file.try_clone()?, file)
    }

    /// The shell on this console has another prompt than our own guest's.
    #[must_use]
    pub fn with_prompt(mut self, prompt: &'static str) -> Self {
        self.prompt = prompt;
        self
    }

    /// For a program that is no test: it shows what the guest said when and where it likes.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Waits for `text` in what nobody waited for yet; returns what comes before it.
    ///
    /// # Errors
    /// It did not come in the time of a boot, or the console was closed.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        self.wait_for_within(text, within(PATIENCE))
    }

    /// Like [`Console::wait_for`], with a limit of the caller's.
    ///
    /// # Errors
    /// As [`Console::wait_for`].
    pub fn wait_for_within(&self, text: &str, limit: Duration) -> Result<String> {
        let (before, end) = self.output.wait_for(text, self.seen.get(), limit)?;
        self.seen.set(end);
        Ok(before)
    }

    /// Waits for the shell of a guest that has just been started, or started again.
    ///
    /// # Errors
    /// There was none in the time of a boot.
    pub fn wait_for_shell(&self) -> Result<()> {
        self.wait_for(self.prompt)?;
        self.prompted.set(true);
        Ok(())
    }

    /// Runs a command in the guest's shell and returns what it printed, without blank ends. Waits
    /// for the shell first.
    ///
    /// # Errors
    /// No shell, no end of the command in time, or a status other than 0.
    pub fn shell(&self, command: &str) -> Result<String> {
        let (status, printed) = self.status_of(command)?;
        ensure!(status == 0, "`{command}` ended with status {status}: {printed}");
        Ok(printed)
    }

    /// Like [`Console::shell`], with the command's status as part of the result.
    ///
    /// # Errors
    /// No shell, or no end of the command in time.
    pub fn status_of(&self, command: &str) -> Result<(i32, String)> {
        if !self.prompted.get() {
            self.wait_for_shell()?;
        }
        let number = self.commands.get() + 1;
        self.commands.set(number);
        // The terminal echoes the line. The empty quotes keep the marks out of the echo.
        self.send(&format!("echo '<''{number}>'; {command}; echo '</''{number}:'$?'>'\n"))?;
        self.wait_for(&format!("<{number}>\r\n"))?;
        let printed = self.wait_for(&format!("</{number}:"))?.replace('\r', "");
        let status = self.wait_for(">")?;
        // A later wait for the shell is for that of another boot.
        self.wait_for(self.prompt)?;
        let status = status.parse().with_context(|| format!("no status in {status:?}"))?;
        Ok((status, printed.trim().to_owned()))
    }

    /// Types `text` as it is.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn send(&self, text: &str) -> Result<()> {
        let mut input = self.input.borrow_mut();
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).context("cannot type")
    }

    /// All the guest has said so far.
    pub fn text(&self) -> String {
        self.output.text()
    }

    /// How many bytes the guest has said so far.
    pub fn len(&self) -> usize {
        self.output.len()
    }

    /// Whether the guest has said nothing yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn wait_for_end(&self, limit: Duration) {
        self.output.wait_for_end(limit);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // Only fails when the other side has hung up.
            let _ = socket.shutdown(Shutdown::Both);
        }
        if !self.quiet {
            self.output.show("console");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell as a terminal shows it: it echoes each line, then says `answer`.
    fn shell(answer: &str) -> Console {
        let (output, mut say) = std::io::pipe().unwrap();
        let (hear, input) = std::io::pipe().unwrap();
        let answer = answer.to_owned();
        std::thread::spawn(move || {
            say.write_all(b"tessera-init: 0.3\r\ntessera# ").unwrap();
            let mut line = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(hear), &mut line).unwrap();
            let echoed = line.replace('\n', "\r\n");
            say.write_all(format!("{echoed}{answer}tessera# ").as_bytes()).unwrap();
        });
        Console::new(output, input).unwrap()
    }

    #[test]
    fn a_command_returns_what_it_printed_and_not_its_echo() {
        let console = shell("<1>\r\none\r\ntwo\r\n</1:0>\r\n");
        assert_eq!(console.shell("ls; ls").unwrap(), "one\ntwo");
    }

    #[test]
    fn a_command_that_fails_is_an_error_with_its_output() {
        let console = shell("<1>\r\ncat: no\r\n</1:7>\r\n");
        let error = console.shell("cat").unwrap_err().to_string();
        assert_eq!(error, "`cat` ended with status 7: cat: no");
    }
}
