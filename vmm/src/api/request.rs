//! What a client can ask for, and who carries it out.

use std::time::Duration;

use memctl::{Bytes, Cookie, PartitionName, Policy};

use super::config::VmConfig;
use super::reply::{ApiError, Reply};

/// One call of the API, parsed and typed. The state it is allowed in is the machine's affair.
///
/// In the JSON, sizes are bytes. What comes and goes is whole *blocks* of 2 MiB, or of the size of
/// the huge pages that the guest's memory is made of; `vm.info` has it as `block_size` of each
/// memory device. A size that is no whole multiple is refused. The name of a partition, `id`, is
/// 1 to 64 ASCII letters, digits, dots, dashes and underscores.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// `GET vmm.ping`: is anyone there?
    Ping,
    /// `PUT vm.create`: take over this configuration.
    Create(Box<VmConfig>),
    /// `PUT vm.delete`: forget the VM.
    Delete,
    /// `PUT vm.boot`: start it.
    Boot,
    /// `GET vm.info`: configuration, state, device tree.
    Info,
    /// `GET vm.counters`: what the devices counted.
    Counters,
    /// `PUT vm.pause`: stop the vCPUs.
    Pause,
    /// `PUT vm.resume`: let them go on.
    Resume,
    /// `PUT vm.shutdown`: stop the VM at once and keep its configuration.
    Shutdown,
    /// `PUT vm.reboot`: shut it down and boot it again.
    Reboot,
    /// `PUT vm.power-button`: tell the guest that the button was pressed.
    PowerButton,
    /// `PUT vm.nmi`: send the guest a non-maskable interrupt.
    Nmi,
    /// `PUT vm.resize`: give the guest another amount of memory. Nothing to do when it has it.
    Resize {
        /// RAM the guest booted with and shared memory plugged since, without partitions. What was
        /// plugged since is whole blocks.
        desired_ram: Bytes,
    },
    /// `PUT vm.resize-zone`: give one zone another amount of memory.
    ResizeZone {
        /// Its identifier.
        id: String,
        /// RAM it booted with and memory plugged since, which is whole blocks.
        desired_ram: Bytes,
    },
    /// `GET vm.partitions`: all of them.
    Partitions,
    /// `PUT vm.add-partition`: reserve memory for an instance and offer it to the guest.
    AddPartition {
        /// Its name.
        id: PartitionName,
        /// How much: at least one block. Checked neither for whole blocks nor for zero yet.
        size: Bytes,
        /// What the host does with it. In a slot, [`Policy::keep`] is always so and
        /// [`Policy::prefault`] is refused.
        policy: Policy,
        /// What the guest shows its userspace.
        cookie: Cookie,
    },
    /// `PUT vm.remove-partition`: have the guest give one back. Asking again changes nothing.
    RemovePartition {
        /// Its name.
        id: PartitionName,
        /// How long to wait for the guest, at most a minute. [`Duration::ZERO`] is answered at
        /// once, and never with [`Reply::Pending`].
        timeout: Duration,
        /// Whether the guest is to move what is in use elsewhere. Out of a slot it always does.
        evacuate: bool,
    },
    /// What has come of a removal that a client has waited for as long as it wanted. Changes nothing,
    /// and is no call of the API.
    RemovalOutcome {
        /// Its name.
        id: PartitionName,
    },
    /// `PUT vm.resize-partition`: give one another size. Nothing to do when it has it.
    ResizePartition {
        /// Its name.
        id: PartitionName,
        /// How much: at least one block. Checked neither for whole blocks nor for zero yet.
        size: Bytes,
    },
    /// `PUT vmm.shutdown`: end this process.
    VmmShutdown,
}

/// Carries out requests. Implemented by the monitor, called by the API's connection threads,
/// several at a time.
pub trait Control: Send + Sync + 'static {
    /// Carries out `request` and returns when it is done, or [`Reply::Pending`].
    ///
    /// # Errors
    /// An [`ApiError`] whose kind becomes the HTTP status.
    fn call(&self, request: Request) -> Result<Reply, ApiError>;
}
