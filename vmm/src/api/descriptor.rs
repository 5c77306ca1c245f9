//! Where a client wants the monitor to listen or to write: a path, or a descriptor it left open.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// A path, or the number of a descriptor that was open when the monitor started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A file to make.
    Path(PathBuf),
    /// An open descriptor.
    Fd(RawFd),
}

impl Endpoint {
    /// The file to write to, made anew when it is a path.
    ///
    /// # Errors
    /// The host refused it, or the descriptor is not open.
    pub fn create(&self) -> io::Result<File> {
        match self {
            Self::Path(path) => File::create(path),
            Self::Fd(fd) => inherited(*fd).map(File::from),
        }
    }

    /// The path, when it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Fd(_) => None,
        }
    }
}

/// A duplicate of the descriptor numbered `fd`; the number itself stays open.
///
/// Asks the kernel for it by number, as one process may ask for another's: the one way to take
/// over a number without a promise that nobody else owns it.
///
/// # Errors
/// The descriptor is not open.
pub(super) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        // rustix takes a negative number for a bug of its caller.
        return Err(rustix::io::Errno::BADF.into());
    }
    let this_process = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(this_process, fd, PidfdGetfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn inherited_descriptor_reaches_the_same_file() {
        let (mut near, far) = UnixStream::pair().unwrap();
        Endpoint::Fd(far.as_raw_fd()).create().unwrap().write_all(b"hello").unwrap();
        let mut text = [0; 5];
        near.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
    }

    #[test]
    fn closed_descriptor_is_an_error() {
        for fd in [-1, 1_000_000] {
            assert!(Endpoint::Fd(fd).create().is_err());
        }
    }
}
