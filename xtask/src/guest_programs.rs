//! The initial file system of guests that are put to work: the small one, and the C programs of
//! `tests/guest` in its `/bin`.
//!
//! Each C file is a program, and each folder is one of all its C files. Headers are for all.
//!
//! They are C because they are close to the kernel's own self-tests, and linked with musl because a
//! guest that is measured should not have to unpack megabytes first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::cpio::Archive;
use crate::initramfs;
use crate::process::{run, workspace};

/// Raised when this file builds something else from the same inputs.
const RECIPE: u32 = 2;

/// Gives the gzipped archive, and builds it when it is missing.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf> {
    let base = initramfs::ensure(cache)?;
    let folder = workspace().join("tests/guest");
    let programs = programs(&folder)?;
    let headers = listed(&folder, "h")?;
    let key = Key::new(RECIPE).file(&base)?;
    let key = headers.iter().try_fold(key, |key, header| key.file(header))?;
    let key = programs.iter().try_fold(key, |key, program| program.add_to(key))?;
    let dir = cache.artefact("guest-programs", &key, |dir| {
        let own = dir.join("programs.cpio");
        fs::write(&own, archive(&programs, dir)?)?;
        run(Command::new("gzip").args(["-9", "--no-name"]).arg(&own))?;
        // Linux unpacks one archive after the other.
        let mut whole = fs::read(&base)?;
        whole.extend(fs::read(dir.join("programs.cpio.gz"))?);
        Ok(fs::write(dir.join("initramfs.cpio.gz"), whole)?)
    })?;
    Ok(dir.join("initramfs.cpio.gz"))
}

/// A program of the guest's.
struct Program {
    name: String,
    sources: Vec<PathBuf>,
    /// Those of its own folder.
    headers: Vec<PathBuf>,
}

impl Program {
    fn add_to(&self, key: Key) -> Result<Key> {
        let key = key.input("program", &self.name);
        self.sources.iter().chain(&self.headers).try_fold(key, |key, file| key.file(file))
    }

    fn compile(&self, into: &Path) -> Result<()> {
        let mut gcc = Command::new("musl-gcc");
        gcc.args(["-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror"]);
        // The kernel's own headers: musl has none.
        for folder in ["/usr/include", "/usr/include/x86_64-linux-gnu"] {
            gcc.args(["-idirafter", folder]);
        }
        run(gcc.arg("-o").arg(into).args(&self.sources))
    }
}

/// The files and folders of `folder`, in the order of their names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    let mut entries = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

fn listed(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = entries(folder)?;
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    Ok(files)
}

fn programs(folder: &Path) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for path in entries(folder)? {
        let (sources, headers) = if path.is_dir() {
            (listed(&path, "c")?, listed(&path, "h")?)
        } else if path.extension().is_some_and(|extension| extension == "c") {
            (vec![path.clone()], Vec::new())
        } else {
            continue;
        };
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        programs.push(Program { name, sources, headers });
    }
    Ok(programs)
}

fn archive(programs: &[Program], dir: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for program in programs {
        let binary = dir.join(&program.name);
        program.compile(&binary)?;
        archive.file(&format!("bin/{}", program.name), 0o755, &fs::read(&binary)?)?;
    }
    Ok(archive.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_program_and_so_is_a_folder_of_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("large")).unwrap();
        for name in ["small.c", "all.h", "README", "large/b.c", "large/a.c", "large/own.h"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let programs = programs(dir.path()).unwrap();
        let found: Vec<_> = programs
            .iter()
            .map(|one| (one.name.as_str(), one.sources.len(), one.headers.len()))
            .collect();
        assert_eq!(found, [("large", 2, 1), ("small", 1, 0)]);
        assert_eq!(listed(dir.path(), "h").unwrap(), [dir.path().join("all.h")]);
    }
}
