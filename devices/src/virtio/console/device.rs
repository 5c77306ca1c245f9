//! The console (virtio 1.3, 5.3).

use std::io;
use std::sync::{Arc, Mutex};

use super::worker::ConsoleWorker;
use crate::chardev::CharBackend;
use crate::sync::lock;
use crate::virtio::device::{Activation, ConfigSpace, VirtioDevice};
use crate::virtio::queue::Interrupt;
use crate::virtio::worker::Worker;

/// VIRTIO_CONSOLE_F_SIZE: `cols` and `rows` of the configuration space are valid.
const F_SIZE: u64 = 1 << 0;

/// Bytes of `struct virtio_console_config`.
const CONFIG_BYTES: usize = 12;

/// The size of a terminal in characters; zeros where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl WindowSize {
    /// As the start of `struct virtio_console_config`.
    fn to_bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.columns.to_le_bytes(), self.rows.to_le_bytes());
        [a, b, c, d]
    }
}

/// The console device.
pub struct Console {
    backend: Arc<dyn CharBackend>,
    handle: ConsoleHandle,
}

impl Console {
    /// A console connected to `backend`, `size` large at first.
    pub fn new(backend: Arc<dyn CharBackend>, size: WindowSize) -> Self {
        let mut config = [0; CONFIG_BYTES];
        config[..4].copy_from_slice(&size.to_bytes());
        let shared = Shared { config: Arc::new(ConfigSpace::new(config)), interrupt: None.into() };
        Self { backend, handle: ConsoleHandle(Arc::new(shared)) }
    }

    /// A handle to resize the console with, which stays good after the device has moved into its
    /// transport.
    pub fn handle(&self) -> ConsoleHandle {
        self.handle.clone()
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u16 {
        3
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    /// Receive, transmit.
    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.handle.0.config)
    }

    /// Without both of its queues the console has nothing to do, and no worker.
    fn activate(&mut self, activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        let wants_size = activation.features & F_SIZE != 0;
        self.handle.set_interrupt(wants_size.then_some(activation.interrupt));
        let mut queues = activation.queues.into_iter();
        let (Some(Some(receive)), Some(Some(transmit))) = (queues.next(), queues.next()) else {
            return Ok(Vec::new());
        };
        Ok(vec![Box::new(ConsoleWorker::new(receive, transmit, Arc::clone(&self.backend)))])
    }
}

/// Resizes a [`Console`]. Clones stand for the same console.
#[derive(Clone)]
pub struct ConsoleHandle(Arc<Shared>);

struct Shared {
    config: Arc<ConfigSpace>,
    interrupt: Mutex<Option<Interrupt>>,
}

impl ConsoleHandle {
    /// Tells the driver that the window has changed, as on SIGWINCH. Callable on any thread, before
    /// the driver has come up too; the size it has already is not announced again.
    pub fn resize(&self, size: WindowSize) {
        let mut current = [0; 4];
        self.0.config.read(0, &mut current);
        if current == size.to_bytes() {
            return;
        }
        self.0.config.write(0, &size.to_bytes());
        // The lock is let go before the call.
        let interrupt = lock(&self.0.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    fn set_interrupt(&self, interrupt: Option<Interrupt>) {
        *lock(&self.0.interrupt) = interrupt;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::chardev::testing::Loop;
    use crate::virtio::testing::{Interrupts, memory, queue, ring};

    fn activate(console: &mut Console, features: u64) -> (usize, Arc<Interrupts>) {
        let memory = memory();
        let rings = [ring(&memory, 0), ring(&memory, 0x1000)];
        let interrupts = Arc::new(Interrupts::default());
        let queues = (0..2u16)
            .map(|i| Some(queue(i, &rings[usize::from(i)], &memory, &interrupts)))
            .collect();
        let interrupt = Arc::clone(&interrupts) as _;
        let activation = Activation { features, memory: Arc::clone(&memory), queues, interrupt };
        (console.activate(activation).unwrap().len(), interrupts)
    }

    #[test]
    fn size_is_little_endian_columns_then_rows() {
        let console = Console::new(Loop::new(), WindowSize { columns: 0x102, rows: 0x304 });
        let mut bytes = [9; 12];
        console.config().read(0, &mut bytes);
        assert_eq!(bytes, [2, 1, 4, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_resize_interrupts_once() {
        let mut console = Console::new(Loop::new(), WindowSize::default());
        let handle = console.handle();
        handle.resize(WindowSize { columns: 80, rows: 24 });
        let (workers, interrupts) = activate(&mut console, F_SIZE);
        assert_eq!(workers, 1);
        assert_eq!(interrupts.config.load(Ordering::Relaxed), 0);
        let wide = WindowSize { columns: 132, rows: 24 };
        handle.resize(wide);
        handle.resize(wide);
        assert_eq!(interrupts.config.load(Ordering::Relaxed), 1);
        let mut bytes = [0; 4];
        console.config().read(0, &mut bytes);
        assert_eq!(bytes, wide.to_bytes());
        assert_eq!(console.config().generation(), 2);
    }

    #[test]
    fn a_driver_without_the_size_feature_is_not_interrupted() {
        let mut console = Console::new(Loop::new(), WindowSize::default());
        let (_, interrupts) = activate(&mut console, 0);
        console.handle().resize(WindowSize { columns: 80, rows: 24 });
        assert_eq!(interrupts.config.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_driver_without_a_queue_gets_no_worker() {
        let mut console = Console::new(Loop::new(), WindowSize::default());
        let interrupts = Arc::new(Interrupts::default());
        let activation = Activation {
            features: 0,
            memory: memory(),
            queues: vec![None, None],
            interrupt: interrupts,
        };
        assert!(console.activate(activation).unwrap().is_empty());
    }
}
