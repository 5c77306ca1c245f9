//! Debian's own binary kernels, unpacked into the cache; nothing is installed on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Key};
use crate::process::{output, run, step};
use crate::setup;

/// Raised when this file unpacks something else from the same package.
const RECIPE: u32 = 1;

/// An unpacked kernel package.
pub(crate) struct StockKernel {
    /// The kernel as an ELF file.
    pub(crate) vmlinux: PathBuf,
    /// The root of the unpacked package; holds `lib/modules`.
    pub(crate) root: PathBuf,
    /// The release that `uname -r` gives.
    pub(crate) release: String,
}

/// Downloads the kernel that the meta package `meta` depends on, unless the cache has it.
pub(crate) fn ensure(cache: &Cache, meta: &str) -> Result<StockKernel> {
    setup::packages()?;
    let package = match dependency(meta) {
        Ok(package) => package,
        Err(_) => {
            setup::update_lists()?;
            dependency(meta)?
        }
    };
    let key = Key::new(RECIPE).input("package", &package);
    let root = cache.artefact("stock-kernel", &key, |dir| unpack(&package, dir))?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    Ok(StockKernel { vmlinux: root.join("vmlinux"), root, release })
}

/// The package that a meta package names; its name holds the version and the ABI.
fn dependency(meta: &str) -> Result<String> {
    let text = output(Command::new("apt-cache").args(["depends", "--important", meta]))?;
    text.lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .map(str::to_owned)
        .with_context(|| format!("{meta} depends on no kernel"))
}

fn unpack(package: &str, dir: &Path) -> Result<()> {
    step(&format!("downloading {package}"));
    let download = || run(Command::new("apt-get").current_dir(dir).args(["download", package]));
    if download().is_err() {
        // The archive drops a version when the next one is out.
        setup::update_lists()?;
        download()?;
    }
    for entry in fs::read_dir(dir)? {
        let deb = entry?.path();
        run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(dir))?;
        fs::remove_file(deb)?;
    }
    let release = package.trim_start_matches("linux-image-");
    run(Command::new("depmod").arg("--basedir").arg(dir).arg(release))?;
    let image = dir.join("boot").join(format!("vmlinuz-{release}"));
    let compressed = dir.join("vmlinux.zst");
    fs::write(&compressed, payload(&fs::read(image)?)?)?;
    run(Command::new("zstd").args(["--decompress", "--quiet", "--rm"]).arg(compressed))
}

/// The compressed kernel inside a bzImage, as its header says (`Documentation/arch/x86/boot.rst`:
/// setup_sects, payload_offset, payload_length). The last four bytes are its size once unpacked.
/// Booting the unpacked kernel saves an emulated machine more than a second of decompression.
fn payload(image: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let find = || {
        let setup_sectors = usize::from(*image.get(0x1f1)?);
        let start = (setup_sectors + 1) * 512 + word(0x248)?;
        image.get(start..start + word(0x24c)?.checked_sub(4)?)
    };
    let payload = find().context("the bzImage's header names no payload")?;
    ensure!(payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "the kernel is not packed with zstd");
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0; 2048];
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12_u32.to_le_bytes());
        image[1040..1052].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4, 9, 9, 9, 9]);
        image
    }

    #[test]
    fn the_payload_ends_before_its_size() {
        assert_eq!(payload(&image()).unwrap(), [0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4]);
    }

    #[test]
    fn a_truncated_image_is_an_error() {
        for length in [0, 0x200, 0x24f, 1045] {
            assert!(payload(&image()[..length]).is_err(), "{length}");
        }
    }
}
