//! Guest RAM, as every device and the loader touch it.
//!
//! A [`Region`] may be *gated*: made of blocks of which only some are plugged. Every access in the
//! monitor goes through [`Region::get_slice`](GuestMemoryRegion::get_slice), which refuses a range
//! that holds an unplugged block, so queues, readers, writers and the loader obey plug state with
//! no code of their own.
//!
//! **Invariant:** only the code that makes KVM memory slots asks for a host address.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, MmapRegion, VolatileMemory,
    VolatileSlice,
};

/// All of a guest's RAM. Its set of regions never changes while the machine exists.
pub type GuestMemory = GuestRegionCollection<Region>;

/// Who is told that the monitor itself was sent to closed memory, with the first guest-physical
/// address of the access that is closed. Called on the thread that asked, which may hold a device's
/// lock: it must not wait.
pub type RefusalWatch = Arc<dyn Fn(GuestAddress) + Send + Sync>;

/// One contiguous range of guest-physical RAM and the host mapping behind it.
pub struct Region {
    mapping: MmapRegion,
    start: GuestAddress,
    gate: Option<Arc<Gate>>,
    watch: OnceLock<RefusalWatch>,
    _owner: Box<dyn Send + Sync>,
}

impl Region {
    /// RAM at `start`: all of it accessible, or the blocks that are open in `gate`. `owner` keeps
    /// `mapping` mapped and is dropped with the region.
    ///
    /// Returns `None` when the range would end past the 64-bit address space.
    pub fn new(
        mapping: MmapRegion,
        start: GuestAddress,
        gate: Option<Arc<Gate>>,
        owner: Box<dyn Send + Sync>,
    ) -> Option<Self> {
        start.0.checked_add(mapping.size() as u64)?;
        Some(Self { mapping, start, gate, watch: OnceLock::new(), _owner: owner })
    }

    /// Tells `watch` of every access from now on that meets a closed block. The first watch stays.
    pub fn watch(&self, watch: RefusalWatch) {
        let _ = self.watch.set(watch);
    }

    /// Whether blocks of it can be closed.
    pub fn is_gated(&self) -> bool {
        self.gate.is_some()
    }

    /// The runs of open blocks, in bytes from its start. Only of use while nobody opens or closes any.
    pub fn open_runs(&self) -> impl Iterator<Item = Range<u64>> {
        let len = self.mapping.size() as u64;
        let step = self.gate.as_ref().map_or(len, |gate| 1 << gate.block_shift).max(1);
        let blocks = (0..len).step_by(step as usize).map(move |at| at..(at + step).min(len));
        let mut blocks = blocks.filter(|block| self.is_open(block.start, 1)).peekable();
        std::iter::from_fn(move || {
            let mut run = blocks.next()?;
            while let Some(next) = blocks.next_if(|next| next.start == run.end) {
                run.end = next.end;
            }
            Some(run)
        })
    }

    /// Always accessible RAM at `start` whose mapping owns itself.
    ///
    /// Returns `None` when the range would end past the 64-bit address space.
    pub fn open(mapping: MmapRegion, start: GuestAddress) -> Option<Self> {
        Self::new(mapping, start, None, Box::new(()))
    }

    fn is_open(&self, offset: u64, count: usize) -> bool {
        self.gate.as_ref().is_none_or(|gate| gate.allows(offset, count as u64))
    }

    /// The first closed byte among `count` at `offset`, from the region's start. What lies past the
    /// region's end is nobody's.
    fn first_closed(&self, offset: u64, count: usize) -> Option<u64> {
        let end = offset.saturating_add(count as u64).min(self.len());
        self.gate.as_ref()?.first_closed(offset..end)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("start", &format_args!("{:#x}", self.start.0))
            .field("size", &format_args!("{:#x}", self.mapping.size()))
            .field("gated", &self.gate.is_some())
            .finish()
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.mapping.size() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, Self::B> {}

    fn file_offset(&self) -> Option<&FileOffset> {
        self.mapping.file_offset()
    }

    /// The host address behind `addr`, whether open or not. For KVM memory slots only.
    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        self.check_address(addr)
            .map(|addr| self.mapping.as_ptr().wrapping_add(addr.0 as usize))
            .ok_or(GuestMemoryError::InvalidBackendAddress)
    }

