//! The guest memory a request names, as the driver cut it up.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};

use crate::guest_memory::GuestMemory;

/// A list of ranges of guest memory that together make one buffer.
///
/// The addresses are the guest's word: every access checks them again, because memory may be
/// unplugged at any time. No range is empty or passes the end of the address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    parts: Vec<(GuestAddress, u32)>,
    len: u64,
}

impl Buffers {
    /// Total number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `len` bytes at `address`.
    ///
    /// Returns `None` when they would pass the end of the address space.
    pub fn push(&mut self, address: GuestAddress, len: u32) -> Option<()> {
        if len > 0 {
            address.0.checked_add(u64::from(len))?;
            self.parts.push((address, len));
            self.len += u64::from(len);
        }
        Some(())
    }

    /// The memory itself, in order; more slices than parts where a part crosses regions. Ends at
    /// the first part that is not plugged RAM, with the error.
    pub fn slices<'a>(
        &'a self,
        memory: &'a GuestMemory,
    ) -> impl Iterator<Item = Result<VolatileSlice<'a>, GuestMemoryError>> {
        self.parts.iter().flat_map(|&(address, len)| memory.get_slices(address, len as usize))
    }

    /// Takes the first `count` bytes away; `None` when there are fewer.
    pub(super) fn split_front(&mut self, count: u32) -> Option<Self> {
        let mut front = Self::default();
        let mut used = 0;
        for (address, len) in &mut self.parts {
            let taken = (*len).min(count - front.len as u32);
            front.push(*address, taken)?;
            if taken < *len {
                *address = GuestAddress(address.0 + u64::from(taken));
                *len -= taken;
                break;
            }
            used += 1;
        }
        self.parts.drain(..used);
        self.len -= front.len;
        (front.len == u64::from(count)).then_some(front)
    }

    /// Takes the last byte away and says where it is.
    pub(super) fn split_last_byte(&mut self) -> Option<GuestAddress> {
        let (address, len) = self.parts.last_mut()?;
        let last = GuestAddress(address.0 + u64::from(*len) - 1);
        *len -= 1;
        if *len == 0 {
            self.parts.pop();
        }
        self.len -= 1;
        Some(last)
    }

    /// Copies out the first `N` bytes; `None` when there are fewer, or they are not plugged RAM.
    pub(super) fn read<const N: usize>(&self, memory: &GuestMemory) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut done = 0;
        for &(address, len) in &self.parts {
            let count = (len as usize).min(N - done);
            memory.read_slice(&mut bytes[done..done + count], address).ok()?;
            done += count;
        }
        (done == N).then_some(bytes)
    }

    /// Copies `bytes` to the front; `None` when they do not fit, or find no plugged RAM.
    pub(super) fn write(&self, memory: &GuestMemory, bytes: &[u8]) -> Option<()> {
        let mut rest = bytes;
        for &(address, len) in &self.parts {
            let (now, later) = rest.split_at((len as usize).min(rest.len()));
            memory.write_slice(now, address).ok()?;
            rest = later;
        }
        rest.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::memory;

    fn buffers(parts: &[(u64, u32)]) -> Buffers {
        let mut buffers = Buffers::default();
        parts.iter().for_each(|&(at, len)| buffers.push(GuestAddress(at), len).unwrap());
        buffers
    }

    #[test]
    fn the_front_splits_off_inside_and_between_parts() {
        for (count, front, rest) in [
            (0, vec![], vec![(0x100, 4), (0x200, 4)]),
            (3, vec![(0x100, 3)], vec![(0x103, 1), (0x200, 4)]),
            (4, vec![(0x100, 4)], vec![(0x200, 4)]),
            (6, vec![(0x100, 4), (0x200, 2)], vec![(0x202, 2)]),
            (8, vec![(0x100, 4), (0x200, 4)], vec![]),
        ] {
            let mut all = buffers(&[(0x100, 4), (0x200, 4)]);
            assert_eq!(all.split_front(count), Some(buffers(&front)), "{count}");
            assert_eq!(all, buffers(&rest), "{count}");
        }
        assert_eq!(buffers(&[(0x100, 4)]).split_front(5), None);
    }

    #[test]
    fn the_last_byte_may_be_a_part_of_its_own() {
        let mut all = buffers(&[(0x100, 2), (0x200, 1)]);
        assert_eq!(all.split_last_byte(), Some(GuestAddress(0x200)));
        assert_eq!(all.split_last_byte(), Some(GuestAddress(0x101)));
        assert_eq!(all, buffers(&[(0x100, 1)]));
        assert_eq!(all.split_last_byte(), Some(GuestAddress(0x100)));
        assert_eq!(all.split_last_byte(), None);
        assert!(all.is_empty());
    }

    #[test]
    fn bytes_gather_and_scatter_across_parts() {
        let memory = memory();
        let parts = buffers(&[(0x100, 2), (0x200, 3)]);
        parts.write(&memory, b"disk").unwrap();
        assert_eq!(parts.read(&memory), Some(*b"disk\0"));
        assert_eq!(parts.read::<6>(&memory), None);
        assert_eq!(parts.write(&memory, b"too long"), None);
        assert_eq!(buffers(&[(1 << 40, 8)]).read::<8>(&memory), None);
        assert_eq!(buffers(&[(1 << 40, 8)]).write(&memory, b"x"), None);
    }

    #[test]
    fn a_part_past_the_address_space_is_refused() {
        let mut all = Buffers::default();
        assert_eq!(all.push(GuestAddress(u64::MAX), 1), None);
        assert_eq!(all.push(GuestAddress(u64::MAX), 0), Some(()));
        assert_eq!(all, Buffers::default());
    }
}
