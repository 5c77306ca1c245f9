//! The ways to get a function's memory back that are compared.

use guest_tests::MIB;
use serde_json::json;

use crate::elastic::{Guest, Monitor};
use crate::scene::Functions;

/// Room for more functions than those that end.
const SPARE: u64 = 256 * MIB;

/// A way to give memory to functions and to get it back; ours comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Way {
    /// A partition for each, with our guest kernel.
    Partition,
    /// A NUMA node for each: partitions for a guest without the channel.
    Node,
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
    /// What tables and figures call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Partition => "Tessera, partitions",
            Self::Node => "Tessera, a NUMA node each",
            Self::Stock => "Tessera, stock virtio-mem",
            Self::StockClearing => "the same, init_on_alloc=1",
            Self::Qemu => "QEMU, stock virtio-mem",
            Self::Balloon => "QEMU, balloon",
        }
    }

    /// The program that runs its guest.
    pub fn monitor(self) -> Monitor {
        match self {
            Self::Partition | Self::Node | Self::Stock | Self::StockClearing => Monitor::Tessera,
            Self::Qemu | Self::Balloon => Monitor::Qemu,
        }
    }

    /// The guest with room for `functions` and a few more.
    pub fn guest(self, base: &Guest, functions: &Functions) -> Guest {
        let total = functions.total() + SPARE;
        let mut guest = Guest { room: total, ..base.clone() };
        match self {
            Self::Stock | Self::Qemu => {}
            Self::StockClearing => guest.cmdline += " init_on_alloc=1",
            Self::Partition => {
                guest.room = 128 * MIB;
                guest.memory = json!({ "partitions": { "size": total, "prepare": total } });
            }
            Self::Node => {
                guest.room = 128 * MIB;
                let (slots, slot_size) = (functions.count, functions.size);
                guest.memory = json!({
                    "partitions": { "mode": "numa", "slots": slots, "slot_size": slot_size }
                });
            }
            Self::Balloon => {
                guest.room = 128 * MIB;
                guest.boot += total;
                guest.balloon = true;
            }
        }
        if functions.kept_pages {
            guest.memory["hugepages"] = json!(true);
        }
        guest
    }
}
