//! Queue notifications (virtio 1.3, 4.1.5.2): one eventfd per queue. The host rings it for a guest's
//! write without an exit while it is bound; a write that exits all the same rings it here.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use log::warn;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::layout::{Area, NOTIFY_MULTIPLIER};
use crate::hypervisor::Hypervisor;
use crate::sync::lock;

/// A device's doorbells.
///
/// **Invariant:** a doorbell is bound exactly while its BAR is mapped and its queue is served. Not
/// earlier, because each binding costs the host a grace period.
pub(super) struct Doorbells {
    events: Vec<EventFd>,
    host: Arc<dyn Hypervisor>,
    bindings: Mutex<Bindings>,
    rung: AtomicU64,
    warned: AtomicBool,
}

struct Bindings {
    /// Where the BAR is mapped.
    bar: Option<u64>,
    /// Per queue: whether it is served, and where its doorbell is bound.
    queues: Vec<(bool, Option<u64>)>,
}

impl Doorbells {
    /// `count` doorbells, none bound.
    ///
    /// # Errors
    /// The host has no more file descriptors.
    pub(super) fn new(host: Arc<dyn Hypervisor>, count: usize) -> io::Result<Self> {
        Ok(Self {
            events: (0..count).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?,
            host,
            bindings: Mutex::new(Bindings { bar: None, queues: vec![(false, None); count] }),
            rung: AtomicU64::new(0),
            warned: AtomicBool::new(false),
        })
    }

    /// Another handle to queue `index`'s doorbell, for the worker that waits for it.
    ///
    /// # Errors
    /// The host has no more file descriptors.
    pub(super) fn event(&self, index: usize) -> io::Result<EventFd> {
        self.events[index].try_clone()
    }

    /// A write at `offset` in the notify area has arrived by an exit. The address names the queue;
    /// the value written says the same and is not looked at. No lock.
    pub(super) fn ring(&self, offset: u64) {
        let multiplier = u64::from(NOTIFY_MULTIPLIER);
        if let (0, Some(event)) =
            (offset % multiplier, self.events.get((offset / multiplier) as usize))
        {
            self.rung.fetch_add(1, Ordering::Relaxed);
            // Only a counter at its limit refuses, and then the worker has cause enough to wake.
            let _ = event.write(1);
        }
    }

    /// Rings that cost an exit.
    pub(super) fn rung(&self) -> u64 {
        self.rung.load(Ordering::Relaxed)
    }

    /// The BAR is now at `bar`, or nowhere.
    pub(super) fn bar_moved(&self, bar: Option<u64>) {
        let mut bindings = lock(&self.bindings);
        bindings.bar = bar;
        self.rebind(&mut bindings);
    }

    /// The queues that `served` gives `true` for are served from now on, the others not.
    pub(super) fn serve(&self, served: impl IntoIterator<Item = bool>) {
        let mut bindings = lock(&self.bindings);
        for (queue, served) in bindings.queues.iter_mut().zip(served) {
            queue.0 = served;
        }
        self.rebind(&mut bindings);
    }

    /// No queue is served from now on.
    pub(super) fn serve_none(&self) {
        self.serve(std::iter::repeat(false));
    }

    fn rebind(&self, bindings: &mut Bindings) {
        let area = bindings.bar.map(|bar| bar + u64::from(Area::Notify.start()));
        let steps = u64::from(NOTIFY_MULTIPLIER);
        for (index, (event, (served, bound))) in
            (0..).zip(self.events.iter().zip(&mut bindings.queues))
        {
            let wanted = area.filter(|_| *served).map(|area| area + index * steps);
            if *bound == wanted {
                continue;
            }
            if let Some(address) = bound.take() {
                self.warn(self.host.unbind_doorbell(address, event));
            }
            if let Some(address) = wanted {
                *bound = self.warn(self.host.bind_doorbell(address, event)).then_some(address);
            }
        }
    }

    /// Says once that the host refused, as a guest can make it happen at will: a doorbell that is
    /// not bound costs exits and nothing else. Returns whether it agreed.
    fn warn(&self, result: io::Result<()>) -> bool {
        if let Err(error) = &result
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            warn!("virtio doorbell: {error}; this device's kicks may cost exits");
        }
        result.is_ok()
    }
}

/// The events are about to close; the host's bindings would keep them alive.
impl Drop for Doorbells {
    fn drop(&mut self) {
        self.serve_none();
    }
}
