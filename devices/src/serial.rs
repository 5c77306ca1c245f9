//! The 16550A serial port, over `vm_superio`'s register model.
//!
//! **Output.** The guest writes a byte per exit. To pass each on by itself costs 1.9 us more with a
//! file behind it and 4.2 us with a pty, and wakes the reader each time; gathered, it costs 0.1 us.
//! Bytes leave when a line ends, when [`LINE_BYTES`] are waiting, or [`FLUSH_AFTER`] the first of
//! them, whichever comes first: a prompt without a newline appears in time, whatever the guest does
//! next. The timer is a descriptor that the thread in charge of input waits for as well, and costs
//! at most one system call and one wake-up per interval with output.
//!
//! **Input.** Bytes move from the host into the 64-byte receive FIFO as far as there is room; the
//! rest stays with the host until the guest has read some.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::bus::BusDevice;
use crate::chardev::CharBackend;
use crate::sync::lock;

/// I/O ports from the base on: COM1 is at 0x3f8, interrupt line 4.
pub const PORTS: u64 = 8;

/// Output bytes that are written at the latest.
pub const LINE_BYTES: usize = 512;

/// How long output may wait for more.
pub const FLUSH_AFTER: Duration = Duration::from_millis(10);

/// Bytes of the receive FIFO, at least as many as `vm_superio` has.
const FIFO_BYTES: usize = 64;

const MODEM_CONTROL: u8 = 4;
const LOOPBACK: u8 = 1 << 4;

/// A serial port: a [`BusDevice`] for vCPU threads, and two descriptors to be waited for on one
/// other thread.
///
/// Its lock is held while the backend is called, and the backend takes none of ours.
pub struct SerialPort {
    timer: RawFd,
    input: Option<RawFd>,
    uart: Mutex<Uart>,
}

impl SerialPort {
    /// A port that raises `irq` (an irqfd of an edge-triggered line) and is connected to `backend`.
    ///
    /// # Errors
    /// The host refused a timer.
    pub fn new(irq: EventFd, backend: Arc<dyn CharBackend>) -> io::Result<Self> {
        let timer = TimerFd::new()?;
        let (timer_fd, input) = (timer.as_raw_fd(), backend.input().map(|fd| fd.as_raw_fd()));
        let output = Gather {
            backend: Arc::clone(&backend),
            bytes: Vec::with_capacity(LINE_BYTES),
            timer,
            armed: false,
        };
        backend.arm();
        let uart = Uart { serial: Serial::new(IrqLine(irq), output), backend, full: false };
        Ok(Self { timer: timer_fd, input, uart: Mutex::new(uart) })
    }

    /// The descriptors to wait for until readable, level-triggered; the same ones for the port's
    /// life. They belong to the port.
    pub fn sources(&self) -> Vec<RawFd> {
        [self.timer].into_iter().chain(self.input).collect()
    }

    /// One of [`SerialPort::sources`] is readable. Called on the one thread that waits for them.
    pub fn ready(&self, source: RawFd) {
        let mut uart = lock(&self.uart);
        if source == self.timer {
            uart.serial.writer_mut().timer_expired();
        } else if Some(source) == self.input {
            uart.take_input();
        }
    }

    /// Writes out what is gathered: before the process ends, and when the guest stops. Any thread.
    pub fn flush(&self) {
        lock(&self.uart).serial.writer_mut().send();
    }
}

/// Every register is a byte: a wider access is one to each in turn, as the ISA bus makes it.
impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = lock(&self.uart);
        for (register, byte) in (offset..PORTS).zip(data) {
            *byte = uart.serial.read(register as u8);
        }
        uart.ask_again();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = lock(&self.uart);
        for (register, &byte) in (offset..PORTS).zip(data) {
            // Neither the line nor the output can fail.
            let _ = uart.serial.write(register as u8, byte);
        }
        uart.ask_again();
    }
}

