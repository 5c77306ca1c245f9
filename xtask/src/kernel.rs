//! `kernel`: the guest kernel, from Debian's source, our patches and our configuration fragments.
//! A second one of the same patches finds what is wrong with them, and takes its time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::kconfig;
use crate::process::{output, run, run_logged, step, workspace};
use crate::setup;

const SOURCE_PACKAGE: &str = "linux-source-6.12";
const SOURCE_ARCHIVE: &str = "/usr/src/linux-source-6.12.tar.xz";

/// The settings that only our patches know.
const OUR_SETTINGS: &str = "60-partition.config";

/// Raised when this file builds something else from the same inputs.
const RECIPE: u32 = 1;

/// What a kernel build leaves behind.
pub(crate) struct Kernel {
    /// The ELF image, stripped; booted through PVH.
    pub(crate) vmlinux: PathBuf,
    /// The compressed image, booted through the 64-bit Linux protocol.
    pub(crate) bzimage: PathBuf,
}

/// The inputs in the repository.
pub(crate) struct Inputs {
    pub(crate) patches: Vec<PathBuf>,
    fragments: Vec<PathBuf>,
}

/// Gives the kernel for the present patches and fragments, and builds it when it is missing.
pub(crate) fn ensure(cache: &Cache) -> Result<Kernel> {
    let dir = built(cache, "kernel", &Inputs::in_workspace()?, "4 to 8 minutes")?;
    Ok(Kernel { vmlinux: dir.join("vmlinux"), bzimage: dir.join("bzImage") })
}

/// Gives the vmlinux of the kernel that checks itself, and builds it when it is missing.
pub(crate) fn ensure_debug(cache: &Cache) -> Result<PathBuf> {
    let dir = built(cache, "debug-kernel", &Inputs::for_debugging()?, "7 to 15 minutes")?;
    Ok(dir.join("vmlinux"))
}

/// Gives the vmlinux of the kernel that none of our patches has touched, and builds it when it is
/// missing.
pub(crate) fn ensure_plain(cache: &Cache) -> Result<PathBuf> {
    let dir = built(cache, "plain-kernel", &Inputs::without_patches()?, "4 to 8 minutes")?;
    Ok(dir.join("vmlinux"))
}

/// The folder of the kernel `name` that these inputs make; `time` is what building it takes.
fn built(cache: &Cache, name: &str, inputs: &Inputs, time: &str) -> Result<PathBuf> {
    let version = source_version()?;
    cache.artefact(name, &inputs.key(&version)?, |dir| {
        step(&format!("building the guest {name} {version}: {time} on two cores"));
        build(inputs, dir)
    })
}

/// The version of the kernel's source, which is installed when it is missing.
pub(crate) fn source_version() -> Result<String> {
    setup::packages()?;
    setup::installed_version(SOURCE_PACKAGE)
}

impl Inputs {
    pub(crate) fn in_workspace() -> Result<Self> {
        Self::find(&workspace().join("guest-kernel-patches"))
    }

    /// The same with the settings for debugging, which come last.
    fn for_debugging() -> Result<Self> {
        let mut inputs = Self::in_workspace()?;
        inputs.fragments.push(workspace().join("guest-kernel-patches/debug.config"));
        Ok(inputs)
    }

    /// Debian's source with the same settings, as far as it has them.
    fn without_patches() -> Result<Self> {
        let mut inputs = Self::in_workspace()?;
        inputs.patches.clear();
        inputs.fragments.retain(|path| !path.ends_with(OUR_SETTINGS));
        Ok(inputs)
    }

