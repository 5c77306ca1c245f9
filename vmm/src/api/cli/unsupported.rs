//! Options of Cloud Hypervisor's that this version does not have.

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// As written.
const OPTIONS: &[&str] = &[
    "--balloon",
    "--dbus-object-path",
    "--dbus-service-name",
    "--dbus-system-bus",
    "--debug-console",
    "--device",
    "--firmware",
    "--fs",
    "--fw-cfg-config",
    "--gdb",
    "--generic-vhost-user",
    "--host-data",
    "--igvm",
    "--ivshmem",
    "--landlock",
    "--landlock-rules",
    "--log-format",
    "--net",
    "--no-shutdown",
    "--pci-segment",
    "--pmem",
    "--pvmemcontrol",
    "--pvpanic",
    "--rate-limit-group",
    "--restore",
    "--rtc",
    "--tpm",
    "--user-device",
    "--vdpa",
    "--vsock",
    "--watchdog",
];

/// `error`, or a better one where clap met an unknown option that is one of these.
pub(super) fn named(error: Error) -> Error {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) if OPTIONS.contains(&option.as_str()) => {
            let text = format!("{option} is not supported yet; leave it out\n");
            Error::raw(ErrorKind::UnknownArgument, text)
        }
        _ => error,
    }
}
