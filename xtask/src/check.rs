//! `check`: format, lints, documentation, size limits.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::cargo::cargo;
use crate::process::{output, run as run_command, step, workspace};

/// The most lines a Rust file may have before its tests.
const FILE_LIMIT: usize = 500;

/// The widest that a line may be. rustfmt ends code at 100.
const LINE_LIMIT: usize = 110;

/// The most lines a shell script may have: beyond that it belongs in xtask.
const SCRIPT_LIMIT: usize = 20;

/// A check by its name; it fails with what it found.
pub(crate) type Check = (&'static str, fn() -> Result<()>);

/// All checks, the quick ones first.
pub(crate) const CHECKS: [Check; 4] =
    [("format", format), ("sizes", sizes), ("lints", lints), ("documentation", documentation)];

/// Runs every check, says how each ended, and fails if one did.
pub(crate) fn run() -> Result<ExitCode> {
    let failed = CHECKS.iter().filter(|(name, check)| !passes(name, *check)).count();
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one check and says how it ended.
pub(crate) fn passes(name: &str, check: fn() -> Result<()>) -> bool {
    step(&format!("check {name}"));
    match check() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("check {name} failed: {error:#}");
            false
        }
    }
}

fn format() -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))
}

fn lints() -> Result<()> {
    let arguments = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run_command(cargo().args(arguments))
}

fn documentation() -> Result<()> {
    // With private items: most of an application is private, and its links must hold too.
    let arguments = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"];
    run_command(cargo().args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

fn sizes() -> Result<()> {
    let root = workspace();
    let mut too_long = Vec::new();
    for name in source_files(&root)? {
        // A file that git knows and that is gone is about to be removed.
        let Ok(text) = fs::read_to_string(root.join(&name)) else { continue };
        let (lines, limit) = measure(Path::new(&name), &text);
        if lines > limit {
            too_long.push(format!("{name}: {lines} lines, limit {limit}"));
        }
        // rustfmt leaves comments and long strings alone.
        let wide = |(_, line): &(usize, &str)| line.chars().count() > LINE_LIMIT;
        for (at, _) in (1..).zip(text.lines()).filter(wide) {
            too_long.push(format!("{name}:{at}: wider than {LINE_LIMIT} columns"));
        }
    }
    if !too_long.is_empty() {
        bail!("\n{}", too_long.join("\n"));
    }
    Ok(())
}

/// The files that git tracks or would track; not the program in `scripts/`, which is for guests.
fn source_files(root: &Path) -> Result<Vec<String>> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let patterns = ["*.rs", "*.sh", ".ci/*"];
    let list = output(Command::new("git").current_dir(root).args(arguments).args(patterns))?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// The lines of a file that count, and its limit.
fn measure(path: &Path, text: &str) -> (usize, usize) {
    if path.extension().is_none_or(|extension| extension != "rs") {
        return (text.lines().count(), SCRIPT_LIMIT);
    }
    // A file of that name is the test module of its parent.
    if path.file_name().is_some_and(|name| name == "tests.rs") {
        return (0, FILE_LIMIT);
    }
    let end = text.find("\n#[cfg(test)]\nmod tests {").map_or(text.len(), |at| at + 1);
    (text[..end].lines().count(), FILE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tests_do_not_count() {
        let text = "//! Docs\nfn f() {}\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(measure(Path::new("a/b.rs"), text), (2, FILE_LIMIT));
        assert_eq!(measure(Path::new("a/tests.rs"), text), (0, FILE_LIMIT));
        let more = "#[cfg(test)]\nmod testing;\nfn f() {}\n#[cfg(test)]\nmod tests;\nfn g() {}\n";
        assert_eq!(measure(Path::new("a/b.rs"), more), (6, FILE_LIMIT), "one item is no module");
    }

    #[test]
    fn all_lines_of_a_script_count() {
        assert_eq!(measure(Path::new("x/init.sh"), "a\nb\n"), (2, SCRIPT_LIMIT));
        assert_eq!(measure(Path::new(".ci/run"), "a\n"), (1, SCRIPT_LIMIT));
    }
}
