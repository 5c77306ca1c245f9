//! The initial file system of guests that are put to work: the small one, and the C programs of
//! `tests/guest` in its `/bin`.
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
const RECIPE: u32 = 1;

/// Gives the gzipped archive, and builds it when it is missing.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf> {
    let base = initramfs::ensure(cache)?;
    let sources = sources(&workspace().join("tests/guest"))?;
    let key = Key::new(RECIPE).file(&base)?;
    let key = sources.iter().try_fold(key, |key, source| key.file(source))?;
    let dir = cache.artefact("guest-programs", &key, |dir| {
        let programs = dir.join("programs.cpio");
        fs::write(&programs, archive(&sources, dir)?)?;
        run(Command::new("gzip").args(["-9", "--no-name"]).arg(&programs))?;
        // Linux unpacks one archive after the other.
        let mut whole = fs::read(&base)?;
        whole.extend(fs::read(dir.join("programs.cpio.gz"))?);
        Ok(fs::write(dir.join("initramfs.cpio.gz"), whole)?)
    })?;
    Ok(dir.join("initramfs.cpio.gz"))
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    let mut sources = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
    sources.sort();
    Ok(sources)
}

fn archive(sources: &[PathBuf], dir: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for source in sources {
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let program = dir.join(&name);
        compile(source, &program)?;
        archive.file(&format!("bin/{name}"), 0o755, &fs::read(&program)?)?;
    }
    Ok(archive.finish()?)
}

fn compile(source: &Path, program: &Path) -> Result<()> {
    let mut gcc = Command::new("musl-gcc");
    gcc.args(["-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror"]);
    // The kernel's own headers: musl has none.
    for folder in ["/usr/include", "/usr/include/x86_64-linux-gnu"] {
        gcc.args(["-idirafter", folder]);
    }
    run(gcc.arg("-o").arg(program).arg(source))
}
