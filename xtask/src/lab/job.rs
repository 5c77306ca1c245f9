//! What runs in the lab: a command, its environment, its folders.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::output::{Sinks, watch};
use crate::process::run;

/// Variables that go into the lab machine beside those of the job.
const PASSED: &[&str] = &["PATH", "HOME", "LANG", "LC_ALL", "TERM", "USER"];
const PASSED_PREFIXES: &[&str] = &["TESSERA_", "RUST_", "RUSTUP_", "CARGO"];

/// A disk image that the command may write to; what it writes is thrown away.
struct Disk {
    variable: &'static str,
    image: PathBuf,
}

/// A command to run where guests run.
pub(crate) struct Job {
    command: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    directory: PathBuf,
    disks: Vec<Disk>,
    pub(crate) shares: Vec<PathBuf>,
    pub(crate) tty: bool,
}

impl Job {
    /// A job in the present folder; the first word of `command` is the program.
    pub(crate) fn new(command: Vec<OsString>) -> Result<Self> {
        if command.is_empty() {
            bail!("no command");
        }
        let directory = std::env::current_dir().context("cannot tell the current folder")?;
        Ok(Self {
            command,
            variables: Vec::new(),
            directory,
            disks: Vec::new(),
            shares: Vec::new(),
            tty: false,
        })
    }

    /// Sets one variable of the command's environment.
    pub(crate) fn with_variable(
        mut self,
        name: impl Into<OsString>,
        value: impl Into<OsString>,
    ) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Gives the command a disk image to write to, under the path that the variable holds. What it
    /// writes is thrown away.
    pub(crate) fn with_disk(mut self, variable: &'static str, image: &Path) -> Self {
        self.disks.push(Disk { variable, image: image.to_owned() });
        self
    }

    /// The images of the disks, in the order of the lab machine's block devices.
    pub(crate) fn disk_images(&self) -> impl Iterator<Item = &Path> {
        self.disks.iter().map(|disk| disk.image.as_path())
    }

    /// Runs the command in another folder than the present one.
    pub(crate) fn in_directory(mut self, directory: PathBuf) -> Self {
        self.directory = directory;
        self
    }

    /// Adds folders of the host that the command may write to; they are made if missing.
    pub(crate) fn with_shares(mut self, shares: Vec<PathBuf>) -> Result<Self> {
        for share in shares {
            fs::create_dir_all(&share)
                .with_context(|| format!("cannot make {}", share.display()))?;
            self.shares.push(share.canonicalize()?);
        }
        Ok(self)
    }

    /// Whether the command gets the terminal.
    pub(crate) fn with_tty(mut self, tty: bool) -> Self {
        self.tty = tty;
        self
    }

    /// Runs the command on the host, with the terminal or with other outputs, and gives its status
    /// as a shell would. A command that outlives the time-out is killed: an error.
    pub(crate) fn run_here(&self, sinks: Option<Sinks>, timeout: Duration) -> Result<u8> {
        let copies = tempfile::Builder::new().prefix("tessera-lab-").tempdir()?;
        let mut command = self.host_command();
        for disk in &self.disks {
            command.env(disk.variable, copy_of(&disk.image, copies.path())?);
        }
        if sinks.is_some() {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.name()))?;
        match watch(&mut child, sinks.unwrap_or_else(Sinks::terminal), timeout)? {
            Some(status) => Ok(status_of(status)),
            None => bail!("{} was ended after {} minutes", self.name(), timeout.as_secs() / 60),
        }
    }

    fn host_command(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory);
        command
    }

    /// How messages call the job: the name of its program.
    pub(crate) fn name(&self) -> String {
        Path::new(&self.command[0]).file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The script that sets the environment up inside the lab machine and becomes the command.
    pub(crate) fn script(&self) -> Result<String> {
        let mut script = String::from("export TMPDIR=/run/tmp\n");
        let inherited = std::env::vars_os().filter(|(name, _)| passes(&name.to_string_lossy()));
        for (name, value) in inherited.chain(self.variables.iter().cloned()) {
            let name = name.to_str().context("a variable's name is not text")?;
            script.push_str(&format!("export {name}={}\n", quoted(&value)?));
        }
        for (disk, letter) in self.disks.iter().zip('a'..='z') {
            script.push_str(&format!("export {}=/dev/vd{letter}\n", disk.variable));
        }
        script.push_str(&format!("cd {} || exit 126\n", quoted(self.directory.as_os_str())?));
        let words: Vec<String> =
            self.command.iter().map(|word| quoted(word)).collect::<Result<_>>()?;
        script.push_str(&format!("exec {}\n", words.join(" ")));
        Ok(script)
    }
}

