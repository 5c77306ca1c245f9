//! Artefacts that take long to build, kept outside the checkout.
//!
//! An artefact is a folder named after the hash of its inputs. It is built under a temporary name
//! and renamed into place, so a folder that is there is whole; a lock lets two sessions on one
//! machine ask for the same artefact and build it once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The folder that holds all artefacts.
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$TESSERA_CACHE`, else `$XDG_CACHE_HOME/tessera`, else `~/.cache/tessera`; made if missing.
    pub(crate) fn open() -> Result<Self> {
        let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = from("TESSERA_CACHE")
            .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("tessera")))
            .or_else(|| from("HOME").map(|dir| dir.join(".cache/tessera")))
            .context("none of TESSERA_CACHE, XDG_CACHE_HOME and HOME is set")?;
        Self::at(root)
    }

    fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self { root: root.canonicalize()? })
    }

    /// The folder of the artefact `name` made from `key`; `build` fills it when it is not there.
    pub(crate) fn artefact(
        &self,
        name: &str,
        key: &Key,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.root.join(format!("{name}-{}", key.hex()));
        if path.exists() {
            return Ok(path);
        }
        let lock = File::create(self.root.join(format!("{name}.lock")))?;
        lock.lock().context("cannot lock the cache")?;
        if path.exists() {
            return Ok(path);
        }
        let temporary = tempfile::Builder::new().prefix("building-").tempdir_in(&self.root)?;
        build(temporary.path()).with_context(|| format!("cannot build {name}"))?;
        make_readable(temporary.path())?;
        fs::rename(temporary.path(), &path)?;
        // The folder has moved: there is nothing left to delete.
        let _ = temporary.keep();
        Ok(path)
    }
}

/// Temporary folders are private; a finished artefact is for every user of the machine.
fn make_readable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// The hash of an artefact's inputs.
pub(crate) struct Key(Sha256);

impl Key {
    /// A key of nothing yet. `recipe` changes when the code that builds changes its result.
    pub(crate) fn new(recipe: u32) -> Self {
        Self(Sha256::new()).input("recipe", recipe.to_le_bytes())
    }

    /// Adds one named input. Lengths are hashed too, so that no two lists of inputs collide.
    pub(crate) fn input(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), content.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds the content of a file, under its name.
    pub(crate) fn file(self, path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(self.input(&name, content))
    }

    fn hex(&self) -> String {
        let digest = self.0.clone().finalize();
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artefact_is_built_once_for_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        let mut builds = 0;
        for _ in 0..2 {
            let path = cache
                .artefact("thing", &Key::new(1), |dir| {
                    builds += 1;
                    Ok(fs::write(dir.join("file"), "content")?)
                })
                .unwrap();
            assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "content");
        }
        assert_eq!(builds, 1);
    }

    #[test]
    fn a_failed_build_leaves_no_artefact() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        assert!(cache.artefact("thing", &Key::new(1), |_| anyhow::bail!("no")).is_err());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [cache.root.join("thing.lock")]);
    }

    #[test]
    fn keys_differ_when_the_same_bytes_are_split_otherwise() {
        let one = Key::new(1).input("a", "bc").hex();
        assert_ne!(one, Key::new(1).input("ab", "c").hex());
        assert_ne!(one, Key::new(2).input("a", "bc").hex());
        assert_eq!(one, Key::new(1).input("a", "bc").hex());
    }
}
