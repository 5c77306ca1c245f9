//! From a chain of descriptors to a typed request, and from an answer to its bytes (virtio 1.3,
//! 5.15.6).
//!
//! A request is 24 bytes that the device reads, then 10 that it writes. The driver may cut both
//! into descriptors anywhere (2.7.4.3). Nothing in here has an effect, and nothing allocates.

use memctl::{Answer, PlugState};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::guest_memory::GuestMemory;
use crate::virtio::queue::Chain;

/// The most descriptors a chain may have: 34 are enough for one byte in each.
const MAX_DESCRIPTORS: usize = 64;

/// `struct virtio_mem_req`.
const REQUEST_BYTES: usize = 24;

/// `struct virtio_mem_resp`.
const RESPONSE_BYTES: usize = 10;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// Blocks as the driver names them: an allegation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Guest-physical address of the first.
    pub(super) addr: u64,
    /// How many.
    pub(super) count: u16,
}

/// What the driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Take these blocks.
    Plug(Named),
    /// Give these back.
    Unplug(Named),
    /// Give all back.
    UnplugAll,
    /// Are these plugged?
    State(Named),
}

/// Why a chain is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// It is a loop, leads out of its table, or is far too long.
    #[error("a chain without an end")]
    Endless,
    /// The device may read after it may write (virtio 1.3, 2.7.4.2).
    #[error("a buffer to read after one to write")]
    Order,
    /// Fewer than 24 bytes that can be read.
    #[error("a request that is short, or not in plugged memory")]
    Short,
    /// Fewer than 10 bytes that can be written: nothing can be answered.
    #[error("no room for an answer in plugged memory")]
    NoReply,
    /// A type that this device does not know.
    #[error("a request of unknown type {0:#x}")]
    Unknown(u16),
}

/// A chain, taken apart.
#[derive(Debug)]
pub(super) struct Received {
    /// Where the answer goes; `None` when there is no room for one.
    pub(super) reply: Option<Reply>,
    /// What is asked, or why nothing is. Never a request without a reply.
    pub(super) request: Result<Request, Malformed>,
}

/// Takes `chain` apart. Costs at most [`MAX_DESCRIPTORS`] descriptors.
pub(super) fn receive(chain: Chain, memory: &GuestMemory) -> Received {
    let mut frame = Frame::default();
    let mut complete = false;
    for descriptor in chain.take(MAX_DESCRIPTORS) {
        complete = !descriptor.has_next();
        frame.add(memory, &descriptor);
    }
    let no_reply = |malformed| Received { reply: None, request: Err(malformed) };
    if !complete {
        return no_reply(Malformed::Endless);
    }
    if !frame.reply.is_writable(memory) {
        return no_reply(Malformed::NoReply);
    }
    Received { reply: Some(frame.reply), request: frame.request() }
}

/// The bytes of a request, and where its answer goes.
#[derive(Default)]
struct Frame {
    bytes: [u8; REQUEST_BYTES],
    /// How many of them are there.
    filled: usize,
    unreadable: bool,
    unordered: bool,
    reply: Reply,
}

impl Frame {
    fn add(&mut self, memory: &GuestMemory, descriptor: &Descriptor) {
        if descriptor.is_write_only() {
            return self.reply.add(descriptor.addr(), descriptor.len() as usize);
        }
        self.unordered |= self.reply.len > 0;
        let rest = &mut self.bytes[self.filled..];
        let count = rest.len().min(descriptor.len() as usize);
        self.unreadable |= memory.read_slice(&mut rest[..count], descriptor.addr()).is_err();
        self.filled += count;
    }

    fn request(&self) -> Result<Request, Malformed> {
        if self.unordered {
            return Err(Malformed::Order);
        }
        if self.unreadable || self.filled < REQUEST_BYTES {
            return Err(Malformed::Short);
        }
        Request::parse(self.bytes)
    }
}

impl Request {
    /// `struct virtio_mem_req`: type, padding, address, number of blocks, padding.
    fn parse(bytes: [u8; REQUEST_BYTES]) -> Result<Self, Malformed> {
        let [t0, t1, _, _, _, _, _, _, a0, a1, a2, a3, a4, a5, a6, a7, n0, n1, ..] = bytes;
        let addr = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let named = Named { addr, count: u16::from_le_bytes([n0, n1]) };
        match u16::from_le_bytes([t0, t1]) {
            PLUG => Ok(Self::Plug(named)),
            UNPLUG => Ok(Self::Unplug(named)),
            UNPLUG_ALL => Ok(Self::UnplugAll),
            STATE => Ok(Self::State(named)),
            unknown => Err(Malformed::Unknown(unknown)),
        }
    }
}

/// The first ten bytes of a chain that the device may write.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reply {
    parts: [(GuestAddress, usize); RESPONSE_BYTES],
    count: usize,
    len: usize,
}

impl Reply {
    fn add(&mut self, addr: GuestAddress, len: usize) {
        let len = len.min(RESPONSE_BYTES - self.len);
        if len > 0 {
            // No part is empty, so ten bytes have at most ten.
            self.parts[self.count] = (addr, len);
            self.count += 1;
            self.len += len;
        }
    }

    fn parts(&self) -> &[(GuestAddress, usize)] {
        &self.parts[..self.count]
    }

    /// Whether all ten bytes are there, in memory that is plugged now: a request that can't be
    /// answered must not have an effect.
    fn is_writable(&self, memory: &GuestMemory) -> bool {
        let in_ram = |&(addr, len)| memory.get_slices(addr, len).all(|slice| slice.is_ok());
        self.len == RESPONSE_BYTES && self.parts().iter().all(in_ram)
    }

    /// Writes `response` and returns the used length (virtio 1.3, 2.7.8): less than all of it only
    /// where the request itself has unplugged the memory that the answer was to go to.
    pub(super) fn send(&self, memory: &GuestMemory, response: Response) -> u32 {
        let bytes = response.to_bytes();
        let mut sent = 0;
        for &(addr, len) in self.parts() {
            if memory.write_slice(&bytes[sent..sent + len], addr).is_err() {
                break;
            }
            sent += len;
        }
        sent as u32
    }
}

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) answer: Answer,
    /// To STATE only.
    pub(super) state: Option<PlugState>,
}

impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        Self { answer, state: None }
    }
}

impl Response {
    /// `struct virtio_mem_resp`: type, padding, state.
    fn to_bytes(self) -> [u8; RESPONSE_BYTES] {
        let kind = match self.answer {
            Answer::Ack => 0,
            Answer::Nack => 1,
            Answer::Busy => 2,
            Answer::Error => 3,
        };
        let state = match self.state {
            None | Some(PlugState::Plugged) => 0,
            Some(PlugState::Unplugged) => 1,
            Some(PlugState::Mixed) => 2,
        };
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}
