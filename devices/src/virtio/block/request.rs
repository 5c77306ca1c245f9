//! From a chain of descriptors to a typed request (virtio 1.3, 5.2.6).
//!
//! A request is a 16-byte header and data that the device reads, then data and one status byte
//! that it writes. The driver may cut this into descriptors anywhere (2.7.4.3). Nothing in here
//! has an effect on the disk.

use virtio_bindings::virtio_blk as spec;
use vm_memory::{Bytes, GuestAddress};

use super::backend::Operation;
use super::buffers::Buffers;
use super::device::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS};
use super::geometry::{DiskRange, Geometry, SECTOR, Sectors};
use crate::guest_memory::GuestMemory;
use crate::virtio::queue::Chain;

/// The most descriptors a chain may have: well above what SEG_MAX allows, so that odd framing
/// passes, and low enough that a ring full of requests takes little memory.
const MAX_DESCRIPTORS: usize = 1024;

const HEADER_BYTES: u32 = 16;
const RANGE_BYTES: u64 = 16;

/// The status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// Done.
    Ok = spec::VIRTIO_BLK_S_OK as u8,
    /// Failed, or asked for what can't be.
    IoError = spec::VIRTIO_BLK_S_IOERR as u8,
    /// The device knows no such request.
    Unsupported = spec::VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a well-formed request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// The image has to do it.
    Disk(Operation),
    /// Put the disk's serial number into these buffers.
    Identify(Buffers),
}

/// A chain, taken apart.
#[derive(Debug)]
pub(super) struct Received {
    /// How to answer; `None` when the chain has no place for a status byte.
    pub(super) reply: Option<Reply>,
    /// What is asked, or the status that refuses it.
    pub(super) request: Result<Request, Status>,
}

/// Where the answer to a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// The status byte: the last one that the device may write.
    status: GuestAddress,
    /// Number of device-writable bytes before it.
    data: u32,
}

impl Reply {
    /// Writes the status byte, after the first `written` data bytes, and returns the used length
    /// (virtio 1.3, 2.7.8): what was written without a gap from the first writable byte on.
    pub(super) fn send(self, memory: &GuestMemory, status: Status, written: u64) -> u32 {
        // Without a status byte, as where its memory was unplugged, there is nothing to add.
        let sent = memory.write_obj(status as u8, self.status).is_ok();
        match u32::try_from(written) {
            Ok(written) if written < self.data => written,
            _ => self.data.saturating_add(u32::from(sent)),
        }
    }
}

/// What a driver may ask of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// The disk.
    pub(super) geometry: Geometry,
    /// VIRTIO_BLK_F_DISCARD was negotiated.
    pub(super) discard: bool,
    /// VIRTIO_BLK_F_WRITE_ZEROES was negotiated.
    pub(super) write_zeroes: bool,
}

/// Takes `chain` apart and checks all it claims against `rules`.
pub(super) fn receive(mut chain: Chain, rules: &Rules) -> Received {
    let Some(frame) = Frame::new(&mut chain) else {
        return Received { reply: None, request: Err(Status::IoError) };
    };
    let request = match frame.ordered {
        true => rules.parse(chain.memory(), frame.readable, frame.writable),
        false => Err(Status::IoError),
    };
    Received { reply: frame.reply, request }
}

/// A chain's buffers, by who writes them, and the status byte set aside.
struct Frame {
    readable: Buffers,
    writable: Buffers,
    reply: Option<Reply>,
    /// What the device reads comes before what it writes (virtio 1.3, 2.7.4.2).
    ordered: bool,
}

impl Frame {
    /// `None` when the chain breaks off before its end, so that nobody knows its last byte.
    fn new(chain: &mut Chain) -> Option<Self> {
        let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
        let (mut ordered, mut complete) = (true, false);
        for descriptor in chain.take(MAX_DESCRIPTORS) {
            complete = !descriptor.has_next();
            if descriptor.is_write_only() {
                writable.push(descriptor.addr(), descriptor.len())?;
            } else {
                ordered &= writable.is_empty();
                readable.push(descriptor.addr(), descriptor.len())?;
            }
        }
        let reply = writable.split_last_byte().map(|status| Reply {
            status,
            data: u32::try_from(writable.len()).unwrap_or(u32::MAX),
        });
        complete.then_some(Self { readable, writable, reply, ordered })
    }
}

