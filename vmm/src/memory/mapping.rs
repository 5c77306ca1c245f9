//! Host mappings behind guest RAM.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::ops::Range;
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

/// As many NUMA nodes as Linux can be built for: 1024.
const NODE_WORDS: usize = 16;

/// Address space and nothing else.
const BARE: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// A range of host memory, aligned to 2 MiB, unmapped when dropped.
pub(super) struct Mapping {
    address: *mut libc::c_void,
    size: usize,
}

// SAFETY: the pointer is only the name of a range of address space that this struct alone unmaps;
// nothing is read or written through it.
unsafe impl Send for Mapping {}
// SAFETY: as above; what a shared reference offers is system calls, which the kernel serialises, and
// who closes a range has waited for its readers before (`devices::readers`).
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Takes `size` bytes of address space, inaccessible and aligned to `alignment`.
    fn closed(size: usize, alignment: usize) -> io::Result<Self> {
        let reservation =
            Self::reserve(size.checked_add(alignment).ok_or(ErrorKind::OutOfMemory)?)?;
        let aligned = (reservation.address as usize).next_multiple_of(alignment);
        reservation.trim(aligned, size);
        Ok(Self { address: aligned as *mut libc::c_void, size })
    }

    /// Its length in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Where it is, to find it in `/proc/self/smaps`.
    #[cfg(test)]
    pub(super) fn host_address(&self) -> usize {
        self.address as usize
    }

    /// Makes `range` (bytes from the start), which is closed, accessible: fresh memory as `memory`
    /// asks, or that part of `file`. On failure it is closed still.
    pub(super) fn open(
        &self,
        range: &Range<usize>,
        memory: &Memory,
        file: Option<&File>,
    ) -> io::Result<()> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags(memory, file.is_some()) | libc::MAP_FIXED;
        self.map(range, prot, flags, file).inspect_err(|_| {
            self.close_hole(range, &["---"]);
        })
    }

    /// Frees what is private of `range`, and takes what is shared out of reach until it is touched.
    pub(super) fn discard(&self, range: &Range<usize>) -> io::Result<()> {
        self.advise(range, libc::MADV_DONTNEED)
    }

    /// Makes `range` inaccessible and frees what is still there of what is private. On failure it is
    /// as it was.
    pub(super) fn close(&self, range: &Range<usize>) -> io::Result<()> {
        let closed = self.map(range, libc::PROT_NONE, BARE | libc::MAP_FIXED, None);
        closed.or_else(|error| match self.close_hole(range, &["---", "rw-"]) {
            true => Ok(()),
            false => Err(error),
        })
    }

    /// Closes the hole that a failed call of [`Mapping::map`] may have left in `range`: the kernel
    /// unmaps what is to be replaced before it knows that it has what comes instead. `before` is how
    /// the range may have been accessible. Returns whether there was a hole.
    ///
    /// The guest can reach a hole, and whatever the monitor's other threads map is put there. So
    /// without a way to close it, the process ends.
    fn close_hole(&self, range: &Range<usize>, before: &[&str]) -> bool {
        match self.map(range, libc::PROT_NONE, BARE | libc::MAP_FIXED_NOREPLACE, None) {
            Ok(()) => true,
            Err(_) if range.end > self.size || self.is_mapped(range, before) => false,
            Err(error) => {
                log::error!("a hole in guest memory can't be closed; ending the VM: {error}");
                std::process::abort()
            }
        }
    }

    /// Whether all of `range` is mapped, and accessible in one of these ways (as in
    /// `/proc/self/maps`).
    fn is_mapped(&self, range: &Range<usize>, ways: &[&str]) -> bool {
        let Ok(areas) = self.areas(range) else { return false };
        let mut at = range.start;
        for (area, way) in areas {
            if area.start > at || !ways.contains(&way.as_str()) {
                return false;
            }
            at = area.end;
        }
        at >= range.end
    }

    /// Where the areas start that the kernel has for what is accessible, in bytes from the start.
    ///
    /// # Errors
    /// The host does not say.
    pub(super) fn open_areas(&self) -> io::Result<Vec<u64>> {
        let areas = self.areas(&(0..self.size))?;
        let open = areas.into_iter().filter(|(_, way)| way == "rw-");
        Ok(open.map(|(area, _)| area.start as u64).collect())
    }

    /// The areas that the kernel has in `range`, and how each is accessible, in ascending order.
    fn areas(&self, range: &Range<usize>) -> io::Result<Vec<(Range<usize>, String)>> {
        let host = self.address as usize + range.start..self.address as usize + range.end;
        let mut areas = Vec::new();
        for line in BufReader::new(File::open("/proc/self/maps")?).lines() {
            let line = line?;
            let (area, way) = parse_area(&line).ok_or(ErrorKind::InvalidData)?;
            if area.start < host.end && area.end > host.start {
                let start = area.start.max(host.start) - self.address as usize;
                let end = area.end.min(host.end) - self.address as usize;
                areas.push((start..end, way.to_owned()));
            }
        }
        Ok(areas)
    }

    /// Puts other pages behind `range`. After a failure there may be none ([`Mapping::close_hole`]).
    fn map(
        &self,
        range: &Range<usize>,
        prot: libc::c_int,
        flags: libc::c_int,
        file: Option<&File>,
    ) -> io::Result<()> {
        if range.start > range.end || range.end > self.size {
            return Err(ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range was just checked to lie inside this mapping, which this value owns, and
        // `flags` have one of MAP_FIXED and MAP_FIXED_NOREPLACE. No Rust reference points into it:
        // guest memory is only reached through volatile slices, and whoever closes a range has
        // first waited for the threads that hold one (`Readers::wait`).
        let address = unsafe {
            libc::mmap(
                self.address.wrapping_byte_add(range.start),
                range.end - range.start,
                prot,
                flags,
                file.map_or(-1, AsRawFd::as_raw_fd),
                range.start as libc::off_t,
            )
        };
        match address {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Takes `size` bytes of address space and nothing else.
    fn reserve(size: usize) -> io::Result<Self> {
        // SAFETY: without MAP_FIXED the kernel picks a range that nothing uses.
        let address = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_NONE, BARE, -1, 0) };
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

    /// Tells the kernel how `range` will be used.
    fn advise(&self, range: &Range<usize>, advice: libc::c_int) -> io::Result<()> {
        if range.start > range.end || range.end > self.size {
            return Err(ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range lies inside this mapping, and of the advices used here (HUGEPAGE,
        // NOHUGEPAGE, MERGEABLE, POPULATE_WRITE, DONTDUMP, DONTNEED) only the last one changes what
        // it holds, as any guest does at any time: no Rust reference points into it.
        let result = unsafe {
            let start = self.address.wrapping_byte_add(range.start);
            libc::madvise(start, range.end - range.start, advice)
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has the pages of `range` come from the host's NUMA node `node` only.
    fn bind(&self, range: &Range<usize>, node: u16) -> io::Result<()> {
        if range.start > range.end || range.end > self.size {
            return Err(ErrorKind::InvalidInput.into());
        }
        let mut nodes = [0u64; NODE_WORDS];
        let word = nodes.get_mut(usize::from(node) / 64).ok_or(ErrorKind::InvalidInput)?;
        *word = 1 << (node % 64);
        // SAFETY: the kernel reads `nodes`, which outlives the call and has as many bits as it is
        // told (it takes one off), and changes nothing but where pages of the range, which lies
        // inside this mapping, will come from.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.address.wrapping_byte_add(range.start),
                range.end - range.start,
                libc::MPOL_BIND,
                nodes.as_ptr(),
                nodes.len() * 64 + 1,
                0,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Asks for what `memory` says beyond the mapping itself.
    pub(super) fn apply(&self, range: &Range<usize>, memory: &Memory) -> Result<(), Error> {
        let advise = |what, advice| {
            self.advise(range, advice).map_err(|source| Error::Advise { what, source })
        };
        // Guest memory in a core dump of the monitor would leak tenants' data.
        advise("dump=off", libc::MADV_DONTDUMP)?;
        if !matches!(memory.backing, Backing::Hugetlb { .. }) {
            let advice = if memory.thp { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            // A host built without transparent huge pages runs on small ones.
            let _ = self.advise(range, advice);
        }
        if let Some(node) = memory.host_node {
            let what = "host_numa_node";
            self.bind(range, node).map_err(|source| Error::Advise { what, source })?;
        }
        if memory.mergeable {
            advise("mergeable=on", libc::MADV_MERGEABLE)?;
        }
        if memory.prefault {
            advise("prefault=on", libc::MADV_POPULATE_WRITE)?;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.size > 0 {
            // SAFETY: the range was mapped by `reserve`, is owned by this value alone,
            // and a Region keeps its Mapping alive for as long as anything can name its memory.
            unsafe { libc::munmap(self.address, self.size) };
        }
    }
}

/// The addresses of a line of `/proc/self/maps`, and how they are accessible, as in "rw-".
fn parse_area(line: &str) -> Option<(Range<usize>, &str)> {
    let (addresses, rest) = line.split_once(' ')?;
    let (start, end) = addresses.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?..address(end)?, rest.get(..3)?))
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

/// Address space for guest RAM at the guest-physical address `start`, and the file behind it.
pub(super) struct Backed {
    pub(super) mapping: Arc<Mapping>,
    pub(super) file: Option<Arc<File>>,
    start: GuestAddress,
}

impl Backed {
    /// Reserves `size` bytes for RAM at `start`, all of it closed, and makes the file behind it
    /// where `memory` asks for one.
    pub(super) fn closed(start: u64, size: usize, memory: &Memory) -> Result<Self, Error> {
        let refused = |source| Error::Map { start, size: Bytes::new(size as u64), source };
        let file = backing_file(size, memory).map_err(refused)?.map(Arc::new);
        let alignment = ALIGNMENT.max(memory.backing.page().as_usize().unwrap_or(ALIGNMENT));
        let mapping = Arc::new(Mapping::closed(size, alignment).map_err(refused)?);
        Ok(Self { mapping, file, start: GuestAddress(start) })
    }

    /// Opens all of it.
    pub(super) fn open(&self, memory: &Memory) -> Result<(), Error> {
        let all = 0..self.mapping.size;
        let (start, size) = (self.start.0, Bytes::new(self.mapping.size as u64));
        self.mapping.open(&all, memory, self.file.as_deref()).map_err(|source| Error::Map {
            start,
            size,
            source,
        })?;
        self.mapping.apply(&all, memory)
    }

    /// The region that guest and devices know, open throughout or as `gate` says.
    pub(super) fn region(&self, memory: &Memory, gate: Option<Arc<Gate>>) -> Result<Region, Error> {
        let size = self.mapping.size;
        let refused =
            |source| Error::Map { start: self.start.0, size: Bytes::new(size as u64), source };
        let mut builder = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags(memory, self.file.is_some()))
            .with_hugetlbfs(matches!(memory.backing, Backing::Hugetlb { .. }));
        if let Some(file) = &self.file {
            builder = builder.with_file_offset(FileOffset::from_arc(Arc::clone(file), 0));
        }
        // SAFETY: address and size are those of the mapping, which the region owns a share of.
        let builder = unsafe { builder.with_raw_mmap_pointer(self.mapping.address.cast()) };
        let view = builder.build().map_err(|error| refused(io::Error::other(error)))?;
        let owner = Box::new(Arc::clone(&self.mapping));
        Region::new(view, self.start, gate, owner).ok_or(Error::TooLarge)
    }
}
