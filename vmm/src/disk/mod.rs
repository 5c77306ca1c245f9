//! Disk images on the host: raw files and block devices, read and written straight from and to
//! guest memory.
//!
//! [`open`] makes a [`DiskImage`], which makes one engine per queue: `uring` (io_uring) where the
//! kernel allows it, else `sync` (one blocking call at a time). An engine turns each operation into
//! a `Job`, and a `DiskFile` can finish any job with plain system calls: that is all that `sync`
//! does, and what `uring` falls back to for whatever is rare.
//!
//! **Invariants.** Guest memory is touched by the kernel alone, which answers EFAULT for memory
//! that was unplugged. A transfer holds a share of the memory it points into, and io_uring's
//! transfers are kept until the kernel has answered them.

mod file;
mod image;
mod job;
mod sync;
#[cfg(test)]
mod tests;
mod transfer;
mod uring;

use std::io;
use std::path::PathBuf;

pub use image::{DiskImage, open};

/// Why a disk image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused to open it.
    #[error("cannot open disk image {path}", path = .path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A directory, pipe, socket or terminal.
    #[error("disk image {path} is neither a file nor a block device", path = .path.display())]
    NotADisk {
        /// The image.
        path: PathBuf,
    },
    /// Someone else has the image open in a way that does not go together with this one.
    #[error("disk image {path} is in use by another virtual machine or program", path = .path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// The host does not say how large the image or its blocks are.
    #[error("cannot find out the size of disk image {path}", path = .path.display())]
    Inspect {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// There is not one block in it.
    #[error("disk image {path} is too small: it holds no whole block", path = .path.display())]
    TooSmall {
        /// The image.
        path: PathBuf,
    },
    /// The file system can't bypass the page cache.
    #[error("disk image {path} can't be used with direct=on", path = .path.display())]
    NoDirect {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}