impl Rules {
    fn parse(
        &self,
        memory: &GuestMemory,
        mut readable: Buffers,
        writable: Buffers,
    ) -> Result<Request, Status> {
        let header = readable.split_front(HEADER_BYTES).and_then(|front| front.read(memory));
        let (kind, first) = parse_header(header.ok_or(Status::IoError)?);
        let operation = match kind {
            spec::VIRTIO_BLK_T_IN => {
                Operation::Read { range: self.transfer(first, &writable)?, into: writable }
            }
            spec::VIRTIO_BLK_T_OUT => {
                self.check_writable()?;
                Operation::Write { range: self.transfer(first, &readable)?, from: readable }
            }
            spec::VIRTIO_BLK_T_FLUSH => Operation::Flush,
            spec::VIRTIO_BLK_T_GET_ID => return Ok(Request::Identify(writable)),
            spec::VIRTIO_BLK_T_DISCARD => {
                self.check_writable()?;
                supported(self.discard)?;
                let (range, flags) = self.range(memory, &readable, MAX_DISCARD_SECTORS)?;
                supported(flags == 0)?;
                Operation::Discard(range)
            }
            spec::VIRTIO_BLK_T_WRITE_ZEROES => {
                self.check_writable()?;
                supported(self.write_zeroes)?;
                let (range, flags) = self.range(memory, &readable, MAX_WRITE_ZEROES_SECTORS)?;
                supported(flags & !UNMAP == 0)?;
                Operation::WriteZeroes { range, may_unmap: flags & UNMAP != 0 }
            }
            _ => return Err(Status::Unsupported),
        };
        Ok(Request::Disk(operation))
    }

    /// The range that a read or write of `data` covers.
    fn transfer(&self, first: Sectors, data: &Buffers) -> Result<DiskRange, Status> {
        DiskRange::checked(&self.geometry, first, data.len(), self.geometry.transfer_alignment)
            .ok_or(Status::IoError)
    }

    /// The range and the flags in the payload of a discard or write-zeroes request, which is one
    /// segment, of at most `limit` sectors.
    fn range(
        &self,
        memory: &GuestMemory,
        payload: &Buffers,
        limit: u32,
    ) -> Result<(DiskRange, u32), Status> {
        if payload.len() != RANGE_BYTES {
            return Err(Status::IoError);
        }
        let (first, sectors, flags) = parse_range(payload.read(memory).ok_or(Status::IoError)?);
        let len = u64::from(sectors) * SECTOR;
        let range = DiskRange::checked(&self.geometry, first, len, self.geometry.logical_block);
        match range {
            Some(range) if sectors <= limit => Ok((range, flags)),
            _ => Err(Status::IoError),
        }
    }

    fn check_writable(&self) -> Result<(), Status> {
        if self.geometry.readonly { Err(Status::IoError) } else { Ok(()) }
    }
}

const UNMAP: u32 = spec::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

fn supported(yes: bool) -> Result<(), Status> {
    if yes { Ok(()) } else { Err(Status::Unsupported) }
}

/// `struct virtio_blk_req` without its data: the type, a field without meaning, the sector.
fn parse_header(bytes: [u8; HEADER_BYTES as usize]) -> (u32, Sectors) {
    let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
    (u32::from_le_bytes([a, b, c, d]), Sectors(u64::from_le_bytes(sector)))
}

/// `struct virtio_blk_discard_write_zeroes`: the first sector, their number, the flags.
fn parse_range(bytes: [u8; RANGE_BYTES as usize]) -> (Sectors, u32, u32) {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
    let first = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    (Sectors(first), u32::from_le_bytes([n0, n1, n2, n3]), u32::from_le_bytes(flags))
}
