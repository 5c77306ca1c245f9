//! What the partition channel tells the driver of one partition (docs/partition-channel.md).

use memctl::{BlockRange, Geometry, Partition, Refusal};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// It is to stay plugged when it is empty.
const KEEP: u32 = 1 << 0;

/// It is to be emptied when it is to be given back.
const EVACUATE: u32 = 1 << 1;

/// All but the runs.
#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    id: U32,
    flags: U32,
    cookie: U64,
    size: U64,
    plugged: U64,
    nr_runs: U32,
    reserved: U32,
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Run {
    addr: U64,
    size: U64,
}

/// The record of an answer. One is used again for each request, so that serving allocates nothing.
pub(super) struct Record {
    header: Header,
    runs: Vec<Run>,
}

impl Record {
    /// The most runs it may have.
    const MAX_RUNS: usize = Partition::MAX_EXTENTS;

    /// Its longest form.
    pub(super) const MAX_BYTES: usize = size_of::<Header>() + Self::MAX_RUNS * size_of::<Run>();

    /// One of no partition, with room for all the runs it may get.
    pub(super) fn new() -> Self {
        Self { header: Header::default(), runs: Vec::with_capacity(Self::MAX_RUNS) }
    }

    /// Takes up the runs. Costs no more than those that it may have, however many there are.
    ///
    /// # Errors
    /// There are more: only a driver that once plugged by address can have made them.
    pub(super) fn set_runs(
        &mut self,
        geometry: &Geometry,
        runs: impl Iterator<Item = BlockRange>,
    ) -> Result<(), Refusal> {
        self.runs.clear();
        for run in runs {
            if self.runs.len() == Self::MAX_RUNS {
                return Err(Refusal::TooScattered);
            }
            let addr = geometry.address_of(run.first()).into();
            self.runs.push(Run { addr, size: geometry.bytes(run.count()).as_u64().into() });
        }
        Ok(())
    }

    /// Takes up everything else, of `partition` as it is now.
    pub(super) fn describe(&mut self, geometry: &Geometry, partition: &Partition) {
        let account = partition.account();
        let keep = if partition.policy().keep { KEEP } else { 0 };
        let evacuate = if partition.evacuate() { EVACUATE } else { 0 };
        self.header = Header {
            id: partition.id().0.into(),
            flags: (keep | evacuate).into(),
            cookie: partition.cookie().0.into(),
            size: geometry.bytes(account.requested).as_u64().into(),
            plugged: geometry.bytes(account.plugged).as_u64().into(),
            nr_runs: (self.runs.len() as u32).into(),
            reserved: U32::ZERO,
        };
    }

    /// Header and runs, as they follow each other in the answer.
    pub(super) fn as_bytes(&self) -> (&[u8], &[u8]) {
        (self.header.as_bytes(), self.runs.as_slice().as_bytes())
    }
}
