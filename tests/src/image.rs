//! Disk images.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A disk image in a folder of its own, gone when dropped.
pub struct Image {
    folder: TempDir,
}

impl Image {
    /// An image with this content.
    ///
    /// # Errors
    /// The host refused.
    pub fn with(content: &[u8]) -> Result<Self> {
        let image = Self { folder: TempDir::new()? };
        fs::write(image.path(), content).context("cannot write the image")?;
        Ok(image)
    }

    /// An image of whole sectors that begins with a file, and the file's size.
    ///
    /// # Errors
    /// The file can't be read, or the host refused.
    pub fn beginning_with(file: &Path) -> Result<(Self, usize)> {
        let mut content = fs::read(file).with_context(|| format!("no {}", file.display()))?;
        let size = content.len();
        content.resize(size.next_multiple_of(512), 0);
        Ok((Self::with(&content)?, size))
    }

    /// An image of so many zeros, which take no space.
    ///
    /// # Errors
    /// The host refused.
    pub fn empty(size: u64) -> Result<Self> {
        let image = Self::with(&[])?;
        image.resize(size)?;
        Ok(image)
    }

    /// An empty ext4 file system of this size.
    ///
    /// # Errors
    /// The host refused, or has no mkfs.ext4.
    pub fn ext4(size: u64) -> Result<Self> {
        let image = Self::empty(size)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let status = Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(image.path())
            // Where Debian has it, which is in no ordinary user's path.
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .status()
            .context("cannot run mkfs.ext4")?;
        ensure!(status.success(), "mkfs.ext4 ended with {status}");
        Ok(image)
    }

    /// A copy of `original` whose holes take no space.
    ///
    /// # Errors
    /// The host refused.
    pub fn copy_of(original: &Path) -> Result<Self> {
        let image = Self { folder: TempDir::new()? };
        let status = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .arg(original)
            .arg(image.path())
            .status()
            .context("cannot run cp")?;
        ensure!(status.success(), "cp ended with {status}");
        Ok(image)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Cuts it off, or makes it longer with zeros; also under a running VM.
    ///
    /// # Errors
    /// The host refused.
    pub fn resize(&self, size: u64) -> Result<()> {
        let file = File::options().write(true).open(self.path())?;
        file.set_len(size).context("cannot resize the image")
    }

    /// All of it.
    ///
    /// # Errors
    /// The host refused.
    pub fn content(&self) -> Result<Vec<u8>> {
        fs::read(self.path()).context("cannot read the image")
    }
}

/// Bytes that no two calls share, so that what is found was written by this test.
///
/// # Errors
/// The host has no `/dev/urandom`.
pub fn random_bytes(count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
