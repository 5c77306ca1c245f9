//! Commands of the host: run, watch, read; with an error that says what was run.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The longest silence of a step that reports its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(15);

/// Says on stderr what comes next.
pub(crate) fn step(text: &str) {
    eprintln!("==> {text}");
}

/// The root of the checkout: the parent of this crate's folder.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the manifest folder of a workspace member has a parent")
        .to_owned()
}

/// A command that runs as root: as it is for root, through sudo for others.
pub(crate) fn as_root(program: &str) -> Result<Command> {
    let uid = output(Command::new("id").arg("-u"))?;
    if uid.trim() == "0" {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

/// Runs a command whose output goes to stderr; a status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", describe(command));
    }
    Ok(())
}

/// Runs a command and gives its standard output; a status other than 0 is an error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("{} ended with {}: {}", describe(command), out.status, stderr.trim());
    }
    String::from_utf8(out.stdout)
        .with_context(|| format!("{} printed something other than text", describe(command)))
}

/// Runs a long command with its output in `log`, and counts its lines on stderr while it runs.
/// On failure the error holds the end of the log.
pub(crate) fn run_logged(command: &mut Command, log: &Path, noun: &str) -> Result<()> {
    let file = std::fs::File::create(log).context("cannot create the log")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    let stdout = child.stdout.take().expect("stdout was asked for as a pipe");
    count_lines(BufReader::new(stdout), file, noun)?;
    let status = child.wait()?;
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        bail!("{} ended with {status}:\n{}", describe(command), last_lines(&text, 30));
    }
    Ok(())
}

fn count_lines(reader: impl BufRead, mut log: impl std::io::Write, noun: &str) -> Result<()> {
    let start = Instant::now();
    let mut reported = start;
    for (count, line) in reader.lines().enumerate() {
        writeln!(log, "{}", line?)?;
        if reported.elapsed() >= PROGRESS_INTERVAL {
            reported = Instant::now();
            eprintln!("    {:4} s: {} {noun}", start.elapsed().as_secs(), count + 1);
        }
    }
    Ok(())
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().take(3).map(|arg| arg.to_string_lossy()));
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_of_a_short_text_are_all_of_it() {
        assert_eq!(last_lines("a\nb\n", 5), "a\nb");
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
    }

    #[test]
    fn a_failing_command_is_named_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"]))
            .expect_err("status 3 is an error");
        let text = format!("{error:#}");
        assert!(text.contains("broken") && text.contains("`sh"), "{text}");
    }
}
