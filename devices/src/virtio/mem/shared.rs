//! What the worker and the handles have in common: the books, the configuration space that shows
//! them, and who is told.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use std::{mem, thread};

use log::warn;
use memctl::{Account, Answer, Change, Geometry, Mode, Partitioner, Watch};
use zerocopy::IntoBytes;

use super::books::{Books, Failure, Traces};
use super::config::{Config, Variable};
use super::counters::Counters;
use super::event::{MemEvent, Observer};
use super::host::{Carrier, HostBlocks};
use super::record::Record;
use super::reply::Response;
use super::request::{MAX_DESCRIPTORS, Malformed, Request};
use crate::sync::lock;
use crate::virtio::device::ConfigSpace;
use crate::virtio::queue::Interrupt;

/// One event for each request of a full ring, so that none of them allocates.
const ROOM: usize = MAX_DESCRIPTORS;

/// A driver that is up.
struct Driver {
    interrupt: Interrupt,
    negotiated: Negotiated,
}

/// What a driver has accepted of what the device offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Negotiated {
    /// How it talks to the device.
    pub(super) mode: Mode,
    /// It puts the memory into the device's NUMA node.
    pub(super) node: bool,
}

/// The books, and what of them was not told yet.
struct State {
    books: Books,
    /// In the order in which it happened.
    untold: Vec<MemEvent>,
}

/// One device's state, from its making to its end: a device reset leaves it alone (virtio 1.3,
/// 5.15.6). Lock order: `telling`, `state`, then the configuration space's own; `driver` alone.
pub(super) struct Shared {
    state: Mutex<State>,
    /// What is being told: by one thread at a time, whoever's doing it was. Empty otherwise, kept for
    /// its room.
    telling: Mutex<Vec<MemEvent>>,
    /// How many threads wait for the state, besides the one that serves the guest.
    callers: AtomicUsize,
    geometry: Geometry,
    config: Arc<ConfigSpace>,
    /// While the driver is up.
    driver: Mutex<Option<Driver>>,
    observer: Observer,
    counters: Arc<Counters>,
}

impl Shared {
    pub(super) fn new(
        partitioner: Partitioner,
        node: Option<u16>,
        host: Box<dyn HostBlocks>,
        observer: Observer,
    ) -> Self {
        let geometry = *partitioner.geometry();
        let partitions = partitioner.layout().max_partitions > 0;
        let config = ConfigSpace::new(Config::new(&partitioner, node).visible(partitions));
        let books = Books::new(partitioner, Carrier::new(host, geometry));
        Self {
            state: Mutex::new(State { books, untold: Vec::with_capacity(ROOM) }),
            telling: Mutex::new(Vec::with_capacity(ROOM)),
            callers: AtomicUsize::new(0),
            geometry,
            config: Arc::new(config),
            driver: Mutex::default(),
            observer,
            counters: Arc::default(),
        }
    }

    /// Where the region is.
    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The driver is up.
    pub(super) fn driver_up(&self, interrupt: Interrupt, negotiated: Negotiated) {
        *lock(&self.driver) = Some(Driver { interrupt, negotiated });
        self.set_mode(negotiated.mode);
    }

    /// What the driver has negotiated; `None` while there is none.
    pub(super) fn negotiated(&self) -> Option<Negotiated> {
        lock(&self.driver).as_ref().map(|driver| driver.negotiated)
    }

    /// The driver is gone: no interrupt is due until the next one is up.
    pub(super) fn driver_gone(&self) {
        *lock(&self.driver) = None;
        self.set_mode(Mode::Plain);
    }

    /// The usable size may grow, of which the driver hears as of any other growth.
    fn set_mode(&self, mode: Mode) {
        let Ok(()) = self.wish(|partitioner, _| -> Result<(), Infallible> {
            partitioner.set_mode(mode);
            Ok(())
        });
    }

