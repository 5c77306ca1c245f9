//! Checks of the RAM that a guest boots with.

use memctl::Bytes;

use super::check::Problems;
use super::{Backing, Memory, Zone};
use crate::api::config::MemoryConfig;

/// What the only zone is called where the configuration names none.
const ONLY_ZONE: &str = "mem0";

/// The zones, whose sum fits in `max_phys_bits` of addresses.
pub(super) fn zones(
    config: &MemoryConfig,
    max_phys_bits: u8,
    problems: &mut Problems,
) -> Vec<Zone> {
    let memory = Memory {
        backing: backing(config, problems),
        prefault: config.prefault,
        thp: config.thp,
        mergeable: config.mergeable,
        reserve: config.reserve,
    };
    let size = problems.multiple("memory.size", config.size, memory.backing.page());
    if size == Bytes::ZERO {
        problems.add("memory.size", "0 bytes; give the guest some memory");
    } else if size.as_u64() >> max_phys_bits != 0 {
        let problem = format!("{size} is over the {max_phys_bits} bits of cpus.max_phys_bits");
        problems.add("memory.size", problem);
    }
    vec![Zone { id: ONLY_ZONE.to_owned(), size, memory }]
}

fn backing(config: &MemoryConfig, problems: &mut Problems) -> Backing {
    let page = config.hugepage_size.map_or(Bytes::mib(2), Bytes::new);
    if ![Bytes::mib(2), Bytes::gib(1)].contains(&page) {
        let problem = format!("{page} is no huge page of x86-64; use 2 MiB or 1 GiB");
        problems.add("memory.hugepage_size", problem);
    }
    match (config.hugepages, config.shared) {
        (true, shared) => Backing::Hugetlb { page, shared },
        (false, _) if config.hugepage_size.is_some() => {
            problems.add("memory.hugepage_size", "needs memory.hugepages; turn that on");
            Backing::Anonymous
        }
        (false, true) => Backing::Shared,
        (false, false) => Backing::Anonymous,
    }
}
