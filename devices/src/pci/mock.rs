//! A host made of vectors, for tests of what sits above [`Hypervisor`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

use crate::hypervisor::{Hypervisor, MsiMessage, MsiVectors, WorkerBody};
use crate::readers::Readers;
use crate::sync::lock;
use crate::virtio::worker::Worker;

/// What devices have asked of the host.
#[derive(Default)]
pub(crate) struct HostLog {
    routes: Mutex<Vec<(u16, Option<MsiMessage>)>>,
    triggers: Mutex<Vec<u16>>,
    doorbells: Mutex<BTreeMap<u64, i32>>,
    refuse: AtomicBool,
}

impl HostLog {
    pub(crate) fn routed(&self) -> Vec<(u16, Option<MsiMessage>)> {
        lock(&self.routes).clone()
    }

    pub(crate) fn triggered(&self) -> Vec<u16> {
        lock(&self.triggers).clone()
    }

    /// Addresses with a doorbell.
    pub(crate) fn doorbells(&self) -> Vec<u64> {
        lock(&self.doorbells).keys().copied().collect()
    }

    /// From now on the host refuses everything, or nothing.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        match self.refuse.load(Ordering::Relaxed) {
            true => Err(io::Error::from(io::ErrorKind::OutOfMemory)),
            false => Ok(()),
        }
    }
}

pub(crate) struct MockVectors(pub(crate) Arc<HostLog>);

impl MsiVectors for MockVectors {
    fn route(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        self.0.check()?;
        lock(&self.0.routes).push((vector, message));
        Ok(())
    }

    fn trigger(&self, vector: u16) {
        lock(&self.0.triggers).push(vector);
    }
}

/// A host that grants everything unless told not to.
#[derive(Default)]
pub(crate) struct MockHost {
    pub(crate) log: Arc<HostLog>,
}

impl Hypervisor for MockHost {
    fn readers(&self) -> Arc<Readers> {
        Arc::default()
    }

    fn msi_vectors(&self, _count: u16) -> io::Result<Box<dyn MsiVectors>> {
        self.log.check()?;
        Ok(Box::new(MockVectors(Arc::clone(&self.log))))
    }

    fn bind_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.log.check()?;
        let taken = lock(&self.log.doorbells).insert(address, event.as_raw_fd());
        assert_eq!(taken, None, "two doorbells at {address:#x}");
        Ok(())
    }

    fn unbind_doorbell(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let bound = lock(&self.log.doorbells).remove(&address);
        assert_eq!(bound, Some(event.as_raw_fd()), "no such doorbell at {address:#x}");
        Ok(())
    }

    fn spawn(&self, name: &str, body: WorkerBody) -> io::Result<JoinHandle<Box<dyn Worker>>> {
        self.log.check()?;
        thread::Builder::new().name(name.to_owned()).spawn(body)
    }
}
