//! Guest RAM on the host: how it is backed, and what `unsafe` it takes.
//!
//! **Invariants.** Guest RAM is mapped at host addresses congruent to its guest-physical ones
//! modulo 2 MiB. A [`Region`](devices::guest_memory::Region) owns its mapping, so memory outlives
//! every device, queue and KVM slot that can name it.

pub mod disk;
mod hotplug;
mod mapping;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use devices::guest_memory::GuestMemory;
use devices::readers::Readers;
use memctl::Bytes;

use crate::machine::spec::Memory;
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
    /// RAM would end past the 64-bit address space.
    #[error("memory.size: does not fit the address space")]
    TooLarge,
}

/// Guest RAM, and the means to open and close the part of it that comes and goes.
pub struct GuestRam {
    /// All of it.
    pub memory: Arc<GuestMemory>,
    /// The hot-pluggable region, last in the address space, where there is one.
    pub hotplug: Option<HotplugMemory>,
}

/// Maps RAM for each of `ranges` (guest-physical, ascending), as `memory` asks, and reserves
/// `hotplug` (its place, and the size of a block) after them, closed.
///
/// # Errors
/// The host lacks memory, huge pages or an option.
pub fn allocate(
    memory: &Memory,
    ranges: &[Range<u64>],
    hotplug: Option<(Range<u64>, Bytes)>,
    readers: &Arc<Readers>,
) -> Result<GuestRam, Error> {
    let size =
        |range: &Range<u64>| usize::try_from(range.end - range.start).map_err(|_| Error::TooLarge);
    let mut regions = Vec::with_capacity(ranges.len() + 1);
    for range in ranges {
        let backed = Backed::closed(range.start, size(range)?, memory)?;
        backed.open(memory)?;
        regions.push(backed.region(memory, None)?);
    }
    let hotplug = hotplug
        .map(|(range, block)| -> Result<_, Error> {
            let backed = Backed::closed(range.start, size(&range)?, memory)?;
            let hotplug = HotplugMemory::new(&backed, memory, block, Arc::clone(readers));
            regions.push(backed.region(memory, Some(hotplug.gate()))?);
            Ok(hotplug)
        })
        .transpose()?;
    let memory = Arc::new(GuestMemory::from_regions(regions).map_err(|_| Error::TooLarge)?);
    Ok(GuestRam { memory, hotplug })
}
