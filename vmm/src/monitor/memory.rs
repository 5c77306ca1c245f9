//! Memory that comes and goes, between the API's words and the virtio-mem device's.

use std::fmt::Display;
use std::sync::Arc;

use devices::virtio::mem::{MemError, MemEvent, MemHandle, Observer};
use memctl::{Bytes, HostError, Partitioner};

use super::partitions::{self, Waiting};
use super::slots::{self, Moved, SlotTable};
use crate::api::{ApiError, ErrorKind, EventMonitor, RegionReply, SharedReply};
use crate::machine::Machine;
use crate::machine::spec::{Role, Spec};
use crate::memory::HostMemory;

/// Wants a zone to have `desired` of memory, partitions not counted: at once where the machine
/// runs, else from the next boot on. A reboot keeps the size. Returns what is to be plugged.
///
/// # Errors
/// The zone or the host has no room for it, or it is no whole number of blocks.
pub(super) fn resize(
    spec: &mut Spec,
    machine: Option<&Machine>,
    zone: usize,
    desired: Bytes,
) -> Result<Bytes, ApiError> {
    let boot = spec.zones[zone].size;
    let device = spec.mem_devices.iter().position(|device| device.role.is_of_zone(zone));
    let room = device.map(|index| (spec.mem_devices[index].size, spec.mem_devices[index].block));
    let plugged = plugged_size(desired, boot, room)?;
    let Some(index) = device else { return Ok(plugged) };
    let id = &spec.mem_devices[index].id;
    if let Some((machine, memory)) = machine.and_then(|it| Some((it, it.memory(id)?))) {
        let host_free = host_free(spec, machine, id);
        memory.resize_shared(plugged, host_free).map_err(refused("desired_ram"))?;
    }
    if let Role::Zone { plugged_at_boot, .. } = &mut spec.mem_devices[index].role {
        *plugged_at_boot = plugged;
    }
    Ok(plugged)
}

/// What the host can still promise through the memory device `id`: what is free, without what the
/// other devices have promised and their guest has not taken yet. `None` to promise anything.
pub(super) fn host_free(spec: &Spec, machine: &Machine, id: &str) -> Option<Bytes> {
    let device = spec.mem_devices.iter().find(|device| device.id == id)?;
    // Memory that is filled as it is plugged fails there, with nothing changed.
    if spec.overcommit || device.memory.prefault {
        return None;
    }
    let free = HostMemory::default().free(device.memory.backing)?;
    let others = spec.mem_devices.iter().filter(|other| {
        other.id != id && other.memory.backing.page() == device.memory.backing.page()
    });
    let promised =
        others.filter_map(|other| Some(machine.memory(&other.id)?.look(Partitioner::promised)));
    let promised = Bytes::new(promised.map(Bytes::as_u64).sum());
    Some(free.checked_sub(promised).unwrap_or(Bytes::ZERO))
}

/// What the memory device `id` holds. All of a slot is its partition's.
pub(super) fn region(spec: &Spec, id: &str, memory: &MemHandle) -> RegionReply {
    let region = memory.look(|books| RegionReply::from(books));
    if slots::devices(spec).any(|device| device.id == id) {
        return RegionReply { shared: SharedReply::default(), ..region };
    }
    region
}

/// What is to be plugged so that there is `desired` of memory, beside `boot` RAM. `room` is the
/// most that can be, and the size of a block.
fn plugged_size(
    desired: Bytes,
    boot: Bytes,
    room: Option<(Bytes, Bytes)>,
) -> Result<Bytes, ApiError> {
    let problem = |text: String| ApiError::field("desired_ram", text);
    let plugged = desired.checked_sub(boot).ok_or_else(|| {
        problem(format!("{desired} is less than the {boot} that the guest booted with"))
    })?;
    let (most, block) = room.unwrap_or((Bytes::ZERO, Bytes::new(1)));
    if plugged > most {
        let hint = "make hotplug_size larger when the VM is created";
        let text = format!("{plugged} more than at boot, but there is room for {most}; {hint}");
        return Err(problem(text));
    }
    if !plugged.is_multiple_of(block) {
        let text = format!("{plugged} more than at boot is no multiple of {block}; round it");
        return Err(problem(text));
    }
    Ok(plugged)
}

