//! What a client can ask for, and who carries it out.

use super::config::VmConfig;
use super::reply::{ApiError, Reply};

/// One call of the API, parsed and typed. The state it is allowed in is the machine's affair.
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
    /// `PUT vmm.shutdown`: end this process.
    VmmShutdown,
}

/// Carries out requests. Implemented by the monitor, called by the API's connection threads,
/// several at a time.
pub trait Control: Send + Sync + 'static {
    /// Carries out `request` and returns when it is done.
    ///
    /// # Errors
    /// An [`ApiError`] whose kind becomes the HTTP status.
    fn call(&self, request: Request) -> Result<Reply, ApiError>;
}
