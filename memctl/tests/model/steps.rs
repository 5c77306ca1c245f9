//! What may happen to a region, and how likely.

use memctl::{Bytes, Hint, Policy};
use proptest::prelude::*;

use crate::{BASE, BLOCK, BLOCKS, MAX_PARTITIONS};

/// What happens to a region. Numbers from the guest may be anything.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Add { size: u64, policy: Policy, free: Option<u64> },
    Resize { pick: usize, size: u64, free: Option<u64> },
    ResizeShared { size: u64, free: Option<u64> },
    Remove { pick: usize },
    Plug { addr: u64, count: u64, done: bool },
    Unplug { addr: u64, count: u64, done: bool },
    State { addr: u64, count: u64 },
    UnplugAll { done: bool },
    PlugPartition { id: PickedId, done: bool },
    Release { id: PickedId, done: bool },
    Shrink { id: PickedId, first: PickedBlock, count: u64, done: bool },
    Hint { id: PickedId, hint: Hint },
    Query { from: PickedId, pending: bool },
    AskEvacuation { pick: usize },
    Negotiate { channel: bool },
}

/// A partition of the ones that are there, or any number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PickedId {
    Known(usize),
    Lie(u32),
}

/// A block of the partition that a request is about, or any number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PickedBlock {
    Own(usize),
    Lie(u64),
}

fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 1..24u64, 2 => 0..=BLOCKS as u64 + 1, 1 => any::<u64>()]
}

fn free() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![6 => Just(None), 2 => (0..200u64).prop_map(Some)]
}

fn addresses() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => (0..BLOCKS as u64 + 2).prop_map(|index| BASE + index * BLOCK),
        1 => any::<u64>(),
        1 => Just(BASE - BLOCK),
        1 => Just(0u64.wrapping_sub(BLOCK)),
        1 => (0..BLOCKS as u64).prop_map(|index| BASE + index * BLOCK + 4096),
    ]
}

fn counts() -> impl Strategy<Value = u64> {
    prop_oneof![12 => 1..20u64, 2 => 20..=BLOCKS as u64, 1 => Just(0), 1 => Just(65535), 1 => any::<u64>()]
}

fn ids() -> impl Strategy<Value = PickedId> {
    prop_oneof![
        9 => (0..MAX_PARTITIONS as usize).prop_map(PickedId::Known),
        1 => any::<u32>().prop_map(PickedId::Lie),
    ]
}

fn blocks() -> impl Strategy<Value = PickedBlock> {
    prop_oneof![
        6 => (0..BLOCKS).prop_map(PickedBlock::Own),
        1 => (0..BLOCKS as u64 + 2).prop_map(PickedBlock::Lie),
    ]
}

fn hints() -> impl Strategy<Value = Hint> {
    prop_oneof![
        any::<u64>().prop_map(|used| Hint::Bound { used: Bytes::new(used) }),
        any::<u64>().prop_map(|used| Hint::Used(Bytes::new(used))),
        any::<u64>().prop_map(|used| Hint::Draining { used: Bytes::new(used) }),
        Just(Hint::Empty),
        any::<u64>().prop_map(|bytes| Hint::Spilled(Bytes::new(bytes))),
        any::<u64>().prop_map(|bytes| Hint::Stuck(Bytes::new(bytes))),
    ]
}

fn policies() -> impl Strategy<Value = Policy> {
    any::<(bool, bool)>().prop_map(|(keep, prefault)| Policy { keep, prefault })
}

/// The host's part succeeds three times out of four.
fn done() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.75)
}

pub(crate) fn steps() -> impl Strategy<Value = Step> {
    let pick = 0..MAX_PARTITIONS as usize;
    prop_oneof![
        6 => (sizes(), policies(), free())
            .prop_map(|(size, policy, free)| Step::Add { size, policy, free }),
        4 => (pick.clone(), sizes(), free())
            .prop_map(|(pick, size, free)| Step::Resize { pick, size, free }),
        3 => (sizes(), free()).prop_map(|(size, free)| Step::ResizeShared { size, free }),
        3 => pick.clone().prop_map(|pick| Step::Remove { pick }),
        1 => pick.prop_map(|pick| Step::AskEvacuation { pick }),
        10 => (addresses(), counts(), done())
            .prop_map(|(addr, count, done)| Step::Plug { addr, count, done }),
        8 => (addresses(), counts(), done())
            .prop_map(|(addr, count, done)| Step::Unplug { addr, count, done }),
        3 => (addresses(), counts()).prop_map(|(addr, count)| Step::State { addr, count }),
        1 => done().prop_map(|done| Step::UnplugAll { done }),
        8 => (ids(), done()).prop_map(|(id, done)| Step::PlugPartition { id, done }),
        4 => (ids(), done()).prop_map(|(id, done)| Step::Release { id, done }),
        6 => (ids(), blocks(), prop_oneof![4 => 1..6u64, 1 => counts()], done())
            .prop_map(|(id, first, count, done)| Step::Shrink { id, first, count, done }),
        3 => (ids(), hints()).prop_map(|(id, hint)| Step::Hint { id, hint }),
        3 => (ids(), any::<bool>()).prop_map(|(from, pending)| Step::Query { from, pending }),
        2 => any::<bool>().prop_map(|channel| Step::Negotiate { channel }),
    ]
}
