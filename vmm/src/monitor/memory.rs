//! Memory that comes and goes, between the API's words and the virtio-mem device's.

use std::fmt::Display;

use devices::virtio::mem::{MemError, MemEvent, Observer};
use memctl::{Bytes, Partitioner};

use crate::api::{ApiError, ErrorKind, EventMonitor, PartitionReply, Reply};
use crate::machine::Machine;
use crate::machine::spec::{PARTITIONS_ID, Role, Spec};

/// Wants a zone to have `desired` of memory, partitions not counted: at once where the machine
/// runs, else from the next boot on. A reboot keeps the size. Returns what is to be plugged.
///
/// # Errors
/// The zone has no room for it, or it is no whole number of blocks.
pub(super) fn resize(
    spec: &mut Spec,
    machine: Option<&Machine>,
    zone: usize,
    desired: Bytes,
) -> Result<Bytes, ApiError> {
    let boot = spec.zones[zone].size;
    let device = spec.mem_devices.iter_mut().find_map(|device| match &mut device.role {
        Role::Zone { zone: its, plugged_at_boot } if *its == zone => {
            Some((&device.id, device.size, device.block, plugged_at_boot))
        }
        Role::Zone { .. } | Role::Partitions { .. } => None,
    });
    let room = device.as_ref().map(|(_, size, block, _)| (*size, *block));
    let plugged = plugged_size(desired, boot, room)?;
    let Some((id, _, _, plugged_at_boot)) = device else { return Ok(plugged) };
    if let Some(memory) = machine.and_then(|machine| machine.memory(id)) {
        memory.resize_shared(plugged, None).map_err(refused)?;
    }
    *plugged_at_boot = plugged;
    Ok(plugged)
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
        return Err(problem(format!("{plugged} more than at boot is no multiple of {block}")));
    }
    Ok(plugged)
}

/// Why the device did not take a wish.
pub(super) fn refused(error: MemError) -> ApiError {
    match error {
        MemError::NotWholeBlocks { .. } => ApiError::from_error(ErrorKind::Invalid, &error),
        MemError::Refused(error) => error.into(),
    }
}

/// All partitions; none where the VM does not run or has no room for any.
pub(super) fn partitions(machine: Option<&Machine>) -> Reply {
    let list = |partitioner: &Partitioner| {
        let geometry = partitioner.geometry();
        partitioner.partitions().map(|one| PartitionReply::new(one, geometry, None)).collect()
    };
    let memory = machine.and_then(|machine| machine.memory(PARTITIONS_ID));
    Reply::Partitions(memory.map_or_else(Vec::new, |memory| memory.look(list)))
}

/// Partitions need a guest that keeps an instance's pages together, and says so through the
/// channel. No guest can yet.
pub(super) fn no_channel(spec: &Spec) -> ApiError {
    if spec.mem_devices.iter().all(|device| device.id != PARTITIONS_ID) {
        let text = "memory.partitions: the VM has no room for partitions; create it with some";
        return ApiError::new(ErrorKind::WrongState, text);
    }
    let text = "the guest's kernel lacks the partition channel: a stock kernel mixes the pages of \
                all instances, so nothing of a partition could be given back; use vm.resize";
    ApiError::new(ErrorKind::WrongState, text)
}

/// Passes on what the memory device `id` tells, to whoever listens.
pub(super) fn observer(id: &str, events: EventMonitor) -> Observer {
    let id = id.to_owned();
    Box::new(move |event| match event {
        MemEvent::SharedPlugged { requested, plugged } => {
            let name = if requested == plugged { "resized" } else { "resizing" };
            let (requested, plugged) = (requested.as_u64(), plugged.as_u64());
            let properties: [(&str, &dyn Display); 3] =
                [("id", &id), ("requested", &requested), ("plugged", &plugged)];
            events.event("memory", name, &properties);
        }
        MemEvent::PartitionChanged { partition, from } => {
            let state = format!("{:?}", partition.state);
            let (from, plugged) = (format!("{from:?}"), partition.plugged.as_u64());
            let id = partition.name;
            let properties: [(&str, &dyn Display); 4] =
                [("id", &id), ("state", &state), ("from", &from), ("plugged", &plugged)];
            events.event("partition", "changed", &properties);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
