//! What a monitor's memory is made of.

use anyhow::{Context, Result};
use guest_tests::{Mapping, Process};

/// The memory of a monitor, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Resident pages of the guest's RAM.
    pub guest: u64,
    /// Resident pages of everything else, shared libraries and the program itself among them.
    pub own: u64,
    /// The part of `own` that no other process shares.
    pub own_private: u64,
}

/// The memory of a process whose guest has `guest_ram` bytes of RAM.
///
/// The guest's RAM is told by its size: no other mapping of a monitor is as large and in memory.
///
/// # Errors
/// The process is gone or may not be looked at, or has no resident mapping of that size.
pub fn memory_use(pid: u32, guest_ram: u64) -> Result<MemoryUse> {
    let mappings = Process::from(pid).mappings()?;
    split(&mappings, guest_ram).with_context(|| format!("process {pid} has no guest RAM mapped"))
}

/// All memory that a process has, its guest's with it, in bytes.
///
/// # Errors
/// The process is gone or may not be looked at.
pub fn resident(pid: u32) -> Result<u64> {
    Ok(Process::from(pid).mappings()?.iter().map(|mapping| mapping.resident).sum())
}

/// Tells the guest's RAM, in one mapping or in several, from the rest.
fn split(mappings: &[Mapping], guest_ram: u64) -> Option<MemoryUse> {
    let is_guest = |mapping: &&Mapping| mapping.size >= guest_ram && mapping.resident > 0;
    let guest: u64 = mappings.iter().filter(is_guest).map(|mapping| mapping.resident).sum();
    if guest == 0 {
        return None;
    }
    let rest = || mappings.iter().filter(|mapping| !is_guest(mapping));
    Some(MemoryUse {
        guest,
        own: rest().map(|mapping| mapping.resident).sum(),
        own_private: rest().map(|mapping| mapping.private).sum(),
    })
}

#[cfg(test)]
mod tests {
    use guest_tests::MIB;

    use super::*;

    #[test]
    fn guest_ram_is_told_from_the_rest_by_its_size() {
        let mapping =
            |size, resident, private| Mapping { size, resident, private, ..Mapping::default() };
        let mappings =
            [mapping(MIB, 600, 120), mapping(128 * MIB, 40_000, 40_000), mapping(256 * MIB, 0, 0)];
        let memory = MemoryUse { guest: 40_000, own: 600, own_private: 120 };
        assert_eq!(split(&mappings, 128 * MIB), Some(memory));
        assert_eq!(split(&mappings, 1024 * MIB), None);
        assert_eq!(split(&[], 1), None);
    }

    #[test]
    fn this_process_has_mappings_in_memory() {
        let pid = std::process::id();
        assert!(Process::from(pid).mappings().unwrap().iter().any(|one| one.private > 0));
        let before = resident(pid).unwrap();
        let memory = vec![1u8; 64 << 20];
        assert!(resident(pid).unwrap() >= before + memory.len() as u64 / 2);
    }
}
