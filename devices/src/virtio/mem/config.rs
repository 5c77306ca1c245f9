//! The configuration space of virtio 1.3, 5.15.4, and of docs/partition-channel.md after it.

use memctl::{PartitionId, Partitioner};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// `struct virtio_mem_config`, with the fields of the partition channel.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Config {
    block_size: U64,
    /// Without VIRTIO_MEM_F_ACPI_PXM it has no meaning.
    node_id: U16,
    padding: [u8; 6],
    addr: U64,
    region_size: U64,
    variable: Variable,
}

/// The part that changes while the VM runs (`part_max` alone does not): written at once, so that the
/// driver never sees a usable size below the requested one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Variable {
    usable_region_size: U64,
    plugged_size: U64,
    requested_size: U64,
    part_max: U32,
    part_gen: U32,
    part_prepare: U64,
    /// 0 is no partition's number.
    part_back: U32,
    reserved: U32,
}

impl Variable {
    /// Its place in the configuration space.
    pub(super) const OFFSET: usize = std::mem::offset_of!(Config, variable);

    /// The sizes as the books have them.
    pub(super) fn of(partitioner: &Partitioner) -> Self {
        Self {
            usable_region_size: partitioner.usable_size().as_u64().into(),
            plugged_size: partitioner.plugged_size().as_u64().into(),
            requested_size: partitioner.requested_size().as_u64().into(),
            part_max: partitioner.layout().max_partitions.into(),
            part_gen: partitioner.generation().into(),
            part_prepare: partitioner.prepared_size().as_u64().into(),
            part_back: partitioner.wanted_back().unwrap_or(PartitionId::NONE).0.into(),
            reserved: U32::ZERO,
        }
    }

    /// Whether the step from `before` calls for a configuration interrupt: `plugged_size` changes
    /// without one (virtio 1.3, 5.15.6).
    pub(super) fn interrupts_after(&self, before: &Self) -> bool {
        let wishes =
            |sizes: &Self| (sizes.usable_region_size, sizes.requested_size, sizes.part_gen);
        wishes(self) != wishes(before)
    }
}

impl Config {
    /// Where the fields of virtio 1.3 end.
    const PLAIN_BYTES: usize = std::mem::offset_of!(Config, variable.part_max);

    /// The whole space for the region of `partitioner`, on NUMA node `node`.
    pub(super) fn new(partitioner: &Partitioner, node: Option<u16>) -> Self {
        let geometry = partitioner.geometry();
        Self {
            block_size: geometry.block_size().as_u64().into(),
            node_id: node.unwrap_or(0).into(),
            padding: [0; 6],
            addr: geometry.addr().into(),
            region_size: geometry.size().as_u64().into(),
            variable: Variable::of(partitioner),
        }
    }

    /// The bytes that the driver sees; without partitions, those of virtio 1.3 alone.
    pub(super) fn visible(&self, partitions: bool) -> &[u8] {
        let bytes = self.as_bytes();
        if partitions { bytes } else { &bytes[..Self::PLAIN_BYTES] }
    }
}
