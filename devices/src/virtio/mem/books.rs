//! A guest's request, from its numbers to the books: check, have the host do its part, book.

use std::time::Instant;

use memctl::{
    Answer, BlockRange, Bytes, Partition, PartitionId, Partitioner, Plug, RangeError, Refusal,
    Unplug, Watch,
};

use super::counters::Counters;
use super::host::{Action, Carrier, CarryError};
use super::record::Record;
use super::reply::{Detail, Response};
use super::request::{Named, Request};

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

/// What a request leaves behind, beside the change itself and its answer.
pub(super) struct Traces<'a> {
    pub(super) counters: &'a Counters,
    /// Filled in where the answer says so.
    pub(super) record: &'a mut Record,
    pub(super) watch: &'a mut Watch<'a>,
}

impl Books {
    pub(super) fn new(partitioner: Partitioner, carrier: Carrier) -> Self {
        Self { partitioner, carrier }
    }

    /// Carries `request` out. Costs the words of its range, or of its partition's extents, and one
    /// host call per run of blocks.
    ///
    /// # Errors
    /// [`Failure`]; nothing has changed.
    pub(super) fn carry_out(
        &mut self,
        request: Request,
        traces: &mut Traces<'_>,
    ) -> Result<Response, Failure> {
        match request {
            Request::Plug(named) => {
                let range = self.range(named)?;
                let plan = self.partitioner.plan_plug(range)?;
                open(&mut self.carrier, plan, Action::Open, traces)?;
            }
            Request::Unplug(named) => {
                let range = self.range(named)?;
                let plan = self.partitioner.plan_unplug(range)?;
                free(&mut self.carrier, plan, traces)?;
            }
            Request::UnplugAll => {
                free(&mut self.carrier, self.partitioner.plan_unplug_all(), traces)?;
            }
            Request::State(named) => {
                let state = self.partitioner.state(&self.range(named)?)?;
                return Ok(Response { answer: Answer::Ack, detail: Detail::State(state) });
            }
            Request::PartPlug(id) => return self.plug_partition(id, traces),
            Request::PartRelease(id) => {
                let plan = self.partitioner.plan_release(id)?;
                let size = free(&mut self.carrier, plan, traces)?;
                traces.counters.released(size);
            }
            Request::PartShrink(id, named) => {
                let range = self.range(named)?;
                let plan = self.partitioner.plan_shrink(id, range)?;
                free(&mut self.carrier, plan, traces)?;
            }
            Request::PartQuery { from, pending } => {
                return self.query(from, pending, traces.record);
            }
            Request::PartNotify(id, hint) => self.partitioner.hint(id, hint, traces.watch)?,
        }
        Ok(Answer::Ack.into())
    }

    fn plug_partition(
        &mut self,
        id: PartitionId,
        traces: &mut Traces<'_>,
    ) -> Result<Response, Failure> {
        let geometry = *self.partitioner.geometry();
        let prefault = self.partitioner.partition(id).is_some_and(|one| one.policy().prefault);
        let action = if prefault { Action::OpenPopulated } else { Action::Open };
        let plan = self.partitioner.plan_plug_partition(id)?;
        traces.record.set_runs(&geometry, plan.runs())?;
        open(&mut self.carrier, plan, action, traces)?;
        Ok(self.described(self.partitioner.partition(id), traces.record))
    }

    fn query(
        &self,
        from: PartitionId,
        pending: bool,
        record: &mut Record,
    ) -> Result<Response, Failure> {
        let found = self.partitioner.query(from, pending)?;
        if let Some(partition) = found {
            record.set_runs(self.partitioner.geometry(), self.partitioner.runs_of(partition))?;
        }
        Ok(self.described(found, record))
    }

    /// ACK with the record of `partition`, whose runs it has already; NACK when there is none.
    fn described(&self, partition: Option<&Partition>, record: &mut Record) -> Response {
        let Some(partition) = partition else { return Answer::Nack.into() };
        record.describe(self.partitioner.geometry(), partition);
        Response { answer: Answer::Ack, detail: Detail::Record }
    }

    fn range(&self, named: Named) -> Result<BlockRange, RangeError> {
        BlockRange::checked(self.partitioner.geometry(), named.addr, named.count.into())
    }
}

/// Has the host open what is planned, and books it.
fn open(
    carrier: &mut Carrier,
    plan: Plug<'_>,
    action: Action,
    traces: &mut Traces<'_>,
) -> Result<(), CarryError> {
    let start = Instant::now();
    let carried = carrier.carry(action, || plan.runs());
    traces.counters.opening.took(start.elapsed());
    carried?;
    traces.counters.plugged(carrier.geometry().bytes(plan.blocks()));
    plan.commit(traces.watch);
    Ok(())
}

/// Has the host close and free what is planned, books it, and returns how much it was.
fn free(
    carrier: &mut Carrier,
    plan: Unplug<'_>,
    traces: &mut Traces<'_>,
) -> Result<Bytes, CarryError> {
    let start = Instant::now();
    let carried = carrier.carry(Action::Release, || plan.runs());
    let took = start.elapsed();
    traces.counters.releasing.took(took);
    carried?;
    let size = carrier.geometry().bytes(plan.blocks());
    traces.counters.unplugged(size);
    plan.took(took).commit(traces.watch);
    Ok(size)
}
