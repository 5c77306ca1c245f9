//! A unix socket that takes one client after another.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use devices::chardev::CharBackend;
use devices::sync::lock;
use log::{error, warn};
use rustix::event::epoll::EventFlags;

use super::outlet::Outlet;
use super::watch::Watch;

/// ```text
///              accept                 end of its input
///   listening --------> connected ----------------------> output only
///       ^                   | hang-up, error                   | hang-up, error
///       +-------------------+----------------------------------+
/// ```
/// Further clients wait in the backlog. Output is dropped while nobody is connected.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    watch: Watch,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    client: Option<Client>,
    /// The device waits for input: a change of what that means must be armed anew.
    armed: bool,
    /// The host refuses new connections, for want of descriptors.
    closed: bool,
}

struct Client {
    stream: Outlet<UnixStream>,
    output_only: bool,
}

impl Socket {
    /// Listens on `path`, in place of a socket there that nobody listens on.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let watch = Watch::new()?;
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
                fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            result => result?,
        };
        let socket = Self { listener, path: path.into(), watch, state: Mutex::default() };
        socket.listener.set_nonblocking(true)?;
        Ok(socket)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn arm_for(&self, state: &mut State) {
        if state.closed && state.client.is_none() {
            return;
        }
        let result = match &state.client {
            None => self.watch.arm(&self.listener, EventFlags::IN),
            // A hang-up is always of interest.
            Some(Client { stream, output_only: true }) => {
                self.watch.arm(stream.get(), EventFlags::empty())
            }
            Some(Client { stream, .. }) => self.watch.arm(stream.get(), EventFlags::IN),
        };
        state.armed = result.is_ok();
        if let Err(error) = result {
            error!("{}: no more input: {error}", self.path.display());
        }
    }

    fn accept(&self) -> io::Result<Option<Client>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(Client { stream: Outlet::new(stream), output_only: false }))
            }
            Err(error) if is_passing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl CharBackend for Socket {
    fn input(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn read(&self, buffer: &mut [u8]) -> usize {
        let mut state = self.lock();
        let Some(event) = self.watch.take() else { return 0 };
        state.armed = false;
        let Some(client) = &mut state.client else {
            match self.accept() {
                Ok(client) => state.client = client,
                Err(error) => {
                    error!("{}: no more clients: {error}", self.path.display());
                    state.closed = true;
                }
            }
            return 0;
        };
        if buffer.is_empty() {
            return 0;
        }
        match client.stream.get().read(buffer) {
            Ok(0) if !event.intersects(EventFlags::HUP | EventFlags::ERR) => {
                client.output_only = true;
                0
            }
            Ok(count @ 1..) => count,
            Err(error) if is_passing(&error) => 0,
            Ok(0) | Err(_) => {
                state.client = None;
                0
            }
        }
    }

    fn arm(&self) {
        self.arm_for(&mut self.lock());
    }

    fn write(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let Some(client) = &state.client else { return };
        if client.stream.send(bytes).is_err() {
            state.client = None;
            if state.armed {
                self.arm_for(&mut state);
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            warn!("{} is left behind: {error}", self.path.display());
        }
    }
}

/// Whether `path` is a socket without a listener. A plain file refuses a connection just the same.
fn is_stale(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Whether trying again may help at once.
fn is_passing(error: &io::Error) -> bool {
    let kinds = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted];
    kinds.contains(&error.kind())
}
