//! Message-signalled interrupts: each vector is an event descriptor that KVM turns into a message.
//!
//! KVM routes by *global system interrupt* number. Numbers below [`IOAPIC_PINS`] are the I/O APIC's
//! pins; a vector gets one above when it is first unmasked. Every change of the table costs the
//! host a grace period, so the table is only written when a route really changes.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use devices::hypervisor::{MsiMessage, MsiVectors};
use devices::sync::lock;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use log::error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Vm;

/// Pins of the in-kernel I/O APIC.
const IOAPIC_PINS: u32 = 24;

/// KVM's limit on routes, less the pins.
const MAX_MESSAGES: usize = 4096 - IOAPIC_PINS as usize;

/// Where each message interrupt goes. Index + [`IOAPIC_PINS`] is its number.
#[derive(Default)]
pub(super) struct Routes {
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Free,
    Taken(Option<MsiMessage>),
}

impl Routes {
    /// Takes a free number, or `None` when the table is full.
    fn take(&mut self) -> Option<usize> {
        let free = self.slots.iter().position(|slot| *slot == Slot::Free);
        let index = free.unwrap_or(self.slots.len());
        if index == self.slots.len() {
            if index == MAX_MESSAGES {
                return None;
            }
            self.slots.push(Slot::Free);
        }
        self.slots[index] = Slot::Taken(None);
        Some(index)
    }

    /// The table as KVM wants it: the I/O APIC's pins, then every message.
    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let pins = (0..IOAPIC_PINS).map(|pin| {
            let mut entry = kvm_irq_routing_entry {
                gsi: pin,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            entry.u.irqchip.pin = pin;
            entry
        });
        let messages = self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let Slot::Taken(Some(message)) = slot else { return None };
            let mut entry = kvm_irq_routing_entry {
                gsi: IOAPIC_PINS + index as u32,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = message.address as u32;
            entry.u.msi.address_hi = (message.address >> 32) as u32;
            entry.u.msi.data = message.data;
            Some(entry)
        });
        pins.chain(messages).collect()
    }
}

impl Vm {
    fn routes(&self) -> MutexGuard<'_, Routes> {
        lock(&self.routes)
    }

    /// Sends interrupt `index` to `message`; on failure the former route stays.
    fn set_route(&self, index: usize, message: Option<MsiMessage>) -> io::Result<()> {
        let mut routes = self.routes();
        let new = Slot::Taken(message);
        let old = std::mem::replace(&mut routes.slots[index], new);
        if old == new {
            return Ok(());
        }
        let written = KvmIrqRouting::from_entries(&routes.entries())
            .map_err(|error| io::Error::other(format!("{error:?}")))
            .and_then(|table| Ok(self.fd.set_gsi_routing(&table)?));
        if written.is_err() {
            routes.slots[index] = old;
        }
        written
    }
}

/// The vectors of one PCI function.
pub(super) struct MsiBlock {
    vm: Arc<Vm>,
    vectors: Vec<Vector>,
}

struct Vector {
    index: usize,
    event: EventFd,
    /// Whether `event` raises the interrupt.
    connected: Mutex<bool>,
}

impl Vector {
    fn gsi(&self) -> u32 {
        IOAPIC_PINS + self.index as u32
    }

    /// Has `register` connect the event, unless it is.
    fn connect<E>(&self, register: impl FnOnce(&EventFd, u32) -> Result<(), E>) -> Result<(), E> {
        let mut connected = lock(&self.connected);
        if !*connected {
            register(&self.event, self.gsi())?;
            *connected = true;
        }
        Ok(())
    }
}

impl MsiBlock {
    pub(super) fn new(vm: Arc<Vm>, count: u16) -> io::Result<Self> {
        let mut block = Self { vm, vectors: Vec::with_capacity(count.into()) };
        for _ in 0..count {
            let event = EventFd::new(EFD_NONBLOCK)?;
            let full = || io::Error::other("no interrupt route left");
            let index = block.vm.routes().take().ok_or_else(full)?;
            block.vectors.push(Vector { index, event, connected: Mutex::default() });
        }
        Ok(block)
    }
}

impl MsiVectors for MsiBlock {
    fn route(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        let vector = &self.vectors[usize::from(vector)];
        self.vm.set_route(vector.index, message)?;
        Ok(vector.connect(|event, gsi| self.vm.fd.register_irqfd(event, gsi))?)
    }

    fn trigger(&self, vector: u16) {
        if let Err(error) = self.vectors[usize::from(vector)].event.write(1) {
            error!("raising interrupt vector {vector}: {error}");
        }
    }
}

impl Drop for MsiBlock {
    fn drop(&mut self) {
        for vector in &self.vectors {
            if *lock(&vector.connected)
                && let Err(error) = self.vm.fd.unregister_irqfd(&vector.event, vector.gsi())
            {
                error!("disconnecting interrupt {}: {error}", vector.gsi());
            }
            self.vm.routes().slots[vector.index] = Slot::Free;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_numbers_are_taken_again() {
        let mut routes = Routes::default();
        assert_eq!([routes.take(), routes.take(), routes.take()], [Some(0), Some(1), Some(2)]);
        routes.slots[1] = Slot::Free;
        assert_eq!(routes.take(), Some(1));
    }

    #[test]
    fn a_full_table_gives_no_number() {
        let mut routes = Routes::default();
        assert!((0..MAX_MESSAGES).all(|_| routes.take().is_some()));
        assert_eq!(routes.take(), None);
    }

    /// Else the guest waits for ever for interrupts of a vector that it sees open.
    #[test]
    fn a_vector_that_the_host_refused_is_connected_the_next_time() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let vector = Vector { index: 3, event, connected: Mutex::default() };
        assert_eq!(vector.connect(|_, _| Err("no memory")), Err("no memory"));
        let mut connected = 0;
        for _ in 0..2 {
            let connect = |_: &EventFd, gsi| {
                connected += 1;
                if gsi == 27 { Ok(()) } else { Err(gsi) }
            };
            vector.connect(connect).unwrap();
        }
        assert_eq!(connected, 1);
    }

    #[test]
    fn only_unmasked_messages_are_routed() {
        let mut routes = Routes::default();
        routes.take();
        routes.take();
        let message = MsiMessage { address: 0x1_fee0_0000, data: 0x41 };
        routes.slots[1] = Slot::Taken(Some(message));
        let entries = routes.entries();
        assert_eq!(entries.len(), 25);
        assert_eq!((entries[24].gsi, entries[24].type_), (25, KVM_IRQ_ROUTING_MSI));
    }
}