struct Uart {
    serial: Serial<IrqLine, NoEvents, Gather>,
    backend: Arc<dyn CharBackend>,
    /// The host may have input that the FIFO had no room for: the backend is not armed.
    full: bool,
}

impl Uart {
    fn take_input(&mut self) {
        let mut bytes = [0; FIFO_BYTES];
        let room = self.room().min(FIFO_BYTES);
        let count = self.backend.read(&mut bytes[..room]);
        // There is room, and the line can't fail.
        let _ = self.serial.enqueue_raw_bytes(&bytes[..count]);
        self.full = true;
        self.ask_again();
    }

    /// Asks the host for input if it was kept waiting and need not be any longer.
    fn ask_again(&mut self) {
        if self.full && self.room() > 0 {
            self.full = false;
            self.backend.arm();
        }
    }

    /// Bytes the guest can receive now. In loopback mode the line is cut off.
    fn room(&mut self) -> usize {
        match self.serial.read(MODEM_CONTROL) & LOOPBACK {
            0 => self.serial.fifo_capacity(),
            _ => 0,
        }
    }
}

/// The interrupt line.
struct IrqLine(EventFd);

impl Trigger for IrqLine {
    type E = Infallible;

    /// The counter is full only if the interrupt is already due.
    fn trigger(&self) -> Result<(), Infallible> {
        let _ = self.0.write(1);
        Ok(())
    }
}

/// Gathers output bytes and sends them in few calls.
///
/// **Invariant:** while bytes are waiting, the timer runs.
struct Gather {
    backend: Arc<dyn CharBackend>,
    bytes: Vec<u8>,
    timer: TimerFd,
    armed: bool,
}

impl Gather {
    fn send(&mut self) {
        if !self.bytes.is_empty() {
            self.backend.write(&self.bytes);
            self.bytes.clear();
        }
    }

    fn start_timer(&mut self) {
        self.armed = self.armed || self.timer.reset(FLUSH_AFTER, None).is_ok();
        if !self.armed {
            self.send();
        }
    }

    fn timer_expired(&mut self) {
        if self.armed {
            // Only to make the descriptor quiet: it has expired, whatever the answer.
            let _ = self.timer.wait();
            self.armed = false;
        }
        self.send();
    }
}

impl Write for Gather {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || self.bytes.len() >= LINE_BYTES {
            self.send();
        } else if !self.bytes.is_empty() {
            self.start_timer();
        }
        Ok(bytes.len())
    }

    /// `vm_superio` flushes after each byte; sending is for [`Gather::write`] to decide.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is still gathered leaves with the port.