    /// `count` bytes at `offset`.
    ///
    /// # Errors
    /// The range leaves the region or holds an unplugged block.
    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>> {
        if !self.is_open(offset.0, count) {
            if let (Some(watch), Some(closed)) =
                (self.watch.get(), self.first_closed(offset.0, count))
            {
                watch(GuestAddress(self.start.0 + closed));
            }
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        Ok(self.mapping.get_slice(offset.0 as usize, count)?)
    }
}

impl GuestMemoryRegionBytes for Region {}

/// Which blocks of a region are open to the guest and to the monitor: one bit per block.
///
/// The virtio-mem device's thread opens and closes; every device thread reads. A bit is set after
/// the memory has become accessible and cleared before it stops being so.
pub struct Gate {
    block_shift: u32,
    open: Box<[AtomicU64]>,
}

impl Gate {
    /// A gate for `blocks` blocks of `1 << block_shift` bytes, all closed.
    pub fn closed(block_shift: u32, blocks: usize) -> Self {
        let open = (0..blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { block_shift, open }
    }

    /// Opens or closes `count` blocks from `first` on; blocks past the end are ignored.
    pub fn set(&self, first: usize, count: usize, open: bool) {
        for (word, mask) in masks(first, count) {
            let Some(word) = self.open.get(word) else { return };
            match open {
                true => word.fetch_or(mask, Ordering::Release),
                false => word.fetch_and(!mask, Ordering::AcqRel),
            };
        }
    }

    /// Opens or closes the blocks that `range`, bytes from the region's start, consists of.
    pub fn set_bytes(&self, range: &Range<u64>, open: bool) {
        let (first, end) = (range.start >> self.block_shift, range.end >> self.block_shift);
        self.set(first as usize, end.saturating_sub(first) as usize, open);
    }

    /// Whether all of `len` bytes at `offset` lie in open blocks.
    pub fn allows(&self, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len) else { return false };
        let first = offset >> self.block_shift;
        let last = end.saturating_sub(1).max(offset) >> self.block_shift;
        masks(first as usize, (last - first + 1) as usize).all(|(word, mask)| {
            self.open.get(word).is_some_and(|word| word.load(Ordering::Acquire) & mask == mask)
        })
    }

