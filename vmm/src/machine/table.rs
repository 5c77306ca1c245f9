//! The machine's devices as a table: whatever is done to all of them is done here, once.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use devices::lifecycle::Lifecycle;
use devices::pci::Bdf;
use devices::serial::SerialPort;
use devices::virtio::mem::MemHandle;
use log::warn;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A device in the table.
pub struct Attached {
    /// Its id, unique in the machine.
    pub id: String,
    /// Where it is on the PCI bus, if it is.
    pub address: Option<Bdf>,
    /// The memory that comes and goes through it, if any does.
    pub memory: Option<MemHandle>,
    pub(super) device: Arc<dyn Lifecycle>,
    pub(super) counters: CounterSource,
}

/// Counts that a device model keeps itself, beside its transport's.
pub(super) type CounterSource = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send>;

/// What a device model shows of itself beside its transport.
pub(super) struct Model {
    pub(super) counters: CounterSource,
    pub(super) memory: Option<MemHandle>,
}

impl Model {
    /// A model that counts.
    pub(super) fn counting(
        counters: impl Fn() -> Vec<(&'static str, u64)> + Send + 'static,
    ) -> Self {
        Self { counters: Box::new(counters), memory: None }
    }
}

/// A model that shows nothing.
impl Default for Model {
    fn default() -> Self {
        Self::counting(Vec::new)
    }
}

impl Attached {
    /// What it counted so far, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = (self.counters)();
        counters.extend(self.device.counters());
        counters
    }
}

/// All devices, in the order they were attached.
#[derive(Default)]
pub(super) struct Table(Vec<Attached>);

impl Table {
    pub(super) fn add(&mut self, attached: Attached) {
        self.0.push(attached);
    }

    pub(super) fn list(&self) -> &[Attached] {
        &self.0
    }

    /// Resumes all devices, or on an error none.
    pub(super) fn resume(&self) -> io::Result<()> {
        let resumed = self.0.iter().try_for_each(|attached| attached.device.resume());
        resumed.inspect_err(|_| self.pause())
    }

    pub(super) fn pause(&self) {
        self.0.iter().for_each(|attached| attached.device.pause());
    }
}

/// Device threads end before the memory they use goes away.
impl Drop for Table {
    fn drop(&mut self) {
        self.pause();
    }
}

/// A serial port and its descriptors in the monitor's set, for as long as the port lives.
pub(super) struct SerialEvents {
    port: Arc<SerialPort>,
    set: Arc<Epoll>,
}

impl SerialEvents {
    /// Adds the descriptors of `port` to `set`.
    pub(super) fn new(port: Arc<SerialPort>, set: Arc<Epoll>) -> io::Result<Self> {
        for fd in port.sources() {
            let event = EpollEvent::new(EventSet::IN, fd as u64);
            set.ctl(ControlOperation::Add, fd, event)?;
        }
        Ok(Self { port, set })
    }

    /// Serves the descriptors that are readable now.
    pub(super) fn ready(&self) {
        let mut events = [EpollEvent::default(); 4];
        match self.set.wait(0, &mut events) {
            Ok(count) => {
                events[..count].iter().for_each(|event| self.port.ready(event.data() as RawFd))
            }
            Err(error) => warn!("serial port: {error}"),
        }
    }
}

impl Drop for SerialEvents {
    fn drop(&mut self) {
        for fd in self.port.sources() {
            // The backend outlives the machine, so its descriptor would stay in the set.
            let _ = self.set.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        self.port.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A device that runs or not, and gets its thread or not.
    struct Device {
        runs: AtomicBool,
        resumed: fn() -> io::Result<()>,
    }

    impl Lifecycle for Device {
        fn pause(&self) {
            self.runs.store(false, Ordering::Relaxed);
        }

        fn resume(&self) -> io::Result<()> {
            self.runs.store(true, Ordering::Relaxed);
            (self.resumed)()
        }
    }

    /// Else they would write the memory of a VM that says it is paused.
    #[test]
    fn no_device_runs_when_one_could_not_be_resumed() {
        let mut table = Table::default();
        let devices = [|| Ok(()), || Err(io::ErrorKind::WouldBlock.into())]
            .map(|resumed| Arc::new(Device { runs: AtomicBool::new(false), resumed }));
        for device in &devices {
            let Model { counters, memory } = Model::default();
            let device = Arc::clone(device) as _;
            table.add(Attached { id: String::new(), address: None, memory, device, counters });
        }
        assert!(table.resume().is_err());
        assert!(devices.iter().all(|device| !device.runs.load(Ordering::Relaxed)));
    }
}
