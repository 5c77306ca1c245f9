//! Opening an image: what it is, how large, who else uses it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Once};

use devices::guest_memory::GuestMemory;
use devices::virtio::block::{Engine, Geometry, Image, SECTOR, Sectors};
use log::{debug, info, warn};

use super::Error;
use super::file::{DiskFile, Kind};
use super::sync::Blocking;
use super::uring::Uring;

/// The largest block a disk is said to have: the size of a page.
const MAX_BLOCK: u32 = 4096;

/// Taken when the log has said that the host has no io_uring.
static NO_URING: Once = Once::new();

/// An open, locked disk image. Closed and unlocked when it and all its engines are gone.
#[derive(Debug)]
pub struct DiskImage {
    pub(super) file: Arc<DiskFile>,
    geometry: Geometry,
    use_uring: bool,
}

/// Opens and locks the raw image or block device at `path`: not to be written with `readonly`, past
/// the host's page cache (`O_DIRECT`) with `direct`. A size that is not whole blocks is rounded
/// down.
///
/// Whoever opens an image to write is alone with it, among programs that lock; the lock belongs to
/// the open file, so opening one twice for writing fails within a process too.
///
/// # Errors
/// See [`Error`].
pub fn open(path: &Path, readonly: bool, direct: bool) -> Result<DiskImage, Error> {
    let kind = kind(path)?;
    let file = open_file(path, readonly, direct)?;
    lock(&file, path, readonly)?;
    let inspect = |source| Error::Inspect { path: path.into(), source };
    let alignment = match direct {
        true => Some(
            direct_alignment(&file)
                .map_err(|source| Error::NoDirect { path: path.into(), source })?,
        ),
        false => None,
    };
    let bytes = (&file).seek(SeekFrom::End(0)).map_err(inspect)?;
    let (logical_block, physical_block) = blocks(&file, kind, alignment).map_err(inspect)?;
    let capacity = bytes - bytes % u64::from(logical_block);
    if capacity == 0 {
        return Err(Error::TooSmall { path: path.into() });
    }
    if capacity < bytes {
        warn!("disk image {}: the last {} bytes are left out", path.display(), bytes - capacity);
    }
    let geometry = Geometry {
        capacity: Sectors(capacity / SECTOR),
        readonly,
        logical_block,
        physical_block,
        transfer_alignment: alignment.unwrap_or(SECTOR as u32),
    };
    debug!("disk image {}: {geometry:?}", path.display());
    let file = DiskFile::new(file, kind, alignment.map(|bytes| bytes as usize));
    Ok(DiskImage { file: Arc::new(file), geometry, use_uring: true })
}

impl DiskImage {
    /// The same image, with engines that do without io_uring.
    #[must_use]
    pub fn without_uring(self) -> Self {
        Self { use_uring: false, ..self }
    }
}

impl Image for DiskImage {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn engine(&self, memory: &Arc<GuestMemory>, depth: u16) -> io::Result<Box<dyn Engine>> {
        if self.use_uring {
            match Uring::new(Arc::clone(&self.file), Arc::clone(memory), depth) {
                Ok(engine) => return Ok(Box::new(engine)),
                // Once, because a guest can reset its disks as often as it likes.
                Err(error) => {
                    NO_URING.call_once(|| info!("disks work without io_uring: {error}"));
                }
            }
        }
        Ok(Box::new(Blocking::new(Arc::clone(&self.file), Arc::clone(memory))))
    }
}

/// Looks before opening, because opening a pipe or a tape can block or have effects.
fn kind(path: &Path) -> Result<Kind, Error> {
    let metadata = path.metadata().map_err(|source| Error::Open { path: path.into(), source })?;
    match metadata.file_type() {
        kind if kind.is_file() => Ok(Kind::File),
        kind if kind.is_block_device() => Ok(Kind::BlockDevice),
        _ => Err(Error::NotADisk { path: path.into() }),
    }
}

fn open_file(path: &Path, readonly: bool, direct: bool) -> Result<File, Error> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(!readonly).custom_flags(flags).open(path);
    file.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) if direct => Error::NoDirect { path: path.into(), source },
        _ => Error::Open { path: path.into(), source },
    })
}

/// Takes a lock of the whole image that goes with the open file: shared to read, exclusive to
/// write. A file system without locks is used without.
fn lock(file: &File, path: &Path, readonly: bool) -> Result<(), Error> {
    let kind = if readonly { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one `flock`, which lives through the call, and writes nothing; the
    // descriptor is open while `file` is borrowed.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                Err(Error::InUse { path: path.into() })
            }
            error => {
                warn!("disk image {} is not locked: {error}", path.display());
                Ok(())
            }
        },
    }
}

/// What offsets, lengths and memory must be multiples of for `O_DIRECT`, in bytes: the least with
/// which a read succeeds.
fn direct_alignment(file: &File) -> io::Result<u32> {
    #[repr(align(4096))]
    struct Block([u8; MAX_BLOCK as usize]);
    let mut block = Block([0; MAX_BLOCK as usize]);
    let mut size = SECTOR as u32;
    loop {
        match file.read_at(&mut block.0[..size as usize], 0) {
            Ok(_) => return Ok(size),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && size < MAX_BLOCK => {
                size *= 2;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The logical and the physical block size, in bytes. `alignment` is that of `O_DIRECT`, where it
/// is used: a guest has to be told blocks of that size.
fn blocks(file: &File, kind: Kind, alignment: Option<u32>) -> io::Result<(u32, u32)> {
    let (logical, physical) = match kind {
        Kind::File => (SECTOR as u32, u32::try_from(file.metadata()?.blksize()).unwrap_or(0)),
        Kind::BlockDevice => (
            rustix::fs::ioctl_blksszget(file.as_fd())?,
            rustix::fs::ioctl_blkpbszget(file.as_fd())?,
        ),
    };
    let logical = logical.max(SECTOR as u32).max(alignment.unwrap_or(0));
    let fits = physical.is_power_of_two() && physical > logical;
    Ok((logical, if fits { physical.min(MAX_BLOCK.max(logical)) } else { logical }))
}
