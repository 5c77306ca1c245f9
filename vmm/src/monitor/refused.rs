//! What is said and done about accesses to closed memory.

use std::fmt;

use devices::virtio::mem::BlockView;
use log::warn;

use super::Error;
use crate::api::EventMonitor;
use crate::kvm::vcpu::Fault;
use crate::machine::Machine;
use crate::machine::refusals::{Accessor, Refusal};
use crate::machine::spec;

/// An access to memory that the guest does not have, and whose memory that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedAccess {
    refusal: Refusal,
    block: BlockView,
}

impl RefusedAccess {
    /// `None` where the address is no longer one of memory that comes and goes.
    fn new(machine: &Machine, refusal: Refusal) -> Option<Self> {
        Some(Self { refusal, block: machine.block_at(refusal.address)? })
    }

    fn tell(&self, events: &EventMonitor) {
        let Self { refusal: Refusal { address, by, count }, block } = self;
        warn!("{self} ({count} by a {by} so far)");
        let (address, start) = (format!("{address:#x}"), format!("{:#x}", block.block));
        let mut properties: Vec<(&str, &dyn fmt::Display)> =
            vec![("address", &address), ("block", &start), ("by", by), ("count", count)];
        properties.push(("plugged", &block.plugged));
        properties.extend(block.owner.iter().map(|name| ("partition", name as &dyn fmt::Display)));
        events.event("memory", "refused", &properties);
    }
}

impl fmt::Display for RefusedAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.refusal.by {
            Accessor::Vcpu => "a vCPU",
            Accessor::Device => "a device",
        };
        let address = self.refusal.address;
        write!(f, "{by} reached for memory at {address:#x} that the guest does not have, ")?;
        match &self.block.owner {
            None => write!(f, "in no partition"),
            Some(name) => write!(f, "in partition {name}"),
        }
    }
}

/// Tells of what has gathered. Returns the error that the VM ends with, where it is to.
pub(super) fn report(
    machine: &Machine,
    policy: spec::OnRefusedAccess,
    events: &EventMonitor,
) -> Option<Error> {
    let refusals = machine.refusals().into_iter();
    let accesses: Vec<_> = refusals.filter_map(|one| RefusedAccess::new(machine, one)).collect();
    accesses.iter().for_each(|access| access.tell(events));
    let access = accesses.into_iter().next()?;
    (policy == spec::OnRefusedAccess::Stop)
        .then_some(Error::Refused { access: Box::new(access), source: None })
}

/// The error that a VM ends with when a vCPU could not go on, and tells of it where that was for
/// closed memory.
pub(super) fn fault(machine: &Machine, fault: Fault, events: &EventMonitor) -> Error {
    let refusal = |address| Refusal { address, by: Accessor::Vcpu, count: 1 };
    let access = fault.inaccessible().and_then(|at| RefusedAccess::new(machine, refusal(at)));
    // Where only the instruction's own address is known, it need not be what was out of reach.
    match access.filter(|access| !access.block.plugged) {
        Some(access) => {
            access.tell(events);
            Error::Refused { access: Box::new(access), source: Some(fault) }
        }
        None => fault.into(),
    }
}
