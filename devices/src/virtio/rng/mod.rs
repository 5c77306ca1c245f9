//! virtio-rng (virtio 1.3, 5.4): entropy from a file of the host.

mod device;

pub use device::{MAX_CHAIN_BYTES, Rng};
