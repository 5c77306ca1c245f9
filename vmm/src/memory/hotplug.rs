//! Memory that comes and goes while the guest runs.
//!
//! Closed blocks have no pages and no access rights, for the guest and for the monitor: the region
//! starts as bare address space, opening maps fresh memory, closing maps address space over it. The
//! kernel frees what it unmaps, so that would do for a release, but it would do it with the whole
//! address space locked: each page fault of each vCPU, whichever function it runs, would wait for
//! the last page (61 ms for 1 GiB in small pages, `benches` `release_cost`). So `MADV_DONTNEED`
//! frees first, under the lock that page faults share, and closing finds nothing left: one call
//! per run of blocks that frees, and one of 30 us. A shared file's pages live in the file and take
//! a third. No KVM memory slot changes: KVM follows the mapping, and a guest that touches a closed
//! block stops its vCPU.
//!
//! **Invariant:** a block's gate is open only while its memory is. It opens last and shuts first,
//! and between shutting it and closing the memory every device thread has finished with what it
//! had been given before ([`Readers`]).
//!
//! **Invariant:** at most [`areas::MAX_AREAS`] areas are open, of all devices together, so that a
//! guest that plugs every other block can't use up the address-space areas the monitor itself needs
//! (65,530 by default).

mod areas;

use std::fs::File;
use std::io::{self, Error};
use std::ops::Range;
use std::sync::Arc;

use devices::guest_memory::Gate;
use devices::readers::Readers;
use devices::virtio::mem::HostBlocks;
use memctl::Bytes;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

pub(super) use self::areas::AreaCount;
use self::areas::Areas;
use super::mapping::{Backed, Mapping};
use crate::machine::spec::{Backing, Memory};

/// The host's side of a virtio-mem region. Owned by its device.
pub struct HotplugMemory {
    mapping: Arc<Mapping>,
    file: Option<Arc<File>>,
    memory: Memory,
    gate: Arc<Gate>,
    readers: Arc<Readers>,
    areas: Areas,
    /// Those of all devices.
    count: Arc<AreaCount>,
    /// What a failed opening left open, its gate shut, as the host refused to close it again.
    half_open: Option<Range<usize>>,
}

impl HotplugMemory {
    /// The memory of `backed`, all closed, in blocks of `block`.
    pub(super) fn new(
        backed: &Backed,
        memory: &Memory,
        block: Bytes,
        readers: Arc<Readers>,
        count: Arc<AreaCount>,
    ) -> Self {
        let blocks = backed.mapping.size() as u64 / block.as_u64();
        Self {
            mapping: Arc::clone(&backed.mapping),
            file: backed.file.clone(),
            memory: hotpluggable(memory),
            gate: Arc::new(Gate::closed(block.as_u64().trailing_zeros(), blocks as usize)),
            readers,
            areas: Areas::new(memory.backing),
            count,
            half_open: None,
        }
    }

    pub(super) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Frees what is private and closes. On failure it is open as before, and may read as zero.
    fn close(&self, range: &Range<usize>) -> io::Result<()> {
        // Where the host can't (huge pages before Linux 5.18), closing frees all of it.
        let _ = self.mapping.discard(range);
        self.mapping.close(range)
    }

    /// Frees what is in the file.
    fn empty(&self, range: &Range<usize>) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        punch(file, range)?;
        match self.memory.backing {
            // Has no SEEK_DATA, and no swap that would keep a page.
            Backing::Hugetlb { .. } => Ok(()),
            _ => check_hole(file, range),
        }
    }

    /// Maps `range` again, to the same part of the same file.
    fn reopen(&self, range: &Range<usize>) -> io::Result<()> {
        self.mapping.open(range, &self.memory, self.file.as_deref())?;
        self.mapping.apply(range, &self.memory).map_err(Error::other)
    }

    /// Counts the areas that there are more or less when `range` opens or closes, has `work` done,
    /// and counts them back when it fails.
    fn counted(
        &mut self,
        range: &Range<u64>,
        open: bool,
        work: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.areas.are_many()
            && let Ok(areas) = self.mapping.open_areas()
        {
            // They are there, whether there should be so many or not.
            self.count.take_back(-self.areas.recounted(areas.into_iter()));
        }
        let is_open = |byte| self.gate.allows(byte, 1);
        let change = match open {
            true => self.areas.opening(range, is_open),
            false => self.areas.closing(range, is_open),
        };
        self.count.add(change.delta)?;
        work(self).inspect_err(|_| self.count.take_back(change.delta))?;
        self.areas.commit(change);
        Ok(())
    }

    /// Opens closed memory as `memory` says.
    fn open_as(&mut self, range: Range<u64>, memory: &Memory) -> io::Result<()> {
        self.settle()?;
        self.counted(&range, true, |this| {
            let bytes = bytes(&range);
            this.mapping.open(&bytes, memory, this.file.as_deref())?;
            if let Err(error) = this.mapping.apply(&bytes, memory) {
                this.half_open = Some(bytes);
                if let Err(error) = this.settle() {
                    log::error!("guest memory at {:#x} does not close: {error}", range.start);
                }
                return Err(Error::other(error));
            }
            this.gate.set_bytes(&range, true);
            Ok(())
        })
    }

    /// Closes what a failed opening left open. The guest should not have it, so nothing else opens
    /// or closes before.
    fn settle(&mut self) -> io::Result<()> {
        let Some(range) = &self.half_open else { return Ok(()) };
        self.close(range).and_then(|()| self.empty(range))?;
        self.half_open = None;
        Ok(())
    }
}

/// # Errors
/// All calls also fail when more than 16,384 areas would be open, with the same promise.
impl HostBlocks for HotplugMemory {
    fn open(&mut self, range: Range<u64>) -> io::Result<()> {
        self.open_as(range, &self.memory.clone())
    }

    fn open_populated(&mut self, range: Range<u64>) -> io::Result<()> {
        self.open_as(range, &Memory { prefault: true, ..self.memory.clone() })
    }

    fn release(&mut self, range: Range<u64>) -> io::Result<()> {
        self.settle()?;
        self.counted(&range, false, |this| {
            this.gate.set_bytes(&range, false);
            this.readers.wait();
            let bytes = bytes(&range);
            this.close(&bytes).inspect_err(|_| this.gate.set_bytes(&range, true))?;
            this.empty(&bytes).inspect_err(|_| match this.reopen(&bytes) {
                Ok(()) => this.gate.set_bytes(&range, true),
                Err(error) => log::error!("guest memory at {:#x} is lost: {error}", range.start),
            })
        })
    }
}

/// `memory` for blocks that open one by one. Huge pages are reserved while they are mapped, after
/// what was there is gone: a pool that is too small would leave a hole. So those that are to be
/// reserved are taken at once instead, which fails with the mapping in place.
fn hotpluggable(memory: &Memory) -> Memory {
    match memory.backing {
        Backing::Hugetlb { .. } if memory.reserve => {
            Memory { reserve: false, prefault: true, ..memory.clone() }
        }
        _ => memory.clone(),
    }
}

fn bytes(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// Frees part of a memory file: `MADV_DONTNEED` and its like would return success and free nothing.
fn punch(file: &File, range: &Range<usize>) -> io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, hole, range.start as u64, range.len() as u64)?)
}

/// Whether it is gone.
fn check_hole(file: &File, range: &Range<usize>) -> io::Result<()> {
    match seek(file, SeekFrom::Data(range.start as u64)) {
        Err(Errno::NXIO) => Ok(()),
        Ok(data) if data >= range.end as u64 => Ok(()),
        Ok(_) => Err(Error::other("the host kept freed memory")),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
