//! The queue: takes requests one by one, has them carried out, answers.

use std::sync::Arc;

use memctl::Answer;

use super::record::Record;
use super::reply::Response;
use super::request::{Received, receive};
use super::shared::{Negotiated, Shared};
use crate::guest_memory::GuestMemory;
use crate::virtio::queue::{Chain, Interrupt, VirtQueue};
use crate::virtio::worker::{Worker, slice};

/// Serves the queue of one device on one thread.
pub(super) struct MemWorker {
    queue: VirtQueue,
    shared: Arc<Shared>,
    /// Of the last request that had one; kept for its room.
    record: Record,
}

impl MemWorker {
    /// Serves `queue`, whose driver has negotiated that; `interrupt` is for configuration changes,
    /// from now until the worker is dropped.
    pub(super) fn new(
        queue: VirtQueue,
        interrupt: Interrupt,
        negotiated: Negotiated,
        shared: Arc<Shared>,
    ) -> Self {
        shared.driver_up(interrupt, negotiated);
        Self { queue, shared, record: Record::new() }
    }
}

impl Drop for MemWorker {
    fn drop(&mut self) {
        self.shared.driver_gone();
    }
}

impl Worker for MemWorker {
    fn name(&self) -> String {
        "virtio-mem".into()
    }

    fn queues(&self) -> Vec<&VirtQueue> {
        vec![&self.queue]
    }

    fn queue_ready(&mut self, _position: usize) {
        let Self { queue, shared, record } = self;
        let memory = Arc::clone(queue.memory());
        let serve = |chain| Some(serve(shared, chain, &memory, record));
        queue.serve(slice(), serve);
        // Memory that is back is the host's business first: an interrupt may take the CPU away.
        shared.report();
        queue.notify();
    }
}

/// Serves one chain and returns the bytes written to it.
fn serve(shared: &Shared, chain: Chain, memory: &GuestMemory, record: &mut Record) -> u32 {
    let Received { reply, request } = receive(chain, memory);
    shared.counters().received(&request);
    let response: Response = match request {
        Ok(request) => shared.serve(request, record),
        Err(why) => {
            shared.malformed(why);
            Answer::Error.into()
        }
    };
    shared.counters().answered(reply.is_some().then_some(response.answer));
    reply.map_or(0, |reply| reply.send(memory, response, record))
}
