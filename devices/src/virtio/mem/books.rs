//! A guest's request, from its numbers to the books: check, have the host do its part, book.

use std::time::Instant;

use memctl::{
    Answer, BlockRange, Blocks, Bytes, Partitioner, PlugState, RangeError, Refusal, Watch,
};

use super::counters::Counters;
use super::host::{Action, Carrier, CarryError};
use super::request::{Named, Request, Response};

/// Who has which block, and the host that makes it so. Guarded by the device's lock.
pub(super) struct Books {
    pub(super) partitioner: Partitioner,
    carrier: Carrier,
}

/// Why a request was not carried out. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A guest's mistake, or a race with the host.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host's part failed.
    #[error(transparent)]
    Host(#[from] CarryError),
}

impl From<RangeError> for Failure {
    fn from(error: RangeError) -> Self {
        Self::Refused(error.into())
    }
}

impl Failure {
    /// What the guest is told. A failure of the host's is never ACK or ERROR.
    pub(super) fn answer(&self) -> Answer {
        match self {
            Self::Refused(refusal) => refusal.answer(),
            Self::Host(_) => Answer::Busy,
        }
    }
}

impl Books {
    pub(super) fn new(partitioner: Partitioner, carrier: Carrier) -> Self {
        Self { partitioner, carrier }
    }

    /// Carries `request` out. Costs the words of its range and one host call per run of blocks.
    ///
    /// # Errors
    /// [`Failure`]; nothing has changed.
    pub(super) fn carry_out(
        &mut self,
        request: Request,
        counters: &Counters,
        watch: &mut Watch<'_>,
    ) -> Result<Response, Failure> {
        match request {
            Request::Plug(named) => self.plug(named, counters, watch)?,
            Request::Unplug(named) => {
                let range = self.range(named)?;
                self.unplug(Some(range), counters, watch)?;
            }
            Request::UnplugAll => self.unplug(None, counters, watch)?,
            Request::State(named) => return self.state(named),
        }
        Ok(Answer::Ack.into())
    }

    fn plug(
        &mut self,
        named: Named,
        counters: &Counters,
        watch: &mut Watch<'_>,
    ) -> Result<(), Failure> {
        let range = self.range(named)?;
        let plan = self.partitioner.plan_plug(range)?;
        let start = Instant::now();
        let carried = self.carrier.carry(Action::Open, || plan.runs());
        counters.opening.took(start.elapsed());
        carried?;
        let blocks = plan.blocks();
        plan.commit(watch);
        counters.plugged(self.bytes(blocks));
        Ok(())
    }

    /// Of `range`, or of everything.
    fn unplug(
        &mut self,
        range: Option<BlockRange>,
        counters: &Counters,
        watch: &mut Watch<'_>,
    ) -> Result<(), Failure> {
        let plan = match range {
            Some(range) => self.partitioner.plan_unplug(range)?,
            None => self.partitioner.plan_unplug_all(),
        };
        let start = Instant::now();
        let carried = self.carrier.carry(Action::Release, || plan.runs());
        counters.releasing.took(start.elapsed());
        carried?;
        let blocks = plan.blocks();
        plan.commit(watch);
        counters.unplugged(self.bytes(blocks));
        Ok(())
    }

    fn state(&self, named: Named) -> Result<Response, Failure> {
        let state: PlugState = self.partitioner.state(&self.range(named)?)?;
        Ok(Response { answer: Answer::Ack, state: Some(state) })
    }

    fn range(&self, named: Named) -> Result<BlockRange, RangeError> {
        BlockRange::checked(self.partitioner.geometry(), named.addr, named.count.into())
    }

    fn bytes(&self, blocks: Blocks) -> Bytes {
        self.partitioner.geometry().bytes(blocks)
    }
}
