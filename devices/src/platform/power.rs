//! ACPI power registers of a hardware-reduced machine (ACPI 6.5, 4.8.3.7 and 4.8.4.6), and the event
//! register of its generic event device (5.6.9).
//!
//! Sixteen I/O ports, one byte each:
//!
//! | offset | register                        | access                                            |
//! |--------|---------------------------------|---------------------------------------------------|
//! | 0      | [`SLEEP_CONTROL`]               | write [`SLEEP_S5`]: power off; reads 0            |
//! | 1      | [`SLEEP_STATUS`]                | reads 0: this machine never woke                  |
//! | 2      | [`RESET`]                       | write [`RESET_VALUE`]: reset; reads 0             |
//! | 8      | [`EVENTS`]                      | reads the pending [`Event`]s and clears them      |
//!
//! What is not listed reads 0 and takes no write.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// The I/O port the registers start at, as Cloud Hypervisor's do.
pub const BASE: u64 = 0x600;
/// Number of ports.
pub const SIZE: u64 = 16;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// Offset of the event register.
pub const EVENTS: u64 = 8;

/// SLP_TYP of the soft-off state: what the guest finds in `\_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;
/// SLP_EN and SLP_TYP as the guest writes them to power off.
pub const SLEEP_S5: u8 = SLEEP_ENABLE | SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT;
/// What the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111 << SLEEP_TYPE_SHIFT;

/// Something the guest is told through the generic event device: a bit of the event register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Someone pressed the power button.
    PowerButton = 1 << 0,
}

/// The generic event device's pending events. Shared between the registers and whoever raises
/// events, on any thread.
pub struct Events {
    pending: AtomicU8,
    interrupt: EventFd,
}

impl Events {
    /// None pending. `interrupt` raises the device's interrupt line, edge-triggered.
    pub fn new(interrupt: EventFd) -> Arc<Self> {
        Arc::new(Self { pending: AtomicU8::new(0), interrupt })
    }

    /// Marks `event` pending and interrupts the guest.
    ///
    /// # Errors
    /// The interrupt could not be raised. The event stays pending.
    pub fn raise(&self, event: Event) -> io::Result<()> {
        self.pending.fetch_or(event as u8, Ordering::AcqRel);
        self.interrupt.write(1)
    }

    fn take(&self) -> u8 {
        self.pending.swap(0, Ordering::AcqRel)
    }
}

/// The registers. A guest's power-off or reset is a write to an event of the machine's. The vCPUs
/// run on until the machine's owner has seen it.
pub struct PowerRegisters {
    power_off: EventFd,
    reset: EventFd,
    events: Arc<Events>,
}

impl PowerRegisters {
    /// `power_off` and `reset` must not block when written.
    pub fn new(power_off: EventFd, reset: EventFd, events: Arc<Events>) -> Self {
        Self { power_off, reset, events }
    }
}

impl BusDevice for PowerRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = if at == EVENTS { self.events.take() } else { 0 };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        let event = match offset {
            SLEEP_CONTROL if value & (SLEEP_ENABLE | SLEEP_TYPE_MASK) == SLEEP_S5 => {
                &self.power_off
            }
            RESET if value == RESET_VALUE => &self.reset,
            _ => return,
        };
        // Only a counter at its limit refuses, and then the machine knows already.
        let _ = event.write(1);
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    struct Machine {
        registers: PowerRegisters,
        events: Arc<Events>,
        power_off: EventFd,
        reset: EventFd,
        interrupt: EventFd,
    }

    fn machine() -> Machine {
        let [power_off, reset, interrupt] = [(); 3].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let events = Events::new(interrupt.try_clone().unwrap());
        let registers = PowerRegisters::new(
            power_off.try_clone().unwrap(),
            reset.try_clone().unwrap(),
            Arc::clone(&events),
        );
        Machine { registers, events, power_off, reset, interrupt }
    }

    #[test]
    fn soft_off_and_reset_are_signalled() {
        let machine = machine();
        assert_eq!(SLEEP_S5, 0x34);
        machine.registers.write(SLEEP_CONTROL, &[SLEEP_S5]);
        assert!(machine.power_off.read().is_ok() && machine.reset.read().is_err());
        machine.registers.write(RESET, &[RESET_VALUE]);
        assert!(machine.power_off.read().is_err() && machine.reset.read().is_ok());
    }

    #[test]
    fn other_writes_do_nothing() {
        let machine = machine();
        for offset in 0..SIZE {
            for value in 0..=255 {
                let powers_off = offset == SLEEP_CONTROL && value & 0x3c == 0x34;
                if !powers_off && (offset, value) != (RESET, RESET_VALUE) {
                    machine.registers.write(offset, &[value]);
                }
            }
            machine.registers.write(offset, &[SLEEP_S5, SLEEP_S5]);
            machine.registers.write(offset, &[]);
        }
        assert!(machine.power_off.read().is_err() && machine.reset.read().is_err());
    }

    #[test]
    fn an_event_interrupts_and_is_read_once() {
        let machine = machine();
        machine.events.raise(Event::PowerButton).unwrap();
        assert!(machine.interrupt.read().is_ok());
        let read = || {
            let mut data = [0xff];
            machine.registers.read(EVENTS, &mut data);
            data[0]
        };
        assert_eq!((read(), read()), (1, 0));
    }

    #[test]
    fn all_else_reads_zero() {
        let machine = machine();
        machine.events.raise(Event::PowerButton).unwrap();
        let mut data = [0xff; 8];
        machine.registers.read(0, &mut data);
        assert_eq!(data, [0; 8]);
        machine.registers.read(4, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