    /// Looks something up in the books.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Partitioner) -> T) -> T {
        look(&self.state().books.partitioner)
    }

    /// The state, for anyone but the guest.
    fn state(&self) -> MutexGuard<'_, State> {
        self.callers.fetch_add(1, Ordering::Relaxed);
        let state = lock(&self.state);
        self.callers.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// The state, for the guest: after all others that wait for it. The lock itself would go to the
    /// one thread that runs already, again and again.
    fn state_for_guest(&self) -> MutexGuard<'_, State> {
        while self.callers.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        lock(&self.state)
    }

    /// The host wants something: changes the books by `wish`, then tells the observer and the
    /// driver.
    ///
    /// # Errors
    /// Those of `wish`, which then has changed nothing.
    pub(super) fn wish<T, E>(
        &self,
        wish: impl FnOnce(&mut Partitioner, &mut Watch<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut state = self.state();
        let State { books, untold } = &mut *state;
        let (before, asked) =
            (Variable::of(&books.partitioner), books.partitioner.shared().requested);
        let result = wish(&mut books.partitioner, &mut |change| {
            untold.push(MemEvent::changed(&self.geometry, change));
        });
        let shared = *books.partitioner.shared();
        if shared.requested != asked && shared.requested == shared.plugged {
            // Reached without the guest's doing: it will not be heard of again.
            self.push_shared(untold, &shared, Duration::ZERO);
        }
        let interrupts = self.publish(&books.partitioner, &before);
        drop(state);
        self.report();
        if interrupts {
            self.interrupt();
        }
        result
    }

    /// Tells the driver, where one is up, to look at the configuration space.
    pub(super) fn interrupt(&self) {
        let interrupt = lock(&self.driver).as_ref().map(|driver| driver.interrupt.clone());
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    /// A request of the guest's: the answer, which the caller delivers with `record` if it says so,
    /// before it [`report`](Self::report)s. The configuration space shows the new sizes. No
    /// interrupt: what a request changes, the driver has asked for.
    pub(super) fn serve(&self, request: Request, record: &mut Record) -> Response {
        let mut state = self.state_for_guest();
        let State { books, untold } = &mut *state;
        let (before, had) = (Variable::of(&books.partitioner), books.partitioner.shared().plugged);
        let watch = &mut |change: Change<'_>| {
            untold.push(MemEvent::changed(&self.geometry, change));
        };
        let mut traces = Traces { counters: &self.counters, record, watch };
        let outcome = books.carry_out(request, &mut traces);
        let shared = *books.partitioner.shared();
        if shared.plugged != had {
            let freed = shared.last_release.filter(|_| shared.plugged < had);
            self.push_shared(untold, &shared, freed.unwrap_or_default());
        }
        self.publish(&books.partitioner, &before);
        drop(state);
        outcome.unwrap_or_else(|failure| self.failed(request, &failure).into())
    }

    /// Tells the observer all that was not told yet, whichever thread it happened on: when this
    /// returns, what the caller did was told, and all that came before it first.
    pub(super) fn report(&self) {
        let mut telling = lock(&self.telling);
        mem::swap(&mut *telling, &mut self.state().untold);
        telling.drain(..).for_each(|event| (self.observer)(event));
    }

    /// Counts a chain that is no request.
    pub(super) fn malformed(&self, why: Malformed) {
        warn_rarely(self.counters.refused(), format_args!("{why}"));
    }

    /// Counts what was not done, and returns what the driver is told.
    fn failed(&self, request: Request, failure: &Failure) -> Answer {
        let answer = failure.answer();
        match failure {
            Failure::Host(error) => {
                let what = format_args!("{error}: {}", error.source);
                warn_rarely(self.counters.host_failed(), what);
            }
            Failure::Refused(refusal) if answer == Answer::Error => {
                warn_rarely(self.counters.refused(), format_args!("{request:x?}: {refusal}"));
            }
            // A race with the host, as will happen.
            Failure::Refused(_) => {}
        }
        answer
    }

    /// Brings the configuration space in line with the books, under their lock. Returns whether the
    /// driver has to be told of the change since `before`.
    fn publish(&self, partitioner: &Partitioner, before: &Variable) -> bool {
        let now = Variable::of(partitioner);
        if now != *before {
            self.config.write(Variable::OFFSET, now.as_bytes());
        }
        now.interrupts_after(before)
    }

    /// The last of several events on shared memory says it all. `freeing` is new to it.
    fn push_shared(&self, events: &mut Vec<MemEvent>, shared: &Account, mut freeing: Duration) {
        if let Some(&MemEvent::SharedPlugged { freeing: before, .. }) = events.last() {
            freeing += before;
            events.pop();
        }
        events.push(MemEvent::SharedPlugged {
            requested: self.geometry.bytes(shared.requested),
            plugged: self.geometry.bytes(shared.plugged),
            counters: shared.counters,
            freeing,
        });
    }
}

/// Logs the `count`th event of its kind, if it is the first, second, fourth, and so on: a guest can
/// make millions, and with a failing host even a correct one does.
fn warn_rarely(count: u64, what: fmt::Arguments<'_>) {
    if count.is_power_of_two() {
        warn!("virtio-mem: {what} ({count} like it so far)");
    }
}
