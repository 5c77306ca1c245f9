//! The ways to get a function's memory back that are compared.

use crate::elastic::{Guest, MIB, Monitor};
use serde_json::json;

/// A way to give memory to functions and to get it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Way {
    /// A partition for each, with our guest kernel.
    Partition,
    /// Plain virtio-mem.
    Stock,
    /// Plain virtio-mem in a guest that clears pages when it allocates them, as many
    /// distributions' kernels do.
    StockClearing,
    /// Plain virtio-mem, QEMU's.
    Qemu,
    /// QEMU's balloon.
    Balloon,
}

impl Way {
    /// All, ours first.
    pub const ALL: [Self; 5] =
        [Self::Partition, Self::Stock, Self::StockClearing, Self::Qemu, Self::Balloon];

    /// What tables and figures call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Partition => "Tessera, partitions",
            Self::Stock => "Tessera, stock virtio-mem",
            Self::StockClearing => "the same, init_on_alloc=1",
            Self::Qemu => "QEMU, stock virtio-mem",
            Self::Balloon => "QEMU, balloon",
        }
    }

    /// The program that runs its guest.
    pub fn monitor(self) -> Monitor {
        match self {
            Self::Partition | Self::Stock | Self::StockClearing => Monitor::Tessera,
            Self::Qemu | Self::Balloon => Monitor::Qemu,
        }
    }

    /// The guest with room for functions that have `total` bytes together.
    pub fn guest(self, base: &Guest, total: u64) -> Guest {
        let mut guest = Guest { room: total, ..base.clone() };
        match self {
            Self::Stock | Self::Qemu => {}
            Self::StockClearing => guest.cmdline += " init_on_alloc=1",
            Self::Partition => {
                guest.room = 128 * MIB;
                guest.memory = json!({ "partitions": { "size": total, "prepare": total } });
            }
            Self::Balloon => {
                guest.room = 128 * MIB;
                guest.boot += total;
                guest.balloon = true;
            }
        }
        guest
    }
}
