//! The folder that a benchmark runs in.

use std::io;
use std::path::{Path, PathBuf};
use std::{env, fs};

use tempfile::TempDir;
use thiserror::Error;

/// Why a file could not be staged.
#[derive(Debug, Error)]
pub enum Error {
    /// The variable is missing or names no file.
    #[error("{0} names no file; `cargo xtask bench` sets it")]
    Variable(String),
    /// The file cannot be copied.
    #[error("cannot copy {path}")]
    Copy {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A temporary folder with copies of all files that are measured with: in the lab the host's files
/// come over 9p, and no contender should wait for that. It is gone when this is dropped.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
}

impl Place {
    /// Makes it where temporary files go.
    ///
    /// # Errors
    /// There is no room.
    pub fn new() -> io::Result<Self> {
        Ok(Self { folder: tempfile::Builder::new().prefix("bench-").tempdir()? })
    }

    /// Copies the file that an environment variable names, and gives the path of the copy.
    ///
    /// # Errors
    /// The variable is not set, or the file cannot be read, or there is no room.
    pub fn staged(&self, variable: &str) -> Result<PathBuf, Error> {
        let no_file = || Error::Variable(variable.to_owned());
        let path = env::var_os(variable).map(PathBuf::from).ok_or_else(no_file)?;
        self.copied(&path, path.file_name().ok_or_else(no_file)?.as_ref())
    }

    /// A path for a socket, on which no file is.
    pub fn socket(&self) -> PathBuf {
        let socket = self.folder.path().join("control.sock");
        // Left behind by a monitor that was killed; most of the time there is none.
        let _ = fs::remove_file(&socket);
        socket
    }

    fn copied(&self, path: &Path, name: &Path) -> Result<PathBuf, Error> {
        let copy = self.folder.path().join(name);
        fs::copy(path, &copy).map_err(|source| Error::Copy { path: path.to_owned(), source })?;
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_name_of_the_file_and_is_gone_with_the_place() {
        let place = Place::new().unwrap();
        let original = place.folder.path().join("a");
        fs::write(&original, "text").unwrap();
        let copy = place.copied(&original, Path::new("b")).unwrap();
        assert_eq!(fs::read_to_string(&copy).unwrap(), "text");
        assert!(copy.ends_with("b"));
        drop(place);
        assert!(!copy.exists());
    }

    #[test]
    fn a_missing_variable_or_file_is_named() {
        let place = Place::new().unwrap();
        let error = place.staged("TESSERA_NO_SUCH_VARIABLE").unwrap_err();
        assert!(error.to_string().starts_with("TESSERA_NO_SUCH_VARIABLE names no file"));
        let error = place.copied(Path::new("/nonexistent"), Path::new("b")).unwrap_err();
        assert_eq!(error.to_string(), "cannot copy /nonexistent");
    }

    #[test]
    fn a_stale_socket_is_removed() {
        let place = Place::new().unwrap();
        fs::write(place.socket(), "").unwrap();
        assert!(!place.socket().exists());
    }
}