fn copy_of(image: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join(image.file_name().context("a disk image has a name")?);
    let options = ["--sparse=always", "--reflink=auto", "--no-preserve=mode"];
    run(Command::new("cp").args(options).args([image, &copy]))?;
    Ok(copy)
}

/// What a shell would call the status of an ended process.
fn status_of(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn passes(name: &str) -> bool {
    let shell_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let listed = PASSED.contains(&name) || PASSED_PREFIXES.iter().any(|p| name.starts_with(p));
    shell_name && listed
}

/// A word as a shell reads it back unchanged.
fn quoted(word: &std::ffi::OsStr) -> Result<String> {
    let text = word.to_str().with_context(|| format!("{} is not text", word.display()))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_quoted_words_back_unchanged() {
        for word in ["plain", "two words", "it's", "$HOME `id` \"x\"", "new\nline", "", "\\"] {
            let script = format!("printf %s {}", quoted(word.as_ref()).unwrap());
            let printed = crate::process::output(Command::new("sh").args(["-c", &script])).unwrap();
            assert_eq!(printed, word);
        }
    }

    #[test]
    fn the_script_runs_the_command_in_its_folder_with_its_variables() {
        let script = Job::new(vec!["printenv".into(), "TESSERA_X".into()])
            .unwrap()
            .with_variable("TESSERA_X", "a 'b' c")
            .in_directory("/".into())
            .script()
            .unwrap();
        let printed = crate::process::output(Command::new("sh").args(["-c", &script])).unwrap();
        assert_eq!(printed, "a 'b' c\n");
    }

    #[test]
    fn writes_to_a_disk_do_not_reach_its_image() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, "whole").unwrap();
        let status = Job::new(["sh", "-c", "echo changed > $TESSERA_DISK"].map(Into::into).into())
            .unwrap()
            .with_disk("TESSERA_DISK", &image)
            .run_here(None, Duration::from_secs(60))
            .unwrap();
        assert_eq!((status, fs::read_to_string(&image).unwrap().as_str()), (0, "whole"));
    }

    #[test]
    fn disks_are_named_in_the_order_of_the_block_devices() {
        let job = Job::new(vec!["true".into()])
            .unwrap()
            .with_disk("TESSERA_A", Path::new("/images/a"))
            .with_disk("TESSERA_B", Path::new("/images/b"));
        let script = job.script().unwrap();
        assert!(script.contains("export TESSERA_A=/dev/vda\nexport TESSERA_B=/dev/vdb\n"));
        assert_eq!(job.disk_images().last(), Some(Path::new("/images/b")));
    }

    #[test]
    fn only_listed_variables_pass() {
        assert!(passes("PATH") && passes("TESSERA_BIN") && passes("RUST_LOG"));
        assert!(passes("CARGO_TARGET_DIR"));
        assert!(!passes("SECRET_TOKEN") && !passes("RUST_X%Y"));
    }

    #[test]
    fn a_killed_process_has_the_status_of_a_shell() {
        let status = Command::new("sh").args(["-c", "kill -9 $$"]).status().unwrap();
        assert_eq!(status_of(status), 137);
    }
}
