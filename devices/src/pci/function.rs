//! What sits in a slot of the root bus.

use std::sync::Mutex;

use super::config::Configuration;
use crate::sync::lock;

/// A function on the root bus. Called on vCPU threads, several at a time.
///
/// The lock of [`PciFunction::config`] is a leaf: nobody calls out of a function while holding it.
pub trait PciFunction: Send + Sync {
    /// Its configuration registers. The root places BARs through them, and looks at them after
    /// each configuration write to see whether a BAR moved.
    fn config(&self) -> &Mutex<Configuration>;

    /// The guest reads configuration registers. What does not exist leaves `data` as it is.
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        lock(self.config()).read(offset, data);
    }

    /// The guest writes configuration registers.
    fn config_write(&self, offset: usize, data: &[u8]) {
        lock(self.config()).write(offset, data);
    }

    /// The guest reads `data.len()` bytes at `offset` in the BAR whose first register is `bar`.
    /// The whole access lies inside the BAR.
    fn bar_read(&self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    /// The guest writes `data` at `offset` in the BAR whose first register is `bar`. The whole
    /// access lies inside the BAR.
    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    /// `bar` now answers at `address`, or nowhere. Called one at a time and only on changes; a BAR
    /// that moves is first told `None`.
    fn bar_moved(&self, _bar: u8, _address: Option<u64>) {}
}
