//! Stand-ins for tests of the monitor: a host that always can, a caller that nobody answers, a VM
//! that does not boot.

use std::io;
use std::ops::Range;

use devices::virtio::mem::HostBlocks;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::api::config::VmConfig;
use crate::api::{ApiError, Control, ErrorKind, PartitionReply, Reply, Request};

/// Opens and frees whatever it is asked to.
pub(super) struct Host;

impl HostBlocks for Host {
    fn open(&mut self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn release(&mut self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }
}

/// Nobody to ask: an answer must be there already.
struct Nobody;

impl Control for Nobody {
    fn call(&self, _request: Request) -> Result<Reply, ApiError> {
        Err(ApiError::new(ErrorKind::Internal, "asked"))
    }
}

/// The partition of a removal whose answer is there, and came as one that is waited for.
pub(super) fn removed(removal: Result<Reply, ApiError>) -> PartitionReply {
    let Ok(Reply::Pending(pending)) = removal else { panic!("{removal:?}") };
    match pending.wait(&Nobody, &|| false) {
        Ok(Reply::Partition(gone)) => *gone,
        other => panic!("{other:?}"),
    }
}

/// The kernel of a VM that can be created; no machine can be made with it.
pub(super) struct VmFiles(NamedTempFile);

impl VmFiles {
    pub(super) fn new() -> Self {
        let kernel = NamedTempFile::new().unwrap();
        std::fs::write(&kernel, "not a kernel").unwrap();
        Self(kernel)
    }

    /// With two slots for partitions.
    pub(super) fn config(&self) -> VmConfig {
        let partitions = json!({"mode": "numa", "slots": 2, "slot_size": 256 << 20});
        let config = json!({
            "payload": {"kernel": self.0.path()},
            "memory": {"size": 128 << 20, "partitions": partitions},
            "console": {"mode": "Null"},
        });
        VmConfig::from_value(config).unwrap()
    }
}
