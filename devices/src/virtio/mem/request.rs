//! From a chain of descriptors to a typed request (virtio 1.3, 5.15.6; docs/partition-channel.md).
//!
//! A request is 24 bytes that the device reads, then those that it writes. The driver may cut both
//! into descriptors anywhere (2.7.4.3). Nothing in here has an effect, and nothing allocates.

use memctl::{Bytes as Size, Hint, PartitionId};
use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, transmute};

use super::reply::{MAX_BYTES, RESPONSE_BYTES, Reply};
use crate::guest_memory::GuestMemory;
use crate::virtio::queue::Chain;

/// The most descriptors a chain may have: as many as the queue (virtio 1.3, 2.7.5).
pub(super) const MAX_DESCRIPTORS: usize = 64;

/// `struct virtio_mem_req`.
const REQUEST_BYTES: usize = 24;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const PART_PLUG: u16 = 0x100;
const PART_RELEASE: u16 = 0x101;
const PART_SHRINK: u16 = 0x102;
const PART_QUERY: u16 = 0x103;
const PART_NOTIFY: u16 = 0x104;

/// PART_QUERY: only what has another size than is wanted.
const PENDING: u16 = 1 << 0;

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
    /// Take what a partition misses.
    PartPlug(PartitionId),
    /// Give a partition back.
    PartRelease(PartitionId),
    /// Give these blocks of a partition back.
    PartShrink(PartitionId, Named),
    /// Which partition comes first from this number on?
    PartQuery {
        /// The least number.
        from: PartitionId,
        /// Only one that has another size than is wanted.
        pending: bool,
    },
    /// This is how a partition is.
    PartNotify(PartitionId, Hint),
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
    /// Fewer bytes that can be written than the longest answer to this request has.
    #[error("no room for a record in plugged memory")]
    NoRecord,
    /// A type that this device does not know.
    #[error("a request of unknown type {0:#x}")]
    UnknownType(u16),
    /// A notification that this device does not know.
    #[error("a notification of unknown event {0}")]
    UnknownEvent(u16),
}

/// A chain, taken apart.
#[derive(Debug)]
pub(super) struct Received {
    /// Where the answer goes; `None` when there is no room for one.
    pub(super) reply: Option<Reply>,
    /// What is asked, or why nothing is. Never a request without room for all of its answer.
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
    if !frame.reply.has_room(memory, RESPONSE_BYTES) {
        return no_reply(Malformed::NoReply);
    }
    let request = frame.request().and_then(|request| {
        let fits = !request.has_record() || frame.reply.has_room(memory, MAX_BYTES);
        fits.then_some(request).ok_or(Malformed::NoRecord)
    });
    Received { reply: Some(frame.reply), request }
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
        self.unordered |= !self.reply.is_empty();
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

/// `struct virtio_mem_req` of a request by address.
#[derive(FromBytes, Immutable)]
#[repr(C)]
struct ByAddress {
    kind: U16,
    _padding: [U16; 3],
    addr: U64,
    count: U16,
    _rest: [U16; 3],
}

/// `struct virtio_mem_req` of a request by partition.
#[derive(FromBytes, Immutable)]
#[repr(C)]
struct ByPartition {
    kind: U16,
    _padding: [U16; 3],
    id: U32,
    flags: U16,
    event: U16,
    arg: U64,
}

impl Request {
    fn parse(bytes: [u8; REQUEST_BYTES]) -> Result<Self, Malformed> {
        let request: ByAddress = transmute!(bytes);
        let named = Named { addr: request.addr.get(), count: request.count.get() };
        match request.kind.get() {
            PLUG => Ok(Self::Plug(named)),
            UNPLUG => Ok(Self::Unplug(named)),
            UNPLUG_ALL => Ok(Self::UnplugAll),
            STATE => Ok(Self::State(named)),
            _ => {
                let request: ByPartition = transmute!(bytes);
                request.try_into()
            }
        }
    }

    /// Whether an ACK of it comes with a record.
    fn has_record(&self) -> bool {
        matches!(self, Self::PartPlug(_) | Self::PartQuery { .. })
    }
}

impl TryFrom<ByPartition> for Request {
    type Error = Malformed;

    fn try_from(request: ByPartition) -> Result<Self, Malformed> {
        let (id, flags, arg) =
            (PartitionId(request.id.get()), request.flags.get(), request.arg.get());
        match request.kind.get() {
            PART_PLUG => Ok(Self::PartPlug(id)),
            PART_RELEASE => Ok(Self::PartRelease(id)),
            PART_SHRINK => Ok(Self::PartShrink(id, Named { addr: arg, count: flags })),
            PART_QUERY => Ok(Self::PartQuery { from: id, pending: flags & PENDING != 0 }),
            PART_NOTIFY => Ok(Self::PartNotify(id, hint(request.event.get(), Size::new(arg))?)),
            unknown => Err(Malformed::UnknownType(unknown)),
        }
    }
}

/// What PART_NOTIFY says.
fn hint(event: u16, arg: Size) -> Result<Hint, Malformed> {
    match event {
        1 => Ok(Hint::Bound { used: arg }),
        2 => Ok(Hint::Draining { used: arg }),
        3 => Ok(Hint::Empty),
        4 => Ok(Hint::Spilled(arg)),
        5 => Ok(Hint::Stuck(arg)),
        6 => Ok(Hint::Used(arg)),
        unknown => Err(Malformed::UnknownEvent(unknown)),
    }
}
