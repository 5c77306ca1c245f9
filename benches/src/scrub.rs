//! Equal conditions for runs that follow one another in the lab.

use std::hint::black_box;

/// The smallest unit that memory is handed out in, in bytes.
const PAGE: usize = 4096;

/// Takes this many bytes of memory, has the kernel clear every page of them, and gives them back.
///
/// The lab's CPU is an emulator (QEMU's TCG), which keeps its translation of guest code with the
/// memory the code was in. Whoever first writes to such a page pays for throwing the translation
/// away: half of a whole boot, when the page held the kernel of the guest before. That is a
/// property of the emulator and of the order of runs; this takes it out of both. A CPU has nothing
/// of the kind.
pub fn overwrite_free_memory(bytes: u64) {
    // Memory that the allocator gets from the kernel as zeros is not there until it is touched.
    let mut memory = vec![0_u8; usize::try_from(bytes).unwrap_or(usize::MAX / 2)];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    black_box(&memory);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn page_faults() -> u64 {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        rest.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn pages_are_really_taken_from_the_kernel() {
        let before = page_faults();
        overwrite_free_memory(64 << 20);
        // 32 faults when all of it comes as huge pages of 2 MiB.
        assert!(page_faults() - before >= 30);
    }
}
