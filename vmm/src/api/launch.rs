//! What the command line comes down to.

use super::config::VmConfig;
use super::descriptor::Endpoint;

/// Everything the monitor needs to start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Launch {
    /// Where to serve the API.
    pub api_socket: Option<Endpoint>,
    /// The VM to boot at once; `None` waits for `vm.create`. At least one of the two is there.
    pub config: Option<VmConfig>,
    /// Where to write events.
    pub event_monitor: Option<Endpoint>,
}