impl Drop for Gather {
    fn drop(&mut self) {
        self.send();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::chardev::testing::Loop;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    fn port() -> (SerialPort, Arc<Loop>, EventFd) {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let backend = Loop::new();
        let port = SerialPort::new(irq.try_clone().unwrap(), Arc::clone(&backend) as _).unwrap();
        (port, backend, irq)
    }

    fn print(port: &SerialPort, text: &[u8]) {
        text.iter().for_each(|&byte| port.write(DATA, &[byte]));
    }

    /// What the waiting thread does.
    fn run_input(port: &SerialPort, backend: &Loop) {
        while backend.is_ready() {
            port.ready(port.input.unwrap());
        }
    }

    fn read_fifo(port: &SerialPort, most: usize) -> Vec<u8> {
        let read = |offset| {
            let mut byte = [0];
            port.read(offset, &mut byte);
            byte[0]
        };
        let mut bytes = Vec::new();
        while bytes.len() < most && read(LINE_STATUS) & 1 != 0 {
            bytes.push(read(DATA));
        }
        bytes
    }

    #[test]
    fn a_line_is_one_write() {
        let (port, backend, _irq) = port();
        print(&port, b"[    0.000000] Linux version\r\nnext\r\n");
        assert_eq!(backend.take_output(), b"[    0.000000] Linux version\r\nnext\r\n");
        assert_eq!(*backend.writes.lock().unwrap(), 2);
    }

    #[test]
    fn a_prompt_without_newline_leaves_when_the_timer_expires() {
        let (port, backend, _irq) = port();
        print(&port, b"login: ");
        assert!(backend.take_output().is_empty());
        let start = Instant::now();
        port.ready(port.timer);
        assert!(start.elapsed() < 100 * FLUSH_AFTER);
        assert_eq!(backend.take_output(), b"login: ");
        // The timer starts anew for what comes next.
        print(&port, b"x");
        port.ready(port.timer);
        assert_eq!(backend.take_output(), b"x");
        // Nothing is gathered, so this does not wait for an expiry.
        port.ready(port.timer);
        assert!(backend.take_output().is_empty());
    }

    #[test]
    fn long_lines_leave_in_pieces_and_the_rest_with_the_port() {
        let (port, backend, _irq) = port();
        print(&port, &[b'x'; LINE_BYTES + 10]);
        assert_eq!(backend.take_output().len(), LINE_BYTES);
        port.flush();
        assert_eq!(backend.take_output().len(), 10);
        print(&port, b"last");
        drop(port);
        assert_eq!(backend.take_output(), b"last");
    }

    #[test]
    fn input_interrupts_and_is_read_in_order() {
        let (port, backend, irq) = port();
        port.write(INTERRUPT_ENABLE, &[1]);
        backend.type_in(b"ls\r");
        run_input(&port, &backend);
        assert_eq!(irq.read().unwrap(), 1);
        assert_eq!(read_fifo(&port, 100), b"ls\r");
    }

    #[test]
    fn input_beyond_the_fifo_waits_until_the_guest_reads() {
        let (port, backend, _irq) = port();
        let text: Vec<u8> = (0..200).collect();
        backend.type_in(&text);
        run_input(&port, &backend);
        assert_eq!(backend.input.lock().unwrap().len(), 200 - FIFO_BYTES);
        let mut got = Vec::new();
        while got.len() < text.len() {
            let part = read_fifo(&port, 10);
            assert!(!part.is_empty());
            got.extend(part);
            run_input(&port, &backend);
        }
        assert_eq!(got, text);
    }

    #[test]
    fn input_survives_loopback_mode() {
        let (port, backend, _irq) = port();
        port.write(u64::from(MODEM_CONTROL), &[LOOPBACK]);
        backend.type_in(b"early");
        run_input(&port, &backend);
        print(&port, b"echo");
        assert_eq!(read_fifo(&port, 100), b"echo");
        port.write(u64::from(MODEM_CONTROL), &[0]);
        run_input(&port, &backend);
        assert_eq!(read_fifo(&port, 100), b"early");
        assert!(backend.take_output().is_empty());
    }

    #[test]
    fn every_offset_and_width_is_served() {
        let (port, backend, _irq) = port();
        for offset in (0..20).chain([u64::MAX]) {
            for width in 0..=8 {
                port.write(offset, &vec![0xff; width]);
                port.write(offset, &vec![0; width]);
                port.read(offset, &mut vec![0; width]);
            }
        }
        port.flush();
        assert!(backend.take_output().iter().all(|&byte| byte == 0xff || byte == 0));
    }

    proptest! {
        #[test]
        fn any_access_is_served(
            steps in proptest::collection::vec(
                (any::<bool>(), 0u64..9, proptest::collection::vec(any::<u8>(), 0..9)),
                1..200,
            ),
        ) {
            let (port, backend, _irq) = port();
            for (write, offset, mut data) in steps {
                if write {
                    port.write(offset, &data);
                } else {
                    port.read(offset, &mut data);
                }
                backend.type_in(&[1, 2, 3]);
                run_input(&port, &backend);
                prop_assert!(lock(&port.uart).serial.writer().bytes.len() < LINE_BYTES);
            }
        }
    }
}
