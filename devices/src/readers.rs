//! Grace periods: how memory is closed under device threads that may be copying from it.
//!
//! A device thread asks for a slice of guest memory, which is refused when a block is closed, and
//! then copies. Between the two another thread could close the block, and the copy would be a
//! segmentation fault: an outage that a guest could bring about at will. So whoever closes memory
//! first shuts the gate, then waits until every thread that was awake has finished what it was
//! doing ([`Readers::wait`]), and only then closes. No lock, and two uncontended atomic additions
//! per wake-up of a device thread; the idea is quiescent-state-based reclamation (Desnoyers et al.,
//! "User-Level Implementations of Read-Copy Update", 2012).
//!
//! **Invariant:** no device thread keeps a slice of guest memory from one wake-up to the next.
//! Transfers in flight hold addresses, which the kernel checks again.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use crate::sync::lock;

/// The threads of a machine that touch guest memory. One per machine.
#[derive(Default)]
pub struct Readers {
    sections: Mutex<Vec<Weak<Section>>>,
}

/// One thread's place: odd while it may hold slices.
#[derive(Default)]
struct Section(AtomicU64);

impl Section {
    fn is_awake(count: u64) -> bool {
        count % 2 == 1
    }

    fn step(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Section>>> = const { RefCell::new(None) };
}

/// A thread's registration. Dropping it ends the registration.
pub struct Reader(Arc<Section>);

impl Readers {
    /// Registers the calling thread, asleep.
    pub fn register(&self) -> Reader {
        let section = Arc::new(Section::default());
        let mut sections = lock(&self.sections);
        sections.retain(|section| section.strong_count() > 0);
        sections.push(Arc::downgrade(&section));
        Reader(section)
    }

    /// Returns when no thread holds a slice it got before this call. The caller itself must hold
    /// none. Takes as long as the longest service of one wake-up: however much a guest has queued,
    /// 10 ms and what it takes to finish the request, or the write to a character device, that was
    /// begun last.
    pub fn wait(&self) {
        let own = CURRENT.with(|current| current.borrow().clone());
        // Two threads that wait for each other must both count as asleep.
        own.iter().for_each(|section| section.step());
        let sections: Vec<_> = lock(&self.sections).iter().filter_map(Weak::upgrade).collect();
        for section in sections {
            let seen = section.0.load(Ordering::SeqCst);
            while Section::is_awake(seen) && section.0.load(Ordering::SeqCst) == seen {
                thread::yield_now();
            }
        }
        own.iter().for_each(|section| section.step());
    }
}

impl Reader {
    /// Runs `serve`, during which the calling thread may hold slices of guest memory.
    pub fn awake<T>(&self, serve: impl FnOnce() -> T) -> T {
        CURRENT.with(|current| current.replace(Some(Arc::clone(&self.0))));
        self.0.step();
        let result = serve();
        self.0.step();
        CURRENT.with(|current| current.replace(None));
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn nobody_awake_is_not_waited_for() {
        let readers = Readers::default();
        let reader = readers.register();
        reader.awake(|| ());
        readers.wait();
        drop(reader);
        readers.wait();
    }

    #[test]
    fn a_thread_that_is_awake_is_waited_for_until_it_sleeps() {
        let readers = Arc::new(Readers::default());
        let (woke, awake) = mpsc::channel();
        let done = Arc::new(AtomicBool::new(false));
        let (thread_readers, thread_done) = (Arc::clone(&readers), Arc::clone(&done));
        let thread = thread::spawn(move || {
            thread_readers.register().awake(|| {
                woke.send(()).unwrap();
                thread::sleep(Duration::from_millis(50));
                thread_done.store(true, Ordering::SeqCst);
            });
        });
        awake.recv().unwrap();
        readers.wait();
        assert!(done.load(Ordering::SeqCst));
        thread.join().unwrap();
    }

    #[test]
    fn two_threads_can_wait_for_each_other() {
        let readers = Arc::new(Readers::default());
        let threads = [(); 2].map(|()| {
            let readers = Arc::clone(&readers);
            thread::spawn(move || {
                let reader = readers.register();
                (0..1000).for_each(|_| reader.awake(|| readers.wait()));
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
