//! What a monitor's memory is made of: `/proc/PID/smaps` (proc(5), Linux).

use std::fs;
use std::io;

/// One mapping of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Its length.
    pub size: u64,
    /// How much of it is in memory.
    pub resident: u64,
    /// The part of that which only this process has.
    pub private: u64,
}

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
pub fn memory_use(pid: u32, guest_ram: u64) -> io::Result<MemoryUse> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    split(&mappings(&text), guest_ram).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has no guest RAM mapped"))
    })
}

/// All memory that a process has, its guest's with it, in bytes.
///
/// # Errors
/// The process is gone or may not be looked at.
pub fn resident(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    Ok(mappings(&text).iter().map(|mapping| mapping.resident).sum())
}

/// The mappings that a text in the format of smaps lists.
pub fn mappings(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let Some(bytes) = kilobytes(value) else { continue };
        if key == "Size" {
            mappings.push(Mapping { size: bytes, ..Mapping::default() });
        }
        let Some(mapping) = mappings.last_mut() else { continue };
        match key {
            "Rss" => mapping.resident = bytes,
            "Private_Clean" | "Private_Dirty" => mapping.private += bytes,
            _ => {}
        }
    }
    mappings
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

/// The value of a line such as `Rss:  1234 kB`, in bytes.
fn kilobytes(value: &str) -> Option<u64> {
    let number: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
55e0c0000000-55e0c0100000 r-xp 00000000 08:01 99 /usr/bin/a: b
Size:               1024 kB
KernelPageSize:        4 kB
Rss:                 600 kB
Pss:                 300 kB
Private_Clean:       100 kB
Private_Dirty:        20 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Size:             131072 kB
Rss:               40960 kB
Private_Clean:         0 kB
Private_Dirty:     40960 kB
7f1000000000-7f1010000000 ---p 00000000 00:00 0
Size:             262144 kB
Rss:                   0 kB
";

    #[test]
    fn guest_ram_is_told_from_the_rest_by_its_size() {
        let memory = split(&mappings(TEXT), 128 << 20).unwrap();
        assert_eq!(memory.guest, 40_960 << 10);
        assert_eq!(memory.own, 600 << 10);
        assert_eq!(memory.own_private, 120 << 10);
    }

    #[test]
    fn a_process_without_guest_ram_has_no_answer() {
        assert_eq!(split(&mappings(TEXT), 1 << 30), None);
        assert_eq!(split(&[], 1), None);
    }

    #[test]
    fn lines_that_are_no_sizes_are_passed_over() {
        assert!(
            mappings("Rss: 5 kB\nnonsense\nSize: x kB\nSize: 99999999999999999999 kB").is_empty()
        );
    }

    #[test]
    fn this_process_has_mappings_in_memory() {
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let all = mappings(&text);
        assert!(all.len() > 5 && all.iter().any(|mapping| mapping.private > 0));
        let before = resident(std::process::id()).unwrap();
        let memory = vec![1u8; 64 << 20];
        assert!(resident(std::process::id()).unwrap() >= before + memory.len() as u64 / 2);
    }
}
