//! Programs that cargo builds: which ones there are, and where.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::workspace;

/// A program that cargo built.
pub(crate) struct Program {
    /// The package it belongs to.
    pub(crate) package: String,
    /// The name of its target.
    pub(crate) name: String,
    /// The kind of its target: `lib`, `bin`, `test`, ...
    pub(crate) kind: String,
    /// Whether it is a program of tests.
    pub(crate) is_test: bool,
    /// The file to run.
    pub(crate) path: PathBuf,
    /// The folder of its package, in which cargo would run it.
    pub(crate) directory: PathBuf,
}

impl Program {
    /// How messages call it.
    pub(crate) fn label(&self) -> String {
        format!("{} ({} {})", self.package, self.kind, self.name)
    }
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(program);
    cargo.current_dir(workspace());
    cargo
}

/// Builds with these arguments and gives the programs, in the order of their labels.
pub(crate) fn build(arguments: &[&str]) -> Result<Vec<Program>> {
    let (command, rest) = arguments.split_first().context("cargo needs a command")?;
    let out = cargo()
        .arg(command)
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .args(rest)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !out.status.success() {
        bail!("`cargo {}` ended with {}", arguments.join(" "), out.status);
    }
    let mut programs: Vec<Program> =
        String::from_utf8_lossy(&out.stdout).lines().filter_map(program).collect();
    programs.sort_by_key(Program::label);
    Ok(programs)
}

/// Builds one release binary, statically linked, and gives its path. A monitor starts once per VM,
/// and finding its libraries would be a tenth of what it does before the guest runs.
pub(crate) fn release_binary(package: &str, name: &str) -> Result<PathBuf> {
    let target = ["rustc", "--release", "--package", package, "--bin", name];
    build(&[&target[..], &["--", "-C", "target-feature=+crt-static"]].concat())?
        .into_iter()
        .find(|program| program.name == name)
        .map(|program| program.path)
        .with_context(|| format!("cargo built no {name}"))
}

/// Reads one message of cargo; only those about a program matter.
fn program(line: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(line).ok()?;
    let text = |pointer: &str| message.pointer(pointer)?.as_str().map(str::to_owned);
    let directory = PathBuf::from(text("/manifest_path")?).parent()?.to_owned();
    let path = PathBuf::from(text("/executable")?);
    Some(Program {
        package: directory.file_name()?.to_str()?.to_owned(),
        name: text("/target/name")?,
        kind: text("/target/kind/0")?,
        is_test: message.pointer("/profile/test").and_then(Value::as_bool).unwrap_or(false),
        path,
        directory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_with_an_executable_name_a_program() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/ws/devices/Cargo.toml",
            "target":{"kind":["lib"],"name":"devices"},"profile":{"test":true},
            "executable":"/t/devices-1"}"#;
        let found = program(line).unwrap();
        assert_eq!(found.label(), "devices (lib devices)");
        assert!(found.is_test);
        assert!(!program(&line.replace("true", "false")).unwrap().is_test);
        assert_eq!(found.path, PathBuf::from("/t/devices-1"));
        assert!(program(&line.replace("\"/t/devices-1\"", "null")).is_none());
        assert!(program("{\"reason\":\"build-finished\"}").is_none());
        assert!(program("not json").is_none());
    }
}
