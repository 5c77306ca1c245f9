//! A queue while the driver is setting it up: what it wrote, unchecked, and the check that turns it
//! into a queue (virtio 1.3, 2.7 and 4.1.5.1.3).

use virtio_queue::{Queue, QueueState};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::guest_memory::GuestMemory;

/// One of a split queue's three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// The descriptor table.
    Descriptors,
    /// The available ring, written by the driver.
    Available,
    /// The used ring, written by the device.
    Used,
}

impl Ring {
    const ALL: [Self; 3] = [Self::Descriptors, Self::Available, Self::Used];

    /// Bytes it takes in a queue of `size` entries, event index included.
    fn bytes(self, size: u16) -> usize {
        match self {
            Self::Descriptors => 16 * usize::from(size),
            Self::Available => 6 + 2 * usize::from(size),
            Self::Used => 6 + 8 * usize::from(size),
        }
    }
}

/// Half of a 64-bit register, as 32-bit accesses see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
    /// All of it, in one access.
    Whole,
}

impl Part {
    /// The part that an access of `len` bytes at the register's own offset means.
    pub(super) fn first(len: usize) -> Option<Self> {
        match len {
            4 => Some(Self::Low),
            8 => Some(Self::Whole),
            _ => None,
        }
    }

    pub(super) fn of(self, value: u64) -> u64 {
        match self {
            Self::Low => value & 0xffff_ffff,
            Self::High => value >> 32,
            Self::Whole => value,
        }
    }

    /// `old` with this part set to `new`.
    pub(super) fn replace(self, old: u64, new: u64) -> u64 {
        match self {
            Self::Low => old >> 32 << 32 | new & 0xffff_ffff,
            Self::High => new << 32 | old & 0xffff_ffff,
            Self::Whole => new,
        }
    }
}

/// What the driver wrote makes no queue.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    #[error("queue {queue}: the {ring:?} ring at {address:#x} is not in guest RAM")]
    Ring { queue: usize, ring: Ring, address: u64 },
    #[error("queue {queue} is refused")]
    Refused { queue: usize, source: virtio_queue::Error },
}

/// What the driver has written about one queue.
#[derive(Clone, Debug)]
pub(super) struct QueueSetup {
    max_size: u16,
    size: u16,
    enabled: bool,
    rings: [u64; 3],
}

impl QueueSetup {
    /// A queue of at most `max_size` entries, not enabled.
    pub(super) fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, enabled: false, rings: [0; 3] }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn ring(&self, ring: Ring) -> u64 {
        self.rings[ring as usize]
    }

    /// A size that no split queue can have is not taken.
    pub(super) fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.max_size {
            self.size = size;
        }
    }

    pub(super) fn set_ring(&mut self, ring: Ring, part: Part, value: u64) {
        let address = &mut self.rings[ring as usize];
        *address = part.replace(*address, value);
    }

    /// The driver may enable a queue, not disable it.
    pub(super) fn enable(&mut self) {
        self.enabled = true;
    }

    /// The queue as set up, or `None` when it is not enabled. `index` is for the error.
    ///
    /// # Errors
    /// A ring is misaligned, or not all in plugged guest RAM. The check is not left to
    /// `Queue::is_valid`, which logs each failure. Address 0 is what an unset register holds, and
    /// never a ring.
    pub(super) fn build(
        &self,
        index: usize,
        event_idx: bool,
        memory: &GuestMemory,
    ) -> Result<Option<Queue>, QueueError> {
        if !self.enabled {
            return Ok(None);
        }
        for ring in Ring::ALL {
            let address = self.ring(ring);
            let in_ram = memory.check_range(GuestAddress(address), ring.bytes(self.size));
            if address == 0 || !in_ram {
                return Err(QueueError::Ring { queue: index, ring, address });
            }
        }
        let state = QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: true,
            desc_table: self.ring(Ring::Descriptors),
            avail_ring: self.ring(Ring::Available),
            used_ring: self.ring(Ring::Used),
        };
        let refused = |source| QueueError::Refused { queue: index, source };
        Queue::try_from(state).map(Some).map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::MmapRegion;

    use super::*;
    use crate::guest_memory::Region;

    const SIZE: u64 = 0x10000;

    fn memory() -> GuestMemory {
        let region = Region::open(MmapRegion::new(SIZE as usize).unwrap(), GuestAddress(0));
        GuestMemory::from_regions(vec![region.unwrap()]).unwrap()
    }

    fn setup(rings: [u64; 3]) -> QueueSetup {
        QueueSetup { max_size: 16, size: 8, enabled: true, rings }
    }

    #[test]
    fn a_queue_is_what_the_driver_wrote() {
        let queue = setup([0x1000, 0x2000, 0x3000]).build(0, true, &memory()).unwrap().unwrap();
        let state = queue.state();
        assert_eq!((state.size, state.max_size, state.event_idx_enabled), (8, 16, true));
        assert_eq!((state.desc_table, state.avail_ring, state.used_ring), (0x1000, 0x2000, 0x3000));
    }

    #[test]
    fn a_queue_not_enabled_is_none_whatever_it_holds() {
        let setup = QueueSetup { enabled: false, ..setup([1, 2, u64::MAX]) };
        assert!(setup.build(0, false, &memory()).unwrap().is_none());
    }

    #[test]
    fn rings_must_be_aligned_and_wholly_in_ram() {
        let good = [0x1000, 0x2000, 0x3000];
        let last = [SIZE - 128, SIZE - 22, SIZE - 70];
        for (ring, align) in [16, 2, 4].into_iter().enumerate() {
            let at = |address: u64| {
                let mut rings = good;
                rings[ring] = address;
                setup(rings).build(0, false, &memory()).is_ok()
            };
            assert!(at(last[ring] / align * align), "ring {ring} ends with RAM");
            for bad in [0, good[ring] + align / 2, SIZE - align, SIZE, u64::MAX - align + 1] {
                assert!(!at(bad), "ring {ring} at {bad:#x}");
            }
        }
    }

    #[test]
    fn sizes_no_queue_can_have_are_not_taken() {
        let mut setup = QueueSetup::new(16);
        for size in [0, 3, 17, 32, 0x8000, 0xffff] {
            setup.set_size(size);
            assert_eq!(setup.size(), 16);
        }
        setup.set_size(4);
        assert_eq!(setup.size(), 4);
    }

    #[test]
    fn a_64_bit_register_is_written_in_any_parts() {
        let mut setup = QueueSetup::new(16);
        setup.set_ring(Ring::Used, Part::Whole, 0x1111_2222_3333_4444);
        setup.set_ring(Ring::Used, Part::High, 0x5555_6666);
        assert_eq!(setup.ring(Ring::Used), 0x5555_6666_3333_4444);
        setup.set_ring(Ring::Used, Part::Low, 0x7777_8888);
        assert_eq!(setup.ring(Ring::Used), 0x5555_6666_7777_8888);
        assert_eq!(Part::High.of(setup.ring(Ring::Used)), 0x5555_6666);
    }
}
