//! The initial root file system of test guests: busybox and a small init, nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::cpio::Archive;
use crate::process::run;
use crate::setup;

const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("initramfs/init.sh");

/// Raised when this file builds something else from the same inputs.
const RECIPE: u32 = 1;

/// Gives the gzipped archive, and builds it when it is missing.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf> {
    setup::packages()?;
    let key = Key::new(RECIPE).file(Path::new(BUSYBOX))?.input("init", INIT);
    let dir = cache.artefact("initramfs", &key, |dir| {
        let path = dir.join("initramfs.cpio");
        fs::write(&path, archive()?)?;
        run(Command::new("gzip").args(["-9", "--no-name"]).arg(&path))
    })?;
    Ok(dir.join("initramfs.cpio.gz"))
}

fn archive() -> Result<Vec<u8>> {
    let mut archive = with_busybox(&["dev", "proc", "run", "sys", "tmp"])?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    Ok(archive.finish()?)
}

/// An archive that has busybox and these empty folders at its root.
pub(crate) fn with_busybox(folders: &[&str]) -> Result<Archive<Vec<u8>>> {
    let busybox = fs::read(BUSYBOX).context("cannot read busybox")?;
    let mut archive = Archive::new(Vec::new());
    archive.directory("bin")?;
    for folder in folders {
        archive.directory(folder)?;
    }
    archive.file("bin/busybox", 0o755, &busybox)?;
    Ok(archive)
}
