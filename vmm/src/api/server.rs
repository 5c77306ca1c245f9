//! The API's socket: who may connect, and the threads that serve them.
//!
//! `http-server` accepts; each connection has a small thread of its own, `http-client`, so that one
//! that is silent or slow keeps no other waiting. At most 64 at a time.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use log::{debug, warn};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::connection::{self, Patience};
use super::descriptor::{Endpoint, inherited};
use super::http::{Refusal, Status};
use super::registry::Registry;
use super::request::Control;

/// For a JSON tree as deep as the parser lets it get, in an unoptimised build. Only what is touched
/// costs memory.
const STACK: usize = 128 << 10;
/// How long the end of the server waits for calls to be answered.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long to wait before accepting again when the host has no descriptor or thread left.
const BACK_OFF: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The descriptor given is not open.
    #[error("cannot use descriptor {fd} as API socket")]
    Descriptor {
        /// Its number.
        fd: i32,
        /// What the host said.
        source: io::Error,
    },
    /// The host refused a thread or a descriptor.
    #[error("cannot start the API server")]
    Start(#[source] io::Error),
}

/// A running API server.
///
/// Dropping it stops accepting, waits up to a second for calls to be answered, and removes the
/// socket. Drop it after [`Control`] has begun to refuse calls, or it waits for those that wait for
/// the caller.
pub struct Server {
    registry: Arc<Registry>,
    stop: Arc<rustix::fd::OwnedFd>,
    accepting: Option<JoinHandle<()>>,
    /// Removed last.
    _socket: Option<SocketFile>,
}

impl Server {
    /// Listens on `endpoint` and hands requests to `control`, from now on. A socket left there by
    /// another process is replaced; set the umask before, so that others cannot connect.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start(endpoint: &Endpoint, control: Arc<dyn Control>) -> Result<Self, ServerError> {
        Self::start_with(endpoint, control, Patience::default())
    }

    fn start_with(
        endpoint: &Endpoint,
        control: Arc<dyn Control>,
        patience: Patience,
    ) -> Result<Self, ServerError> {
        let (listener, socket) = match endpoint {
            Endpoint::Path(path) => {
                let listen = |source| ServerError::Listen { path: path.clone(), source };
                let (listener, socket) = SocketFile::bind(path).map_err(listen)?;
                (listener, Some(socket))
            }
            Endpoint::Fd(fd) => {
                let descriptor = |source| ServerError::Descriptor { fd: *fd, source };
                (UnixListener::from(inherited(*fd).map_err(descriptor)?), None)
            }
        };
        Self::accept_on(listener, socket, control, patience).map_err(ServerError::Start)
    }

    fn accept_on(
        listener: UnixListener,
        socket: Option<SocketFile>,
        control: Arc<dyn Control>,
        patience: Patience,
    ) -> io::Result<Self> {
        // A client may go away between poll and accept.
        listener.set_nonblocking(true)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let registry = Arc::new(Registry::default());
        let acceptor = Acceptor {
            listener,
            stop: Arc::clone(&stop),
            registry: Arc::clone(&registry),
            control,
            patience,
        };
        let thread = thread::Builder::new().name("http-server".into()).stack_size(STACK);
        let accepting = Some(thread.spawn(move || acceptor.run())?);
        Ok(Self { registry, stop, accepting, _socket: socket })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&*self.stop, &1u64.to_ne_bytes()) {
            warn!("stopping the API server: {error}");
            return;
        }
        let ended = self.accepting.take().is_none_or(|thread| thread.join().is_ok());
        debug_assert!(ended, "the accepting thread panicked");
        self.registry.close(FAREWELL);
    }
}

/// What the accepting thread owns.
struct Acceptor {
    listener: UnixListener,
    stop: Arc<rustix::fd::OwnedFd>,
    registry: Arc<Registry>,
    control: Arc<dyn Control>,
    patience: Patience,
}

impl Acceptor {
    fn run(self) {
        let mut failing = false;
        while self.wait(None, true) {
            let result = match self.listener.accept() {
                Ok((stream, _)) => self.connect(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = &result {
                // Once, not ten times a second.
                if !failing {
                    warn!("API: cannot take a connection: {error}");
                }
                self.wait(Some(&BACK_OFF), false);
            }
            failing = result.is_err();
        }
    }

    /// Waits for a connection, if `connections`, or for the time to pass. Returns whether to go on.
    fn wait(&self, time: Option<&Timespec>, connections: bool) -> bool {
        let stop = PollFd::new(&*self.stop, PollFlags::IN);
        let listener = PollFd::new(&self.listener, PollFlags::IN);
        let mut events = [stop, listener];
        let count = 1 + usize::from(connections);
        match rustix::io::retry_on_intr(|| poll(&mut events[..count], time)) {
            Ok(_) => events[0].revents().is_empty(),
            Err(error) => {
                warn!("API: cannot wait for connections: {error}; no more are taken");
                false
            }
        }
    }

    fn connect(&self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        let slot = match self.registry.admit(stream) {
            Ok(slot) => slot,
            Err(stream) => {
                stream.set_nonblocking(true)?;
                let refusal = Refusal(
                    Status::UNAVAILABLE,
                    "too many calls at a time; try again when one has ended",
                );
                // There is room in a fresh socket; a client that has gone needs no answer.
                let _ = connection::refuse(&stream, refusal);
                return Ok(());
            }
        };
        let (control, patience) = (Arc::clone(&self.control), self.patience);
        let thread = thread::Builder::new().name("http-client".into()).stack_size(STACK);
        thread.spawn(move || {
            if let Err(error) = connection::serve(&slot, &*control, patience) {
                debug!("API: a connection ended: {error}");
            }
        })?;
        Ok(())
    }
}

/// A socket in the file system, removed when dropped unless another has taken its place.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        // Anything but a socket is left alone, and bind says that it is in the way.
        if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        let identity = Self::identity(path)?;
        Ok((listener, Self { path: path.to_owned(), identity }))
    }

    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!("removing {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests;