    /// The first byte of `range` that lies in a closed block.
    fn first_closed(&self, range: Range<u64>) -> Option<u64> {
        let blocks = range.start >> self.block_shift..range.end.div_ceil(1 << self.block_shift);
        let mut starts = blocks.map(|block| range.start.max(block << self.block_shift));
        starts.find(|&at| !self.allows(at, 1))
    }
}

/// The words that bits `first .. first + count` lie in, each with its mask.
fn masks(first: usize, count: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = first.saturating_add(count);
    (first / 64..end.div_ceil(64)).map(move |word| {
        let low = first.saturating_sub(word * 64).min(64);
        let high = (end - word * 64).min(64);
        let mask = if high == 64 { u64::MAX } else { (1 << high) - 1 };
        (word, if low == 64 { 0 } else { mask & (u64::MAX << low) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestMemoryBackend};

    const BLOCK: u64 = 1 << 21;

    fn gated_memory(open: &[usize]) -> GuestMemory {
        let gate = Arc::new(Gate::closed(21, 4));
        open.iter().for_each(|&block| gate.set(block, 1, true));
        let mapping = MmapRegion::new(4 * BLOCK as usize).unwrap();
        let region = Region::new(mapping, GuestAddress(BLOCK), Some(gate), Box::new(())).unwrap();
        GuestMemory::from_regions(vec![region]).unwrap()
    }

    #[test]
    fn closed_blocks_are_out_of_reach() {
        let memory = gated_memory(&[1]);
        memory.write_slice(b"ok", GuestAddress(2 * BLOCK)).unwrap();
        memory.write_slice(b"ok", GuestAddress(3 * BLOCK - 2)).unwrap();
        memory.write_slice(b"no", GuestAddress(3 * BLOCK - 1)).unwrap_err();
        memory.write_slice(b"no", GuestAddress(BLOCK)).unwrap_err();
        memory.write_slice(b"no", GuestAddress(5 * BLOCK)).unwrap_err();
        memory.load::<u16>(GuestAddress(4 * BLOCK), Ordering::Relaxed).unwrap_err();
    }

    #[test]
    fn the_watch_hears_of_closed_blocks_only() {
        let memory = gated_memory(&[1]);
        let heard = Arc::new(AtomicU64::new(0));
        let watch = Arc::clone(&heard);
        let region = memory.iter().next().unwrap();
        region.watch(Arc::new(move |addr| watch.store(addr.0, Ordering::Relaxed)));
        memory.write_slice(b"ok", GuestAddress(2 * BLOCK)).unwrap();
        memory.write_slice(b"no", GuestAddress(64 * BLOCK)).unwrap_err();
        assert_eq!(heard.load(Ordering::Relaxed), 0);
        memory.write_slice(b"no", GuestAddress(4 * BLOCK + 8)).unwrap_err();
        assert_eq!(heard.load(Ordering::Relaxed), 4 * BLOCK + 8);
    }

    /// The block that was named was the guest's own, in which a buffer only began.
    #[test]
    fn the_watch_hears_where_an_access_meets_a_closed_block() {
        let memory = gated_memory(&[1, 3]);
        let heard = Arc::new(AtomicU64::new(0));
        let watch = Arc::clone(&heard);
        let region = memory.iter().next().unwrap();
        region.watch(Arc::new(move |addr| watch.store(addr.0, Ordering::Relaxed)));
        memory.write_slice(b"no", GuestAddress(3 * BLOCK - 1)).unwrap_err();
        assert_eq!(heard.swap(0, Ordering::Relaxed), 3 * BLOCK);
        // What leaves the region has met no closed block of it.
        region.get_slice(MemoryRegionAddress(4 * BLOCK - 1), 2).unwrap_err();
        assert_eq!(heard.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn open_runs_join_blocks_and_leave_out_closed_ones() {
        let runs = |open: &[usize]| {
            let memory = gated_memory(open);
            memory.iter().flat_map(Region::open_runs).collect::<Vec<_>>()
        };
        assert_eq!(runs(&[0, 1, 3]), [0..2 * BLOCK, 3 * BLOCK..4 * BLOCK]);
        assert_eq!(runs(&[]), []);
        let region = Region::open(MmapRegion::new(8192).unwrap(), GuestAddress(0)).unwrap();
        assert_eq!(region.open_runs().collect::<Vec<_>>(), std::slice::from_ref(&(0..8192)));
    }

    #[test]
    fn a_region_past_the_address_space_is_refused() {
        let mapping = MmapRegion::new(4096).unwrap();
        assert!(Region::open(mapping, GuestAddress(u64::MAX - 100)).is_none());
    }

    proptest! {
        #[test]
        fn gate_matches_a_list_of_bools(
            steps in proptest::collection::vec((0usize..200, 1usize..200, any::<bool>()), 1..20),
            probes in proptest::collection::vec((0u64..200 * 16, 0u64..400), 1..50),
        ) {
            let gate = Gate::closed(4, 200);
            let mut model = [false; 200];
            for (first, count, open) in steps {
                let count = count.min(200 - first);
                gate.set(first, count, open);
                model[first..first + count].fill(open);
            }
            for (offset, len) in probes {
                let (first, last) = (offset / 16, (offset + len.max(1) - 1) / 16);
                let expected = last < 200
                    && model[first as usize..=last as usize].iter().all(|&open| open);
                prop_assert_eq!(gate.allows(offset, len), expected);
            }
        }
    }
}
