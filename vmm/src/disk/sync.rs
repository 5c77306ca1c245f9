//! The engine without io_uring: each operation is finished as it is pushed.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use devices::guest_memory::GuestMemory;
use devices::virtio::block::{Completion, Engine, Operation};

use super::file::DiskFile;
use super::job::Job;

/// See the module.
pub(super) struct Blocking {
    file: Arc<DiskFile>,
    memory: Arc<GuestMemory>,
    done: Vec<Completion>,
}

impl Blocking {
    /// An engine between `file` and `memory`.
    pub(super) fn new(file: Arc<DiskFile>, memory: Arc<GuestMemory>) -> Self {
        Self { file, memory, done: Vec::new() }
    }

    fn run(&self, operation: Operation) -> io::Result<()> {
        self.file.finish(&mut Job::new(operation, &self.memory)?)
    }
}

impl Engine for Blocking {
    fn push(&mut self, token: u16, operation: Operation) {
        let result = self.run(operation);
        self.done.push(Completion { token, result });
    }

    fn submit(&mut self) {}

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn wait(&mut self) {}

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
