//! virtio-console (virtio 1.3, 5.3): one port with a size, no multiport, no emergency write.

mod device;
mod worker;

pub use device::{Console, ConsoleHandle, WindowSize};
