//! What the machine does to every device it holds, whatever the device is.

use std::io;

/// A device in the machine's table.
///
/// ```text
///             pause
///   running --------> paused
///           <--------
///             resume
/// ```
/// A machine that restarts drops its devices and makes new ones; there is no way back to power-on.
///
/// All methods are called on the machine's thread, one at a time, while vCPUs may still be inside
/// the device: they may wait for a device thread, never for a vCPU.
pub trait Lifecycle: Send + Sync {
    /// Stops all activity of the device's own. When it returns, the device touches neither guest
    /// memory nor its backend until [`Lifecycle::resume`]. Pausing twice is harmless.
    fn pause(&self) {}

    /// Goes on where [`Lifecycle::pause`] stopped. Resuming a running device is harmless.
    ///
    /// # Errors
    /// The host refused a thread or a descriptor.
    fn resume(&self) -> io::Result<()> {
        Ok(())
    }

    /// Counts since the device was made, by name, for `vm.counters`.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
