//! Guest RAM on the host: how it is backed, and what `unsafe` it takes.
//!
//! **Invariants.** Guest RAM is mapped at host addresses congruent to its guest-physical ones
//! modulo 2 MiB. A [`Region`](devices::guest_memory::Region) owns its mapping, so memory outlives
//! every device, queue and KVM slot that can name it.

pub mod disk;
mod mapping;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use devices::guest_memory::GuestMemory;
use memctl::Bytes;
use vm_memory::GuestAddress;

use crate::machine::spec::Memory;

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

/// Maps RAM for each of `ranges` (guest-physical, ascending), as `memory` asks.
///
/// # Errors
/// The host lacks memory, huge pages or an option.
pub fn allocate(memory: &Memory, ranges: &[Range<u64>]) -> Result<Arc<GuestMemory>, Error> {
    let regions = ranges
        .iter()
        .map(|range| {
            let size = usize::try_from(range.end - range.start).map_err(|_| Error::TooLarge)?;
            mapping::region(GuestAddress(range.start), size, memory, None)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(GuestMemory::from_regions(regions).map_err(|_| Error::TooLarge)?))
}