    fn find(dir: &Path) -> Result<Self> {
        let series = fs::read_to_string(dir.join("series")).context("cannot read the series")?;
        let patches = series
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|name| dir.join(name))
            .collect();
        let mut fragments: Vec<PathBuf> = fs::read_dir(dir.join("config"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        fragments.retain(|path| path.extension().is_some_and(|ext| ext == "config"));
        fragments.sort();
        Ok(Self { patches, fragments })
    }

    fn key(&self, source_version: &str) -> Result<Key> {
        let key = Key::new(RECIPE).input("source", source_version);
        self.patches.iter().chain(&self.fragments).try_fold(key, |key, path| key.file(path))
    }
}

fn build(inputs: &Inputs, dir: &Path) -> Result<()> {
    let tree = dir.join("tree");
    unpack(&tree, "")?;
    for patch in &inputs.patches {
        step(&format!("kernel: applying {}", patch.display()));
        apply(patch, &tree)?;
    }
    step("kernel: configuring");
    let mut wanted = String::new();
    for fragment in &inputs.fragments {
        wanted.push_str(&fs::read_to_string(fragment)?);
        wanted.push('\n');
    }
    configure(&tree, &wanted, "")?;
    step("kernel: compiling");
    let jobs = std::thread::available_parallelism()?.to_string();
    let targets = ["vmlinux", "bzImage", "modules"];
    let mut compile = make(&tree);
    compile.args(["--jobs", &jobs]).args(targets);
    run_logged(&mut compile, &dir.join("build.log"), "build steps")?;
    collect(&tree, dir)?;
    Ok(fs::remove_dir_all(tree)?)
}

/// Makes `tree`, with the source that no patch has touched: what is in `folder` of it.
pub(crate) fn unpack(tree: &Path, folder: &str) -> Result<()> {
    fs::create_dir(tree)?;
    step("kernel: unpacking the source");
    let options = ["--strip-components=1", "--extract", "--file", SOURCE_ARCHIVE, "--directory"];
    run(Command::new("tar").args(options).arg(tree).arg(format!("{SOURCE_PACKAGE}/{folder}")))
}

/// Applies one patch, whose context must be what it says.
pub(crate) fn apply(patch: &Path, tree: &Path) -> Result<()> {
    let options = ["--strip=1", "--forward", "--fuzz=0", "--silent", "--input"];
    run(Command::new("patch").current_dir(tree).args(options).arg(patch))
}

/// Starts from the smallest configuration, adds the settings, and checks that each wanted one held:
/// the kernel's own tools drop what lacks a dependency without a word. That is fine for those of
/// `optional`, which come last.
pub(crate) fn configure(tree: &Path, wanted: &str, optional: &str) -> Result<()> {
    output(make(tree).args(["--silent", "tinyconfig"]))?;
    let path = tree.join(".config");
    let config = fs::read_to_string(&path)?;
    fs::write(&path, format!("{config}{wanted}\n{optional}\n"))?;
    output(make(tree).args(["--silent", "olddefconfig"]))?;
    let config = fs::read_to_string(&path)?;
    let missing = kconfig::missing(wanted, &config);
    if !missing.is_empty() {
        bail!(
            "the kernel's configuration lacks what the fragments ask for:\n{}",
            missing.join("\n")
        );
    }
    Ok(())
}

/// The same inputs give the same bytes: no user, host or date of this build.
pub(crate) fn make(tree: &Path) -> Command {
    let mut make = Command::new("make");
    make.current_dir(tree)
        .env("ARCH", "x86")
        .env("KBUILD_BUILD_USER", "tessera")
        .env("KBUILD_BUILD_HOST", "tessera")
        .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01");
    make
}

fn collect(tree: &Path, dir: &Path) -> Result<()> {
    run(Command::new("strip")
        .arg("--strip-all")
        .arg("-o")
        .arg(dir.join("vmlinux"))
        .arg(tree.join("vmlinux")))?;
    for (from, to) in
        [("arch/x86/boot/bzImage", "bzImage"), ("System.map", "System.map"), (".config", "config")]
    {
        fs::copy(tree.join(from), dir.join(to)).with_context(|| format!("no {from} was built"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_gives_patches_in_its_order_without_comments() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        fs::write(dir.path().join("series"), "# order matters\n\n0002-b.patch\n0001-a.patch\n")
            .unwrap();
        for name in ["b.config", "a.config", "README"] {
            fs::write(dir.path().join("config").join(name), "").unwrap();
        }
        let inputs = Inputs::find(dir.path()).unwrap();
        assert_eq!(inputs.patches, ["0002-b.patch", "0001-a.patch"].map(|n| dir.path().join(n)));
        let config = dir.path().join("config");
        assert_eq!(inputs.fragments, ["a.config", "b.config"].map(|n| config.join(n)));
    }

    #[test]
    fn a_kernel_without_patches_is_not_asked_for_what_they_add() {
        let (ours, plain) = (Inputs::in_workspace().unwrap(), Inputs::without_patches().unwrap());
        assert!(plain.patches.is_empty());
        assert_eq!(plain.fragments.len(), ours.fragments.len() - 1);
    }

    #[test]
    fn no_option_is_asked_for_twice_with_different_values() {
        let inputs = Inputs::for_debugging().unwrap();
        let text: String =
            inputs.fragments.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        let contradictions = kconfig::missing(&text, &text);
        assert!(contradictions.is_empty(), "{contradictions:?}");
    }
}
