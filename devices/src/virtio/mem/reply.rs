//! From an answer to its bytes, and where in the guest they go (virtio 1.3, 5.15.6).

use memctl::{Answer, PlugState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::record::Record;
use super::request::MAX_DESCRIPTORS;
use crate::guest_memory::GuestMemory;

/// `struct virtio_mem_resp`.
pub(super) const RESPONSE_BYTES: usize = 10;

/// The offset of a record in its answer.
const HEAD_BYTES: usize = 16;

/// The longest answer: with a record of all the runs it may have.
pub(super) const MAX_BYTES: usize = HEAD_BYTES + Record::MAX_BYTES;

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) answer: Answer,
    pub(super) detail: Detail,
}

/// What comes with an ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// Nothing.
    None,
    /// To STATE.
    State(PlugState),
    /// To PART_PLUG and PART_QUERY: the record that was filled in while the request was served.
    Record,
}

impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        Self { answer, detail: Detail::None }
    }
}

impl Response {
    /// `struct virtio_mem_resp`: type, padding, state; then zeroes up to where a record begins.
    fn head(self) -> [u8; HEAD_BYTES] {
        let kind = match self.answer {
            Answer::Ack => 0,
            Answer::Nack => 1,
            Answer::Busy => 2,
            Answer::Error => 3,
        };
        let state = match self.detail {
            Detail::State(PlugState::Unplugged) => 1,
            Detail::State(PlugState::Mixed) => 2,
            Detail::State(PlugState::Plugged) | Detail::None | Detail::Record => 0,
        };
        let mut head = [0; HEAD_BYTES];
        (head[0], head[8]) = (kind, state);
        head
    }
}

/// The bytes of a chain that the device may write, up to the longest answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    parts: [(GuestAddress, usize); MAX_DESCRIPTORS],
    count: usize,
    len: usize,
}

impl Default for Reply {
    fn default() -> Self {
        Self { parts: [(GuestAddress(0), 0); MAX_DESCRIPTORS], count: 0, len: 0 }
    }
}

impl Reply {
    /// The chain goes on with `len` bytes at `addr`.
    pub(super) fn add(&mut self, addr: GuestAddress, len: usize) {
        let len = len.min(MAX_BYTES - self.len);
        // A chain has no more parts than descriptors, and those are counted already.
        if len > 0 && self.count < MAX_DESCRIPTORS {
            self.parts[self.count] = (addr, len);
            self.count += 1;
            self.len += len;
        }
    }

    /// Whether there is nothing to write to.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn parts(&self) -> &[(GuestAddress, usize)] {
        &self.parts[..self.count]
    }

    /// Whether the first `len` bytes are there, in memory that is plugged now: a request that can't
    /// be answered must not have an effect.
    pub(super) fn has_room(&self, memory: &GuestMemory, len: usize) -> bool {
        let mut missing = len;
        for &(addr, part) in self.parts() {
            let part = part.min(missing);
            if part > 0 && !memory.get_slices(addr, part).all(|slice| slice.is_ok()) {
                return false;
            }
            missing -= part;
        }
        missing == 0
    }

    /// Writes `response`, and `record` if it says so, and returns the used length (virtio 1.3,
    /// 2.7.8): less than all of it only where the request itself has unplugged the memory that the
    /// answer was to go to.
    pub(super) fn send(&self, memory: &GuestMemory, response: Response, record: &Record) -> u32 {
        let head = response.head();
        match response.detail {
            Detail::Record => {
                let (header, runs) = record.as_bytes();
                self.write(memory, [&head, header, runs])
            }
            Detail::None | Detail::State(_) => {
                self.write(memory, [&head[..RESPONSE_BYTES], &[], &[]])
            }
        }
    }

    /// Writes `pieces` one after the other, as far as there is room, and returns how much it was.
    fn write(&self, memory: &GuestMemory, pieces: [&[u8]; 3]) -> u32 {
        let mut parts = self.parts().iter().copied();
        let (mut at, mut room) = (GuestAddress(0), 0);
        let mut written = 0;
        for mut piece in pieces {
            while !piece.is_empty() {
                if room == 0 {
                    let Some(next) = parts.next() else { return written as u32 };
                    (at, room) = next;
                }
                let (now, later) = piece.split_at(piece.len().min(room));
                if memory.write_slice(now, at).is_err() {
                    return written as u32;
                }
                (at, room) = (GuestAddress(at.0 + now.len() as u64), room - now.len());
                written += now.len();
                piece = later;
            }
        }
        written as u32
    }
}
