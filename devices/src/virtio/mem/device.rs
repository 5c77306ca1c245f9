//! The memory device (virtio 1.3, 5.15), and what it offers.

use std::io;
use std::sync::Arc;

use memctl::{Layout, Mode, Partitioner};

use super::counters::Counters;
use super::event::Observer;
use super::handle::MemHandle;
use super::host::HostBlocks;
use super::shared::{Negotiated, Shared};
use super::worker::MemWorker;
use crate::virtio::device::{Activation, ConfigSpace, VirtioDevice};
use crate::virtio::worker::Worker;

/// VIRTIO_MEM_F_ACPI_PXM: `node_id` is valid.
const ACPI_PXM: u64 = 1 << 0;

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: the driver must not touch unplugged memory.
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// VIRTIO_MEM_F_PARTITION: the partition channel (docs/partition-channel.md).
const PARTITION: u64 = 1 << 56;

/// VIRTIO_MEM_F_PART_ZEROED: a partition reads as zero when it has been plugged, as
/// [`HostBlocks::open`] promises.
const PART_ZEROED: u64 = 1 << 57;

/// Linux has one request under way at a time.
const QUEUE_SIZE: u16 = 64;

/// The memory device.
pub struct Mem {
    shared: Arc<Shared>,
    features: u64,
}

impl Mem {
    /// A device for a region that is used as `layout` says, with nothing plugged and nothing asked
    /// for. It offers the partition channel if there may be partitions. `node` is the proximity
    /// domain of ACPI's SRAT, where the VM has several. `host` has all of the region closed.
    pub fn new(
        layout: Layout,
        node: Option<u16>,
        host: Box<dyn HostBlocks>,
        observer: Observer,
    ) -> Self {
        let numa = if node.is_some() { ACPI_PXM } else { 0 };
        let channel = if layout.max_partitions > 0 { PARTITION | PART_ZEROED } else { 0 };
        let shared = Shared::new(Partitioner::new(layout), node, host, observer);
        Self { shared: Arc::new(shared), features: UNPLUGGED_INACCESSIBLE | numa | channel }
    }

    /// For the machine and the API; stays good after the device has moved into its transport.
    pub fn handle(&self) -> MemHandle {
        MemHandle::new(Arc::clone(&self.shared))
    }

    /// The device's totals; stay good after the device has moved into its transport.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(self.shared.counters())
    }
}

impl VirtioDevice for Mem {
    fn device_id(&self) -> u16 {
        24
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.shared.config()
    }

    /// # Errors
    /// The driver has not accepted VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE (Linux before 5.16): it
    /// would read unplugged memory, which stops the VM.
    fn activate(&mut self, activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        if activation.features & UNPLUGGED_INACCESSIBLE == 0 {
            let text = "the driver would touch unplugged memory; it needs Linux 5.16 or later";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let accepts = |feature| activation.features & feature != 0;
        let mode = if accepts(PARTITION) { Mode::Channel } else { Mode::Plain };
        let negotiated = Negotiated { mode, node: accepts(ACPI_PXM) };
        let Activation { queues, interrupt, .. } = activation;
        let queue = queues.into_iter().flatten().next();
        let shared = || Arc::clone(&self.shared);
        let worker = queue.map(|queue| MemWorker::new(queue, interrupt, negotiated, shared()));
        Ok(worker.map(|worker| Box::new(worker) as Box<dyn Worker>).into_iter().collect())
    }
}
