//! The block device (virtio 1.3, 5.2).

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk as spec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::backend::Image;
use super::counters::Counters;
use super::geometry::{Geometry, SECTOR};
use super::request::Rules;
use super::worker::{BlockWorker, Disk};
use crate::virtio::device::{Activation, ConfigSpace, VirtioDevice};
use crate::virtio::queue::VirtQueue;
use crate::virtio::worker::Worker;

/// The most one discard may cover: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = (1 << 30) / SECTOR as u32;

/// The most one write-zeroes may cover: 16 MiB, which even a host that has to write every zero
/// does quickly.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = (16 << 20) / SECTOR as u32;

/// The most buffers a driver is asked to put into one request. With [`MAX_SEGMENT_BYTES`], a
/// request is at most 254 MiB.
const MAX_SEGMENTS: u16 = 254;
const MAX_SEGMENT_BYTES: u32 = 1 << 20;

const ID_BYTES: usize = spec::VIRTIO_BLK_ID_BYTES as usize;

/// How a disk shows itself to the guest.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// What its threads are named after, cut to fit 15 bytes.
    pub name: String,
    /// Number of request queues, at least 1, each with a thread.
    pub queues: u16,
    /// Entries of each queue, a power of two.
    pub queue_size: u16,
    /// Serial number the guest can ask for, cut to 20 bytes; may be empty.
    pub serial: String,
}

/// The block device.
pub struct Block {
    image: Box<dyn Image>,
    name: String,
    queue_sizes: Vec<u16>,
    config: Arc<ConfigSpace>,
    id: [u8; ID_BYTES],
    counters: Arc<Counters>,
}

impl Block {
    /// A disk that shows the guest what is in `image`.
    pub fn new(image: Box<dyn Image>, options: BlockOptions) -> Self {
        let config = Config::new(&image.geometry(), &options);
        let mut id = [0; ID_BYTES];
        let serial = options.serial.as_bytes();
        let len = serial.len().min(ID_BYTES);
        id[..len].copy_from_slice(&serial[..len]);
        Self {
            image,
            name: options.name,
            queue_sizes: vec![options.queue_size; usize::from(options.queues)],
            config: Arc::new(ConfigSpace::new(config.as_bytes())),
            id,
            counters: Arc::default(),
        }
    }

    /// The disk's totals, which stay good after the device has moved into its transport.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The worker for `queue`, under the negotiated `features`.
    fn worker(&self, features: u64, queue: VirtQueue) -> io::Result<Box<dyn Worker>> {
        let negotiated = |bit: u32| features & (1 << bit) != 0;
        let depth = queue.size();
        let disk = Disk {
            rules: Rules {
                geometry: self.image.geometry(),
                discard: negotiated(spec::VIRTIO_BLK_F_DISCARD),
                write_zeroes: negotiated(spec::VIRTIO_BLK_F_WRITE_ZEROES),
            },
            write_through: !negotiated(spec::VIRTIO_BLK_F_FLUSH),
            id: self.id,
            counters: self.counters(),
        };
        let engine = self.image.engine(queue.memory(), depth)?;
        let name = thread_name(&self.name, queue.index());
        Ok(Box::new(BlockWorker::new(name, queue, depth, engine, disk)))
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        let always = [
            spec::VIRTIO_BLK_F_SIZE_MAX,
            spec::VIRTIO_BLK_F_SEG_MAX,
            spec::VIRTIO_BLK_F_BLK_SIZE,
            spec::VIRTIO_BLK_F_TOPOLOGY,
            spec::VIRTIO_BLK_F_FLUSH,
        ];
        let access: &[u32] = match self.image.geometry().readonly {
            true => &[spec::VIRTIO_BLK_F_RO],
            false => &[spec::VIRTIO_BLK_F_DISCARD, spec::VIRTIO_BLK_F_WRITE_ZEROES],
        };
        let queues: &[u32] =
            if self.queue_sizes.len() > 1 { &[spec::VIRTIO_BLK_F_MQ] } else { &[] };
        always.iter().chain(access).chain(queues).fold(0, |bits, bit| bits | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn activate(&mut self, activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        let queues = activation.queues.into_iter().flatten();
        queues.map(|queue| self.worker(activation.features, queue)).collect()
    }
}

/// `name` and the queue's number, in the 15 bytes that Linux keeps of a thread's name.
fn thread_name(name: &str, queue: u16) -> String {
    let suffix = format!("_q{queue}");
    let room = 15 - suffix.len();
    let end = (0..=room.min(name.len())).rev().find(|&end| name.is_char_boundary(end));
    format!("{}{suffix}", &name[..end.unwrap_or(0)])
}

/// `struct virtio_blk_config` (virtio 1.3, 5.2.4), as far as the features offered here go.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    /// Cylinders, heads, sectors: VIRTIO_BLK_F_GEOMETRY is not offered.
    geometry: [u8; 4],
    blk_size: U32,
    /// Logical blocks in a physical one, as a power of two.
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

impl Config {
    fn new(disk: &Geometry, options: &BlockOptions) -> Self {
        let blocks = disk.physical_block / disk.logical_block;
        // A chain also holds a header and a status.
        let segments = options.queue_size.saturating_sub(2).clamp(1, MAX_SEGMENTS);
        Self {
            capacity: disk.capacity.0.into(),
            size_max: MAX_SEGMENT_BYTES.into(),
            seg_max: u32::from(segments).into(),
            geometry: [0; 4],
            blk_size: disk.logical_block.into(),
            physical_block_exp: blocks.trailing_zeros() as u8,
            alignment_offset: 0,
            min_io_size: u16::try_from(blocks).unwrap_or(0).into(),
            opt_io_size: 0.into(),
            writeback: 0,
            unused0: 0,
            num_queues: options.queues.into(),
            max_discard_sectors: MAX_DISCARD_SECTORS.into(),
            max_discard_seg: 1.into(),
            discard_sector_alignment: (disk.physical_block / SECTOR as u32).into(),
            max_write_zeroes_sectors: MAX_WRITE_ZEROES_SECTORS.into(),
            max_write_zeroes_seg: 1.into(),
            write_zeroes_may_unmap: 1,
            unused1: [0; 3],
        }
    }
}
