//! Memory that comes and goes, between the API's words and the virtio-mem device's.

use devices::virtio::mem::{MemError, MemEvent, Observer};
use memctl::{Bytes, Partitioner};

use crate::api::{ApiError, ErrorKind, EventMonitor, PartitionReply, Reply};
use crate::machine::Machine;
use crate::machine::spec::Hotplug;

/// What a client that wants `desired` of memory wants of the device, beside `boot` RAM.
///
/// # Errors
/// The VM has no room for it, or it is no whole number of blocks.
pub(super) fn shared_size(
    desired: Bytes,
    boot: Bytes,
    room: Option<&Hotplug>,
) -> Result<Bytes, ApiError> {
    let problem = |text: String| ApiError::field("desired_ram", text);
    let shared = desired.checked_sub(boot).ok_or_else(|| {
        problem(format!("{desired} is less than the {boot} that the guest booted with"))
    })?;
    let most = room.map_or(Bytes::new(0), |room| room.shared);
    if shared > most {
        let hint = "make memory.hotplug_size larger when the VM is created";
        let text = format!("{shared} more than at boot, but there is room for {most}; {hint}");
        return Err(problem(text));
    }
    match room {
        Some(room) if !shared.is_multiple_of(room.block) => {
            Err(problem(format!("{shared} more than at boot is no multiple of {}", room.block)))
        }
        _ => Ok(shared),
    }
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
    let hotplug = machine.and_then(Machine::hotplug);
    Reply::Partitions(hotplug.map_or_else(Vec::new, |hotplug| hotplug.look(list)))
}

/// Partitions need a guest that keeps an instance's pages together, and says so through the
/// channel. No guest can yet.
pub(super) fn no_channel(room: Option<&Hotplug>) -> ApiError {
    if room.is_none_or(|room| room.partitions == Bytes::new(0)) {
        let text = "memory.partitions: the VM has no room for partitions; create it with some";
        return ApiError::new(ErrorKind::WrongState, text);
    }
    let text = "the guest's kernel lacks the partition channel: a stock kernel mixes the pages of \
                all instances, so nothing of a partition could be given back; use vm.resize";
    ApiError::new(ErrorKind::WrongState, text)
}

/// Passes on what the device tells, to whoever listens.
pub(super) fn observer(events: EventMonitor) -> Observer {
    Box::new(move |event| match event {
        MemEvent::SharedPlugged { requested, plugged } => {
            let name = if requested == plugged { "resized" } else { "resizing" };
            let (requested, plugged) = (requested.as_u64(), plugged.as_u64());
            events.event("memory", name, &[("requested", &requested), ("plugged", &plugged)]);
        }
        MemEvent::PartitionChanged { partition, from } => {
            let state = format!("{:?}", partition.state);
            let (from, plugged) = (format!("{from:?}"), partition.plugged.as_u64());
            let id = partition.name;
            let properties: [(&str, &dyn std::fmt::Display); 4] =
                [("id", &id), ("state", &state), ("from", &from), ("plugged", &plugged)];
            events.event("partition", "changed", &properties);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Hotplug = Hotplug {
        block: Bytes::mib(2),
        shared: Bytes::gib(1),
        plugged_at_boot: Bytes::mib(0),
        partitions: Bytes::mib(0),
        max_partitions: 0,
    };

    #[test]
    fn desired_memory_counts_what_the_guest_booted_with() {
        let size = |desired| shared_size(desired, Bytes::gib(1), Some(&ROOM)).map(Bytes::as_u64);
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
        let error = shared_size(Bytes::gib(2), Bytes::gib(1), None).unwrap_err();
        assert!(error.to_string().contains("make memory.hotplug_size larger"), "{error}");
        assert!(no_channel(None).to_string().contains("no room for partitions"));
        let room = Hotplug { partitions: Bytes::gib(1), ..ROOM };
        assert!(no_channel(Some(&room)).to_string().contains("lacks the partition channel"));
    }
}
