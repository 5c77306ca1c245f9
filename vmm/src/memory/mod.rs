//! Guest RAM on the host: how it is backed, and what `unsafe` it takes.
//!
//! **Invariants.** Guest RAM is mapped at host addresses congruent to its guest-physical ones
//! modulo 2 MiB. A [`Region`](devices::guest_memory::Region) owns its mapping, so memory outlives
//! every device, queue and KVM slot that can name it.

mod host;
mod hotplug;
mod mapping;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use devices::guest_memory::GuestMemory;
use devices::readers::Readers;
use memctl::Bytes;

use crate::machine::spec::Memory;
pub use host::HostMemory;
pub use hotplug::HotplugMemory;
use mapping::Backed;

/// Why guest RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host did not give the memory.
    #[error("cannot map {size} of guest memory at {start:#x}")]
    Map {
        /// Guest-physical address.
        start: u64,
        /// Size of the range.
        size: Bytes,
        /// What the host said.
        source: io::Error,
    },
    /// The host can't do what the configuration asks of the memory.
    #[error("memory: the host refused {what}")]
    Advise {
        /// The option.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// RAM and what can be added to it would end past the host's guest-physical addresses.
    #[error("memory: more than this host can address in a guest; make its sizes smaller")]
    TooLarge,
}

/// A range of guest memory that is to be.
pub struct Room<'a> {
    /// Its guest-physical addresses.
    pub range: Range<u64>,
    /// What it is made of.
    pub memory: &'a Memory,
    /// The size of a block, for memory that comes and goes; all of it is closed at first.
    pub block: Option<Bytes>,
}

/// Guest RAM, and the means to open and close the parts of it that come and go.
pub struct GuestRam {
    /// All of it.
    pub memory: Arc<GuestMemory>,
    /// One for each room that has blocks, in their order.
    pub hotplug: Vec<HotplugMemory>,
}

/// Maps `rooms` (ascending), and reserves those that have blocks.
///
/// # Errors
/// The host lacks memory, huge pages or an option.
pub fn allocate(rooms: &[Room], readers: &Arc<Readers>) -> Result<GuestRam, Error> {
    let (mut regions, mut hotplug) = (Vec::with_capacity(rooms.len()), Vec::new());
    let count = Arc::default();
    for Room { range, memory, block } in rooms {
        let size = usize::try_from(range.end - range.start).map_err(|_| Error::TooLarge)?;
        let backed = Backed::closed(range.start, size, memory)?;
        let gate = match *block {
            Some(block) => {
                let (readers, count) = (Arc::clone(readers), Arc::clone(&count));
                let room = HotplugMemory::new(&backed, memory, block, readers, count);
                let gate = room.gate();
                hotplug.push(room);
                Some(gate)
            }
            None => {
                backed.open(memory)?;
                None
            }
        };
        regions.push(backed.region(memory, gate)?);
    }
    let memory = Arc::new(GuestMemory::from_regions(regions).map_err(|_| Error::TooLarge)?);
    Ok(GuestRam { memory, hotplug })
}
