//! Host mappings behind guest RAM.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use devices::guest_memory::{Gate, Region};
use memctl::Bytes;
use rustix::fs::MemfdFlags;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress};

use super::Error;
use crate::machine::spec::{Backing, Memory};

/// A 2 MiB huge page: guest-physical and host-virtual addresses agree below it, so that both page
/// tables can map huge pages.
const ALIGNMENT: usize = 2 << 20;

/// A range of host memory, aligned to 2 MiB, unmapped when dropped.
struct Mapping {
    address: *mut libc::c_void,
    size: usize,
}

// SAFETY: the pointer is only the name of a range of address space that this struct alone unmaps;
// nothing is read or written through it.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference offers no operation at all.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes as `memory` asks: of `file` from its start, else anonymous.
    fn new(size: usize, memory: &Memory, file: Option<&File>) -> io::Result<Self> {
        let reservation = Self::reserve(size + ALIGNMENT)?;
        let aligned = (reservation.address as usize).next_multiple_of(ALIGNMENT);
        let flags = libc::MAP_FIXED | flags(memory, file.is_some());
        // SAFETY: the range [aligned, aligned + size) lies inside the reservation, which nothing
        // else knows, so replacing its pages takes nobody's memory away.
        let address = unsafe {
            libc::mmap(
                aligned as *mut libc::c_void,
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                file.map_or(-1, AsRawFd::as_raw_fd),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        reservation.trim(aligned, size);
        Ok(Self { address, size })
    }

    /// Takes `size` bytes of address space and nothing else.
    fn reserve(size: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED the kernel picks a range that nothing uses.
        let address = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address, size })
    }

    /// Gives back what lies before and after `[start, start + size)`, which a new owner has.
    fn trim(self, start: usize, size: usize) {
        let (address, end) = (self.address as usize, self.address as usize + self.size);
        std::mem::forget(self);
        drop(Self { address: address as *mut libc::c_void, size: start - address });
        drop(Self { address: (start + size) as *mut libc::c_void, size: end - start - size });
    }

    /// Tells the kernel how the memory will be used.
    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is this mapping, and none of the advices used here (HUGEPAGE,
        // NOHUGEPAGE, MERGEABLE, POPULATE_WRITE, DONTDUMP) changes its contents.
        match unsafe { libc::madvise(self.address, self.size, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.size > 0 {
            // SAFETY: the range was mapped by `new` or `reserve`, is owned by this value alone,
            // and a Region keeps its Mapping alive for as long as anything can name its memory.
            unsafe { libc::munmap(self.address, self.size) };
        }
    }
}

fn flags(memory: &Memory, file: bool) -> libc::c_int {
    let sharing = if is_shared(memory.backing) { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let anonymous = if file { 0 } else { libc::MAP_ANONYMOUS };
    let reserve = if memory.reserve { 0 } else { libc::MAP_NORESERVE };
    let huge = match memory.backing {
        Backing::Hugetlb { page, .. } if !file => libc::MAP_HUGETLB | huge_page_flag(page) as i32,
        _ => 0,
    };
    sharing | anonymous | reserve | huge
}

fn is_shared(backing: Backing) -> bool {
    matches!(backing, Backing::Shared | Backing::Hugetlb { shared: true, .. })
}

/// The page size as MAP_HUGE_* and MFD_HUGE_* encode it: its logarithm from bit 26 on.
fn huge_page_flag(page: Bytes) -> u32 {
    page.as_u64().trailing_zeros() << 26
}

/// The memory file that other processes can share, where `memory` asks for one.
fn backing_file(size: usize, memory: &Memory) -> io::Result<Option<File>> {
    let flags = match memory.backing {
        Backing::Shared => MemfdFlags::CLOEXEC,
        Backing::Hugetlb { page, shared: true } => {
            let page = MemfdFlags::from_bits_retain(huge_page_flag(page));
            MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | page
        }
        Backing::Anonymous | Backing::Hugetlb { .. } => return Ok(None),
    };
    let file = File::from(rustix::fs::memfd_create("guest-ram", flags)?);
    file.set_len(size as u64)?;
    Ok(Some(file))
}

/// Maps `size` bytes of guest RAM at the guest-physical address `start`, open throughout or as
/// `gate` says.
pub(super) fn region(
    start: GuestAddress,
    size: usize,
    memory: &Memory,
    gate: Option<Arc<Gate>>,
) -> Result<Region, Error> {
    let refused = |source| Error::Map { start: start.0, size: Bytes::new(size as u64), source };
    let file = backing_file(size, memory).map_err(refused)?;
    let mapping = Mapping::new(size, memory, file.as_ref()).map_err(refused)?;
    advise(&mapping, memory, gate.is_some())?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let mut builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(prot)
        .with_mmap_flags(flags(memory, file.is_some()))
        .with_hugetlbfs(matches!(memory.backing, Backing::Hugetlb { .. }));
    if let Some(file) = file {
        builder = builder.with_file_offset(FileOffset::new(file, 0));
    }
    // SAFETY: address and size are those of `mapping`, which the region owns from here on.
    let builder = unsafe { builder.with_raw_mmap_pointer(mapping.address.cast()) };
    let view = builder.build().map_err(|error| refused(io::Error::other(error)))?;
    Region::new(view, start, gate, Box::new(mapping)).ok_or(Error::TooLarge)
}

fn advise(mapping: &Mapping, memory: &Memory, gated: bool) -> Result<(), Error> {
    let try_advise =
        |what, advice| mapping.advise(advice).map_err(|source| Error::Advise { what, source });
    // Guest memory in a core dump of the monitor would leak tenants' data.
    try_advise("dump=off", libc::MADV_DONTDUMP)?;
    if !matches!(memory.backing, Backing::Hugetlb { .. }) {
        let advice = if memory.thp { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // A host built without transparent huge pages runs on small ones.
        let _ = mapping.advise(advice);
    }
    if memory.mergeable {
        try_advise("mergeable=on", libc::MADV_MERGEABLE)?;
    }
    if memory.prefault && !gated {
        try_advise("prefault=on", libc::MADV_POPULATE_WRITE)?;
    }
    Ok(())
}
