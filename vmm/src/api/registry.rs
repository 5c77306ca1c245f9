//! Who is connected, so that their number stays bounded and the server knows when it is done.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use devices::sync::lock;

/// Connections at a time.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// The connections there are. Its lock is held for moments only, never while waiting for a client.
#[derive(Default)]
pub(super) struct Registry {
    entries: Mutex<Vec<Entry>>,
    left: Condvar,
}

struct Entry {
    stream: Arc<UnixStream>,
    /// Whether a request is being carried out.
    busy: bool,
    /// When that last changed.
    since: Instant,
}

/// A place in the registry, left when dropped.
pub(super) struct Slot {
    registry: Arc<Registry>,
    stream: Arc<UnixStream>,
}

impl Registry {
    /// Makes room for a connection, disconnecting the one that has been idle for longest when all
    /// places are taken.
    ///
    /// # Errors
    /// Gives the stream back when nobody is idle.
    pub(super) fn admit(self: &Arc<Self>, stream: UnixStream) -> Result<Slot, UnixStream> {
        let mut entries = self.lock();
        if entries.len() >= MAX_CONNECTIONS {
            let idle = (0..entries.len()).filter(|index| !entries[*index].busy);
            let Some(oldest) = idle.min_by_key(|index| entries[*index].since) else {
                return Err(stream);
            };
            // Its thread sees the end of the stream; a client that has gone is no problem.
            let _ = entries.swap_remove(oldest).stream.shutdown(Shutdown::Both);
        }
        let stream = Arc::new(stream);
        let since = Instant::now();
        entries.push(Entry { stream: Arc::clone(&stream), busy: false, since });
        Ok(Slot { registry: Arc::clone(self), stream })
    }

    /// Takes no more requests from anyone, and waits up to `patience` for those being carried out
    /// to be answered.
    pub(super) fn close(&self, patience: Duration) {
        let entries = self.lock();
        for entry in entries.iter() {
            let _ = entry.stream.shutdown(Shutdown::Read);
        }
        drop(self.left.wait_timeout_while(entries, patience, |entries| !entries.is_empty()));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        lock(&self.entries)
    }
}

impl Slot {
    /// The client.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Marks the connection as one that must not be disconnected, until the result is dropped.
    pub(super) fn busy(&self) -> Busy<'_> {
        self.set_busy(true);
        Busy(self)
    }

    fn set_busy(&self, busy: bool) {
        let mut entries = self.registry.lock();
        // Absent when it was disconnected at that very moment.
        if let Some(entry) = entries.iter_mut().find(|entry| self.owns(entry)) {
            (entry.busy, entry.since) = (busy, Instant::now());
        }
    }

    fn owns(&self, entry: &Entry) -> bool {
        Arc::ptr_eq(&entry.stream, &self.stream)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut entries = self.registry.lock();
        entries.retain(|entry| !self.owns(entry));
        if entries.is_empty() {
            self.registry.left.notify_all();
        }
    }
}

/// See [`Slot::busy`].
pub(super) struct Busy<'a>(&'a Slot);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set_busy(false);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn admit(registry: &Arc<Registry>) -> Option<(Slot, UnixStream)> {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        registry.admit(near).ok().map(|slot| (slot, far))
    }

    fn is_connected(mut far: &UnixStream) -> bool {
        far.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    #[test]
    fn oldest_idle_connection_makes_room() {
        let registry = Arc::new(Registry::default());
        let clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| admit(&registry).unwrap()).collect();
        let busy = clients[0].0.busy();
        let _late = admit(&registry).unwrap();
        assert!(is_connected(&clients[0].1), "it is busy");
        assert!(!is_connected(&clients[1].1), "it was idle for longest");
        assert!(clients[2..].iter().all(|(_, far)| is_connected(far)));
        drop(busy);
        let _later = admit(&registry).unwrap();
        assert!(is_connected(&clients[0].1), "it was busy a moment ago");
        assert!(!is_connected(&clients[2].1));
    }

    #[test]
    fn nobody_is_admitted_while_all_are_busy() {
        let registry = Arc::new(Registry::default());
        let clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| admit(&registry).unwrap()).collect();
        let mut busy: Vec<_> = clients.iter().map(|(slot, _)| slot.busy()).collect();
        assert!(admit(&registry).is_none());
        busy.pop();
        assert!(admit(&registry).is_some());
    }

    #[test]
    fn closing_waits_for_the_last_to_leave() {
        let registry = Arc::new(Registry::default());
        let (slot, _far) = admit(&registry).unwrap();
        let start = Instant::now();
        registry.close(Duration::from_millis(30));
        assert!(start.elapsed() >= Duration::from_millis(30), "the slot is still taken");
        let thread = std::thread::spawn(move || drop(slot));
        registry.close(Duration::from_secs(60));
        assert!(start.elapsed() < Duration::from_secs(30));
        thread.join().unwrap();
    }
}
