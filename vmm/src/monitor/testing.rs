//! Stand-ins for tests of the monitor: a host that always can, a caller that nobody answers.

use std::io;
use std::ops::Range;

use devices::virtio::mem::HostBlocks;

use crate::api::{ApiError, Control, ErrorKind, Reply, Request};

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
pub(super) struct Nobody;

impl Control for Nobody {
    fn call(&self, _request: Request) -> Result<Reply, ApiError> {
        Err(ApiError::new(ErrorKind::Internal, "asked"))
    }
}
