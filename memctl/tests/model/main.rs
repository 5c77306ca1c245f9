//! Random lives of a region against a model that is too simple to be wrong.

// The whole file is a test; clippy exempts only what is marked as one.
#![allow(clippy::unwrap_used)]

mod naive;
mod steps;

use memctl::{
    Answer, BlockIndex, BlockRange, Blocks, Bytes, Cookie, Geometry, Hint, HostError, Layout, Mode,
    Owner, Partition, PartitionState, Partitioner, Policy, Refusal, Resize,
};
use proptest::prelude::*;

use naive::{Known, Model};
use steps::{PickedBlock, PickedId, Step};

const BASE: u64 = 6 << 30;
const BLOCK: u64 = 2 << 20;
const BLOCKS: usize = 150;
const MAX_PARTITIONS: u32 = 12;

fn geometry() -> Geometry {
    Geometry::new(BASE, Bytes::new(BLOCK), Bytes::new(BLOCK * BLOCKS as u64)).unwrap()
}

/// The partitioner and its model, side by side.
struct Pair {
    real: Partitioner,
    model: Model,
}

impl Pair {
    fn new(shared_area: usize) -> Self {
        let layout = Layout {
            geometry: geometry(),
            shared_area: Blocks::new(shared_area as u64),
            max_partitions: MAX_PARTITIONS,
        };
        Self { real: Partitioner::new(layout), model: Model::new(shared_area) }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add { size, policy, free } => self.add(size, policy, free),
            Step::Resize { pick, size, free } => self.resize(pick, size, free),
            Step::ResizeShared { size, free } => self.resize_shared(size, free),
            Step::Remove { pick } => self.remove(pick),
            Step::Plug { addr, count, done } => self.plug(addr, count, done),
            Step::Unplug { addr, count, done } => self.unplug(addr, count, done),
            Step::State { addr, count } => {
                let range = BlockRange::checked(&geometry(), addr, count).ok();
                let real = range.and_then(|range| self.real.state(&range).ok());
                assert_eq!(real, self.model.answer_to_state(addr, count));
            }
            Step::UnplugAll { done } => self.unplug_all(done),
            Step::PlugPartition { id, done } => self.plug_partition(id, done),
            Step::Release { id, done } => self.release(id, done),
            Step::Shrink { id, first, count, done } => self.shrink(id, first, count, done),
            Step::Hint { id, hint } => self.hint(id, hint),
            Step::Query { from, pending } => self.query(from, pending),
            Step::AskEvacuation { pick } => {
                let Some(id) = self.model.pick(pick) else { return };
                self.real.ask_evacuation(id).unwrap();
                self.model.partitions.get_mut(&id).unwrap().evacuate = true;
            }
            Step::Negotiate { channel } => {
                self.real.set_mode(if channel { Mode::Channel } else { Mode::Plain });
                self.model.channel = channel;
                self.model.usable = self.model.usable.max(self.model.least_usable());
            }
        }
    }

    fn add(&mut self, size: u64, policy: Policy, free: Option<u64>) {
        let name = format!("fn-{}", self.model.names);
        let fits = self.model.partitions.len() < MAX_PARTITIONS as usize
            && self.model.is_possible(size)
            && self.model.admits((0, 0), size, free);
        let place = fits.then(|| self.model.place(size)).flatten();
        let free = free.map(|blocks| Bytes::new(blocks * BLOCK));
        let (cookie, blocks) = (Cookie(1), Blocks::new(size));
        match self.real.add(name.parse().unwrap(), cookie, blocks, policy, free, &mut |_| {}) {
            Ok(id) => {
                let state = PartitionState::Requested;
                let requested = size as usize;
                let known = Known { requested, state, resized: false, policy, evacuate: false };
                assert!(self.model.partitions.insert(id, known).is_none());
                self.model.give(id, &place.expect("a place in the model, too"));
                self.model.names += 1;
            }
            Err(HostError::NoRoom { .. }) => assert!(fits && place.is_none()),
            Err(_) => assert!(!fits),
        }
    }

    fn resize(&mut self, pick: usize, size: u64, free: Option<u64>) {
        let Some(id) = self.model.pick(pick) else { return };
        let requested = self.model.partitions[&id].requested;
        let same = requested as u64 == size;
        let has = (requested, self.model.plugged_of(Some(id)));
        let fits = same || self.model.is_possible(size) && self.model.admits(has, size, free);
        let place = if fits && !same { self.model.place_growth(id, size) } else { None };
        let free = free.map(|blocks| Bytes::new(blocks * BLOCK));
        match self.real.resize(id, Blocks::new(size), free, &mut |_| {}) {
            Ok(Resize::Unchanged) => assert!(same && size > 0),
            Ok(Resize::Changed) => {
                assert!(!same);
                self.model.give(id, &place.expect("a place in the model, too"));
                let known = self.model.partitions.get_mut(&id).unwrap();
                (known.requested, known.resized) = (size as usize, true);
                known.evacuate = false;
                self.model.settle();
                self.model.give_up_slack(id);
            }
            Err(HostError::NoRoom { .. }) => assert!(fits && !same && place.is_none()),
            Err(_) => assert!(!fits || size == 0),
        }
    }

    fn resize_shared(&mut self, size: u64, free: Option<u64>) {
        let requested = self.model.shared_requested;
        let fits = size <= self.model.shared_area as u64
            && self.model.admits((requested, self.model.plugged_of(None)), size, free);
        let free = free.map(|blocks| Bytes::new(blocks * BLOCK));
        match self.real.resize_shared(Blocks::new(size), free) {
            Ok(Resize::Unchanged) => assert_eq!(requested as u64, size),
            Ok(Resize::Changed) => {
                assert!(fits);
                self.model.shared_requested = size as usize;
            }
            Err(_) => assert!(!fits),
        }
    }

    fn remove(&mut self, pick: usize) {
        let Some(id) = self.model.pick(pick) else { return };
        self.real.remove(id, &mut |_| {}).unwrap();
        let held = self.model.plugged_of(Some(id)) > 0;
        assert_eq!(self.real.partition(id).is_some(), held);
        self.model.partitions.get_mut(&id).unwrap().requested = 0;
        self.model.settle();
    }

    fn plug(&mut self, addr: u64, count: u64, done: bool) {
        let expected = self.model.answer_to_plug(addr, count);
        let planned = BlockRange::checked(&geometry(), addr, count).map_err(Refusal::Range);
        match planned.and_then(|range| Ok((range, self.real.plan_plug(range)?))) {
            Ok((range, plan)) => {
                assert_eq!(expected, Answer::Ack);
                assert_eq!(plan.runs().collect::<Vec<_>>(), [range]);
                if done {
                    plan.commit(&mut |_| {});
                    self.model.plugged[indices(&range)].fill(true);
                    self.model.by_address = true;
                    self.model.settle();
                }
            }
            Err(refusal) => assert_eq!(refusal.answer(), expected, "{refusal}"),
        }
    }

    fn unplug(&mut self, addr: u64, count: u64, done: bool) {
        let expected = self.model.answer_to_unplug(addr, count);
        let planned = BlockRange::checked(&geometry(), addr, count).map_err(Refusal::Range);
        match planned.and_then(|range| Ok((range, self.real.plan_unplug(range)?))) {
            Ok((range, plan)) => {
                assert_eq!(expected, Answer::Ack);
                assert_eq!(plan.runs().collect::<Vec<_>>(), [range]);
                if done {
                    plan.commit(&mut |_| {});
                    self.model.plugged[indices(&range)].fill(false);
                    self.model.settle();
                }
            }
            Err(refusal) => assert_eq!(refusal.answer(), expected, "{refusal}"),
        }
    }

    fn unplug_all(&mut self, done: bool) {
        let plan = self.real.plan_unplug_all();
        let mut runs = vec![false; BLOCKS];
        plan.runs().for_each(|run| runs[indices(&run)].fill(true));
        assert_eq!(runs, self.model.plugged);
        if done {
            plan.commit(&mut |_| {});
            self.forget_all();
        }
    }

    fn forget_all(&mut self) {
        self.model.plugged.fill(false);
        self.model.settle();
        self.model.usable = self.model.least_usable();
    }

    fn plug_partition(&mut self, id: PickedId, done: bool) {
        let id = self.model.id(id);
        let expected = self.model.answer_to_plug_partition(id);
        match self.real.plan_plug_partition(id) {
            Ok(plan) => {
                assert_eq!(expected, Answer::Ack);
                let known = self.model.partitions.get_mut(&id).unwrap();
                let wanted = known.requested;
                known.resized = !done && known.resized;
                let mut after = self.model.plugged.clone();
                for run in plan.runs() {
                    for block in indices(&run) {
                        assert_eq!(self.model.owners[block], Some(id));
                        assert!(!after[block]);
                        after[block] = true;
                    }
                }
                if done {
                    plan.commit(&mut |_| {});
                    self.model.plugged = after;
                    assert_eq!(self.model.plugged_of(Some(id)), wanted);
                    self.model.settle();
                }
            }
            Err(refusal) => assert_eq!(refusal.answer(), expected, "{refusal}"),
        }
    }

    fn release(&mut self, id: PickedId, done: bool) {
        let id = self.model.id(id);
        let held = self.model.channel && self.model.plugged_of(Some(id)) > 0;
        match self.real.plan_release(id) {
            Ok(plan) => {
                assert!(held);
                let mut runs = [false; BLOCKS];
                plan.runs().for_each(|run| runs[indices(&run)].fill(true));
                for (block, named) in runs.into_iter().enumerate() {
                    let its = self.model.owners[block] == Some(id) && self.model.plugged[block];
                    assert_eq!(named, its);
                }
                if done {
                    plan.commit(&mut |_| {});
                    let blocks: Vec<_> = self.model.blocks_of(Some(id)).collect();
                    blocks.into_iter().for_each(|block| self.model.plugged[block] = false);
                    self.model.partitions.get_mut(&id).unwrap().requested = 0;
                    self.model.settle();
                }
            }
            Err(refusal) => assert!(!held && refusal.answer() == Answer::Error),
        }
    }

    fn shrink(&mut self, id: PickedId, first: PickedBlock, count: u64, done: bool) {
        let id = self.model.id(id);
        let first = self.model.block(id, first);
        let expected = self.model.answer_to_shrink(id, first, count);
        let planned = BlockRange::within(&geometry(), first, count).map_err(Refusal::Range);
        match planned.and_then(|range| Ok((range, self.real.plan_shrink(id, range)?))) {
            Ok((range, plan)) => {
                assert_eq!(expected, Answer::Ack);
                if done {
                    plan.commit(&mut |_| {});
                    self.model.plugged[indices(&range)].fill(false);
                    self.model.owners[indices(&range)].fill(None);
                    self.model.settle();
                }
            }
            Err(refusal) => assert_eq!(refusal.answer(), expected, "{refusal}"),
        }
    }

    fn hint(&mut self, id: PickedId, hint: Hint) {
        let id = self.model.id(id);
        let taken = self.real.hint(id, hint, &mut |_| {}).is_ok();
        let known = self.model.partitions.get_mut(&id).filter(|_| self.model.channel);
        let known = known.filter(|known| known.state != PartitionState::Requested);
        assert_eq!(taken, known.is_some());
        if let Some(known) = known {
            known.state = match hint {
                Hint::Bound { .. } => PartitionState::Bound,
                Hint::Draining { .. } => PartitionState::Draining,
                Hint::Empty => PartitionState::Plugged,
                Hint::Spilled(_) | Hint::Stuck(_) | Hint::Used(_) => known.state,
            };
        }
    }

    fn query(&self, from: PickedId, pending: bool) {
        let from = self.model.id(from);
        match self.real.query(from, pending) {
            Err(refusal) => assert!(!self.model.channel && refusal == Refusal::ByPartition),
            Ok(found) => {
                assert!(self.model.channel);
                let id = self.model.answer_to_query(from, pending);
                assert_eq!(found.map(Partition::id), id);
            }
        }
    }

    /// Both say the same of every block and every number.
    fn compare(&self) {
        self.real.check_invariants().unwrap();
        let (real, model) = (&self.real, &self.model);
        let bytes = |blocks: usize| Bytes::new(blocks as u64 * BLOCK);
        let mut plugged = vec![false; BLOCKS];
        real.clone().plan_unplug_all().runs().for_each(|run| plugged[indices(&run)].fill(true));
        assert_eq!(plugged, model.plugged);
        for block in 0..BLOCKS {
            let owner = model.owners[block].map_or(Owner::Shared, Owner::Partition);
            assert_eq!(real.owner_of(BlockIndex::new(block as u64)), owner);
        }
        assert_eq!(real.requested_size(), bytes(model.requested()));
        assert_eq!(real.plugged_size(), bytes(model.plugged_in_all()));
        assert_eq!(real.usable_size(), bytes(model.usable));
        assert_eq!(real.shared().requested.as_u64(), model.shared_requested as u64);
        assert_eq!(real.shared().plugged.as_u64(), model.plugged_of(None) as u64);
        assert!(real.partitions().map(Partition::id).eq(model.partitions.keys().copied()));
        for (id, known) in &model.partitions {
            let partition = real.partition(*id).unwrap();
            let account = partition.account();
            assert_eq!(account.requested.as_u64(), known.requested as u64);
            assert_eq!(account.plugged.as_u64(), model.plugged_of(Some(*id)) as u64);
            assert_eq!(partition.state(), known.state);
            assert_eq!((partition.policy(), partition.evacuate()), (known.policy, known.evacuate));
            let mut runs = [false; BLOCKS];
            real.runs_of(partition).for_each(|run| runs[indices(&run)].fill(true));
            let its = |block| model.owners[block] == Some(*id) && model.plugged[block];
            assert!((0..BLOCKS).all(|block| runs[block] == its(block)));
            let used = partition.hints().used.unwrap_or(Bytes::ZERO);
            assert!(used <= geometry().bytes(account.plugged));
            assert!(partition.hints().used_peak <= geometry().bytes(account.peak));
        }
    }
}

fn indices(range: &BlockRange) -> std::ops::Range<usize> {
    range.first().as_u64() as usize..range.end().as_u64() as usize
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_life_of_a_region_agrees_with_the_model(
        shared_area in prop_oneof![Just(0usize), 0..BLOCKS, Just(BLOCKS)],
        channel: bool,
        steps in prop::collection::vec(steps::steps(), 0..80),
    ) {
        let mut pair = Pair::new(shared_area);
        pair.step(Step::Negotiate { channel });
        for step in steps {
            pair.step(step);
            pair.compare();
        }
    }
}
