//! The queue: takes requests one by one, has them carried out, answers.

use std::sync::Arc;

use memctl::Answer;

use super::event::MemEvent;
use super::request::{Received, Response, receive};
use super::shared::Shared;
use crate::guest_memory::GuestMemory;
use crate::virtio::queue::{Chain, Interrupt, VirtQueue};
use crate::virtio::worker::Worker;

/// Serves the queue of one device on one thread.
pub(super) struct MemWorker {
    queue: VirtQueue,
    shared: Arc<Shared>,
    /// Kept empty between wake-ups, for its room.
    events: Vec<MemEvent>,
}

impl MemWorker {
    /// Serves `queue`; `interrupt` is for configuration changes, from now until the worker is
    /// dropped.
    pub(super) fn new(queue: VirtQueue, interrupt: Interrupt, shared: Arc<Shared>) -> Self {
        shared.set_interrupt(Some(interrupt));
        Self { queue, shared, events: Vec::new() }
    }
}

/// The driver is gone, and no interrupt is due until the next one is up.
impl Drop for MemWorker {
    fn drop(&mut self) {
        self.shared.set_interrupt(None);
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
        let Self { queue, shared, events } = self;
        let memory = Arc::clone(queue.memory());
        queue.drain(|chain| Some(serve(shared, chain, &memory, events)));
        shared.report(events);
    }
}

/// Serves one chain and returns the bytes written to it.
fn serve(shared: &Shared, chain: Chain, memory: &GuestMemory, events: &mut Vec<MemEvent>) -> u32 {
    let Received { reply, request } = receive(chain, memory);
    shared.counters().received(&request);
    let response: Response = match request {
        Ok(request) => shared.serve(request, events),
        Err(why) => {
            shared.malformed(why);
            Answer::Error.into()
        }
    };
    shared.counters().answered(reply.is_some().then_some(response.answer));
    reply.map_or(0, |reply| reply.send(memory, response))
}