/// Why the device did not take a wish, which the client gave in `field`.
pub(super) fn refused(field: &'static str) -> impl Fn(MemError) -> ApiError {
    move |error| match error {
        MemError::NotWholeBlocks { .. } => ApiError::field(field, error),
        MemError::Refused(error) => {
            let full = matches!(error, HostError::HostFull { .. });
            let mut known = ApiError::from(error);
            if full {
                let advice = "make room on the host, or create the VM with memory.overcommit";
                known.chain.push(advice.to_owned());
            }
            if known.kind == ErrorKind::Invalid { ApiError::field(field, known) } else { known }
        }
    }
}

/// Who a machine's memory tells, and who waits for it.
#[derive(Clone)]
pub(super) struct Listeners {
    pub(super) events: EventMonitor,
    pub(super) waiting: Arc<Waiting>,
    pub(super) slots: Arc<SlotTable>,
}

impl Listeners {
    /// Passes on what the memory device `id` tells, which is that of slot number `slot`, if any.
    pub(super) fn observer(&self, slot: Option<usize>, id: &str) -> Observer {
        let Self { events, waiting, slots } = self.clone();
        let id = id.to_owned();
        Box::new(move |event| match (event, slot) {
            (MemEvent::SharedPlugged { requested, plugged, counters, freeing }, Some(slot)) => {
                let moved = Moved { requested, plugged, counters, freeing };
                slots.moved(slot, moved, &waiting, &events);
            }
            (MemEvent::SharedPlugged { requested, plugged, .. }, None) => {
                let name = if requested == plugged { "resized" } else { "resizing" };
                let (requested, plugged) = (requested.as_u64(), plugged.as_u64());
                let properties: [(&str, &dyn Display); 3] =
                    [("id", &id), ("requested", &requested), ("plugged", &plugged)];
                events.state("memory", name, &id, &properties);
            }
            (MemEvent::PartitionChanged { partition, from }, _) => {
                partitions::changed(&partition, from, &waiting, &events);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::mem::Mem;
    use memctl::{Geometry, Layout};

    use super::super::testing::{Host, VmFiles};
    use super::*;

    #[test]
    fn memory_of_a_slot_is_its_partitions_and_not_shared() {
        let spec = Spec::try_from(&VmFiles::new().config()).unwrap();
        let geometry = Geometry::new(4 << 30, Bytes::mib(2), Bytes::mib(256)).unwrap();
        let layout = Layout::shared_only(geometry);
        let memory = Mem::new(layout, None, Box::new(Host), Box::new(|_| ())).handle();
        memory.resize_shared(Bytes::mib(64), None).unwrap();
        let region = |id: &str| region(&spec, id, &memory);
        let (slot, other) = (region("__slot1"), region("__mem"));
        assert_eq!((slot.requested, slot.shared), (64 << 20, SharedReply::default()));
        assert_eq!((other.requested, other.shared.requested), (64 << 20, 64 << 20));
    }

    #[test]
    fn desired_memory_counts_what_the_guest_booted_with() {
        let room = Some((Bytes::gib(1), Bytes::mib(2)));
        let size = |desired| plugged_size(desired, Bytes::gib(1), room).map(Bytes::as_u64);
        assert_eq!(size(Bytes::gib(1)).unwrap(), 0);
        assert_eq!(size(Bytes::gib(2)).unwrap(), 1 << 30);
        for (desired, problem) in [
            (Bytes::mib(512), "less than the 1 GiB"),
            (Bytes::gib(3), "but there is room for 1 GiB"),
            (Bytes::new((1 << 30) + 4096), "no multiple of 2 MiB"),
        ] {
            let error = size(desired).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.to_string().starts_with("desired_ram: "), "{error}");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[test]
    fn a_vm_without_room_says_how_to_get_some() {
        let error = plugged_size(Bytes::gib(2), Bytes::gib(1), None).unwrap_err();
        assert!(error.to_string().contains("make hotplug_size larger"), "{error}");
    }
}
