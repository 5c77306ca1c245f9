//! What serial port and console are connected to on the host.
//!
//! A [`CharDevice`] is opened once, before the first boot, and lives until the machine is deleted:
//! a guest's reset or reboot does not close it. The machine keeps it; devices get clones of its
//! backend.
//!
//! - **Never in the way.** A vCPU may be waiting for a write. Where nobody reads (a full pipe, a
//!   pty without a client, a stopped terminal) a write waits [`PATIENCE`] at most, and then output
//!   is dropped, at once, until there is room again. A slow reader that keeps reading loses nothing.
//! - **Never spinning.** Input is watched through an epoll instance of its own in which each
//!   descriptor reports once per arming, so an end of file or a hang-up can't wake anyone twice.
//! - **Never shared state.** A terminal is opened anew for non-blocking use: setting `O_NONBLOCK`
//!   on the descriptor we inherited would set it for the shell as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::chardev::CharBackend;
use devices::virtio::console::WindowSize;
use rustix::fs::{Mode, OFlags};

use super::spec::CharMode;
use socket::Socket;
use stream::Stream;
use terminal::{Pty, Terminal};

mod outlet;
mod socket;
mod stream;
mod terminal;
mod watch;

pub use outlet::PATIENCE;

/// Why a character device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CharError {
    /// Standard input or output can't be used.
    #[error("the terminal can't be used")]
    Terminal(#[source] io::Error),
    /// No pseudo-terminal to be had.
    #[error("no pseudo-terminal can be made")]
    Pty(#[source] io::Error),
    /// The output file can't be made.
    #[error("{} can't be opened for output", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket can't be made.
    #[error("{} can't be listened on", path.display())]
    Socket {
        /// The socket's name.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The host's end of a serial port or console, open. Dropping it puts the terminal's modes back;
/// dropping the last clone of its backend removes the socket.
pub struct CharDevice {
    backend: Arc<dyn CharBackend>,
    extra: Extra,
}

/// What only some kinds have.
enum Extra {
    None,
    Terminal(Terminal),
    Pty(Pty),
}

impl CharDevice {
    /// Opens what `mode` names; `None` when there is to be no device.
    ///
    /// # Errors
    /// [`CharError`], with the host's reason.
    pub fn open(mode: &CharMode) -> Result<Option<Self>, CharError> {
        let device = match mode {
            CharMode::Off => return Ok(None),
            CharMode::Null => Self::plain(Null),
            CharMode::Tty => Self::terminal(io::stdin().as_fd(), io::stdout().as_fd())
                .map_err(CharError::Terminal)?,
            CharMode::Pty => Self::pty().map_err(CharError::Pty)?,
            CharMode::File(path) => {
                Self::file(path).map_err(|source| CharError::File { path: path.clone(), source })?
            }
            CharMode::Socket(path) => Socket::bind(path)
                .map(Self::plain)
                .map_err(|source| CharError::Socket { path: path.clone(), source })?,
        };
        Ok(Some(device))
    }

    /// For the device model.
    pub fn backend(&self) -> Arc<dyn CharBackend> {
        Arc::clone(&self.backend)
    }

    /// The path to open the pseudo-terminal by, if it is one. `vm.info` shows it as `file`.
    pub fn pty_path(&self) -> Option<&Path> {
        match &self.extra {
            Extra::Pty(pty) => Some(pty.path()),
            _ => None,
        }
    }

    /// The size of the terminal's window now; zeros when it is none or does not say.
    pub fn window_size(&self) -> WindowSize {
        match &self.extra {
            Extra::Terminal(terminal) => terminal.window_size(),
            Extra::Pty(pty) => pty.window_size(),
            Extra::None => WindowSize::default(),
        }
    }

    /// To be called on SIGCONT and SIGWINCH: a terminal we have got back from the shell is set up
    /// again and listened to.
    pub fn refresh(&self) {
        if let Extra::Terminal(terminal) = &self.extra {
            terminal.refresh();
        }
    }

    fn plain(backend: impl CharBackend + 'static) -> Self {
        Self { backend: Arc::new(backend), extra: Extra::None }
    }

    fn terminal(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>) -> io::Result<Self> {
        let (terminal, backend) = Terminal::open(stdin, stdout)?;
        Ok(Self { backend, extra: Extra::Terminal(terminal) })
    }

    fn pty() -> io::Result<Self> {
        let (pty, stream) = Pty::open()?;
        Ok(Self { backend: Arc::new(stream), extra: Extra::Pty(pty) })
    }

    /// Appends, so that a log can be truncated under us; non-blocking, so that a FIFO without a
    /// reader is an error and not a wait.
    fn file(path: &Path) -> io::Result<Self> {
        let create = OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND;
        let flags = OFlags::WRONLY | create | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o666))?;
        Ok(Self::plain(Stream::new(None, file)?))
    }
}

/// Nothing at the other end.
struct Null;

impl CharBackend for Null {
    fn input(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn read(&self, _buffer: &mut [u8]) -> usize {
        0
    }

    fn arm(&self) {}

    fn write(&self, _bytes: &[u8]) {}
}

#[cfg(test)]
mod tests;
