//! The monitor's own terminal, and pseudo-terminals.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::virtio::console::WindowSize;
use log::warn;
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{self, OptionalActions, Termios};

use super::stream::Stream;

/// Standard input and output, raw while this exists if input is a terminal.
///
/// Started in the background, input is left to the shell: reading a terminal or changing its modes
/// from there stops the process.
pub(super) struct Terminal {
    stream: Arc<Stream>,
    raw: Option<RawMode>,
}

impl Terminal {
    pub(super) fn open(
        stdin: BorrowedFd<'_>,
        stdout: BorrowedFd<'_>,
    ) -> io::Result<(Self, Arc<Stream>)> {
        let ours = in_foreground(stdin);
        let input = ours.then(|| private(stdin, OFlags::RDONLY)).transpose()?;
        let stream =
            Arc::new(Stream::new(input, private(stdout, OFlags::WRONLY)?)?.shared_with_shell());
        let raw = match ours && termios::isatty(stdin) {
            true => Some(RawMode::enter(stdin)?),
            false => None,
        };
        Ok((Self { stream: Arc::clone(&stream), raw }, stream))
    }

    pub(super) fn window_size(&self) -> WindowSize {
        window_size(self.stream.output())
    }

    pub(super) fn refresh(&self) {
        let Some(raw) = &self.raw else { return };
        if in_foreground(&raw.tty) {
            raw.apply(&raw.raw);
            self.stream.listen_again();
        }
    }
}

/// A terminal in raw mode: every byte goes to the guest, Ctrl-C included.
struct RawMode {
    tty: OwnedFd,
    saved: Termios,
    raw: Termios,
}

impl RawMode {
    fn enter(tty: BorrowedFd<'_>) -> io::Result<Self> {
        let saved = termios::tcgetattr(tty)?;
        let mut raw = saved.clone();
        raw.make_raw();
        termios::tcsetattr(tty, OptionalActions::Now, &raw)?;
        Ok(Self { tty: tty.try_clone_to_owned()?, saved, raw })
    }

    fn apply(&self, modes: &Termios) {
        if let Err(error) = termios::tcsetattr(&self.tty, OptionalActions::Now, modes) {
            warn!("the terminal's modes can't be set: {error}");
        }
    }
}

/// In the background the modes are the shell's by now.
impl Drop for RawMode {
    fn drop(&mut self) {
        if in_foreground(&self.tty) {
            self.apply(&self.saved);
        }
    }
}

/// A pseudo-terminal for clients to open.
///
/// We keep its far side open ourselves: there is never a hang-up, clients may come and go, and what
/// the first of them finds is the start of the output, as much as the kernel keeps.
pub(super) struct Pty {
    near: OwnedFd,
    _far: OwnedFd,
    path: PathBuf,
}

impl Pty {
    pub(super) fn open() -> io::Result<(Self, Stream)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let near = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&near)?;
        rustix::pty::unlockpt(&near)?;
        rustix::fs::fcntl_setfl(&near, OFlags::NONBLOCK)?;
        let name = rustix::pty::ptsname(&near, Vec::new())?;
        let path = PathBuf::from(OsString::from_vec(name.into_bytes()));
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let far = rustix::fs::open(&path, flags, Mode::empty())?;
        let mut modes = termios::tcgetattr(&far)?;
        modes.make_raw();
        termios::tcsetattr(&far, OptionalActions::Now, &modes)?;
        let stream = Stream::new(Some(near.try_clone()?), near.try_clone()?)?;
        Ok((Self { near, _far: far, path }, stream))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn window_size(&self) -> WindowSize {
        window_size(&self.near)
    }
}

/// Whether we may read `fd`: it is our controlling terminal with us in the foreground, or something
/// else.
pub(super) fn in_foreground(fd: impl AsFd) -> bool {
    termios::tcgetpgrp(fd).map_or(true, |group| group == rustix::process::getpgrp())
}

/// A descriptor of our own for `fd`. A terminal is opened anew, non-blocking; where the host does
/// not allow that, and for anything else, it is a duplicate.
fn private(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<OwnedFd> {
    if termios::isatty(fd) {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(anew) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok(anew);
        }
    }
    fd.try_clone_to_owned()
}

fn window_size(fd: &OwnedFd) -> WindowSize {
    termios::tcgetwinsize(fd).map_or_else(
        |_| WindowSize::default(),
        |size| WindowSize { columns: size.ws_col, rows: size.ws_row },
    )
}
