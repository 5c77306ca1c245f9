//! Random lives of a device with partitions against a model that is too simple to be wrong, over a
//! host that fails at random. Where partitions lie is taken from the books: `memctl`'s own model
//! checks that.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::channel_driver::*;
use super::model::health;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Add(u64, bool),
    Resize(usize, u64),
    Remove(usize),
    Evacuate(usize),
    PartPlug(Pick),
    Release(Pick),
    Shrink(Pick, u64, u16),
    Query(Pick, u16),
    Notify(Pick, u16, u64),
    Plug(u64, u16),
    Unplug(u64, u16),
    UnplugAll,
    State(u64, u16),
    /// Of the device, after which the channel is up or not.
    Reset(bool),
    /// The host gets better, or worse.
    Health(bool),
}

/// A partition of those that are there, or any number.
#[derive(Clone, Copy, Debug)]
enum Pick {
    Known(usize),
    Lie(u32),
}

fn picks() -> impl Strategy<Value = Pick> {
    prop_oneof![12 => (0..8usize).prop_map(Pick::Known), 1 => any::<u32>().prop_map(Pick::Lie)]
}

fn wishes() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..20u64, any::<bool>()).prop_map(|(size, keep)| Step::Add(size, keep)),
        4 => (0..8usize, 0..24u64).prop_map(|(pick, size)| Step::Resize(pick, size)),
        3 => (0..8usize).prop_map(Step::Remove),
        1 => (0..8usize).prop_map(Step::Evacuate),
    ]
}

fn requests() -> impl Strategy<Value = Step> {
    let counts = || prop_oneof![16 => 0..6u16, 1 => Just(65535)];
    prop_oneof![
        12 => picks().prop_map(Step::PartPlug),
        5 => picks().prop_map(Step::Release),
        8 => (picks(), 0..BLOCKS + 2, counts())
            .prop_map(|(pick, first, count)| Step::Shrink(pick, first, count)),
        6 => (picks(), any::<u16>()).prop_map(|(pick, flags)| Step::Query(pick, flags)),
        6 => (picks(), 0..8u16, any::<u64>())
            .prop_map(|(pick, event, arg)| Step::Notify(pick, event, arg)),
        3 => (0..BLOCKS + 2, counts()).prop_map(|(first, count)| Step::Plug(first, count)),
        3 => (0..BLOCKS + 2, counts()).prop_map(|(first, count)| Step::Unplug(first, count)),
        1 => Just(Step::UnplugAll),
        2 => (0..BLOCKS + 2, counts()).prop_map(|(first, count)| Step::State(first, count)),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => wishes(),
        80 => requests(),
        1 => prop::bool::weighted(0.8).prop_map(Step::Reset),
        2 => any::<bool>().prop_map(Step::Health),
    ]
}

/// What the model knows of a partition, beside its blocks.
#[derive(Debug, Default)]
struct Known {
    requested: usize,
    resized: bool,
    /// It was plugged whole, so that the guest may speak of it.
    taken: bool,
    flags: u32,
}

/// One owner and one flag per block.
struct Model {
    owners: Vec<Option<u32>>,
    plugged: Vec<bool>,
    known: BTreeMap<u32, Known>,
    channel: bool,
    /// Some of what is plugged was plugged by address.
    by_address: bool,
    usable: usize,
}

impl Model {
    fn id(&self, pick: Pick) -> u32 {
        match pick {
            Pick::Known(pick) => {
                self.known.keys().copied().nth(pick % self.known.len().max(1)).unwrap_or(0)
            }
            Pick::Lie(id) => id,
        }
    }

    fn plugged_of(&self, id: u32) -> Vec<usize> {
        let its = |block: &usize| self.owners[*block] == Some(id) && self.plugged[*block];
        (0..self.plugged.len()).filter(its).collect()
    }

    fn count(&self) -> usize {
        self.plugged.iter().filter(|plugged| **plugged).count()
    }

    fn requested(&self) -> usize {
        self.known.values().map(|known| known.requested).sum()
    }

    /// The blocks of a range that may be named.
    fn range(&self, first: u64, count: u16) -> Option<Range<usize>> {
        let end = first as usize + usize::from(count);
        (count > 0 && end <= self.usable).then_some(first as usize..end)
    }

    /// Takes over where the partitions lie, and drops those that are gone.
    fn learn(&mut self, rig: &Rig) {
        self.owners.fill(None);
        rig.handle.look(|partitioner| {
            for one in partitioner.partitions() {
                for extent in one.extents() {
                    let blocks = extent.first().as_u64() as usize..extent.end().as_u64() as usize;
                    assert!(self.owners[blocks.clone()].iter().all(Option::is_none));
                    self.owners[blocks].fill(Some(one.id().0));
                }
            }
        });
        let held: BTreeMap<u32, usize> =
            self.known.keys().map(|id| (*id, self.plugged_of(*id).len())).collect();
        self.known.retain(|id, known| held[id] > 0 || known.requested > 0);
        for (id, known) in &mut self.known {
            let held = held[id];
            known.taken = held > 0 && (known.taken || held >= known.requested);
        }
        self.usable = self.usable.max(self.least_usable());
    }

    fn least_usable(&self) -> usize {
        let end = self.owners.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if self.channel { self.owners.len() } else { end }
    }

    fn runs(&self, blocks: &[usize]) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for block in blocks.iter().map(|block| *block as u64) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        runs
    }

    fn record(&self, id: u32) -> Seen {
        let (known, plugged) = (&self.known[&id], self.plugged_of(id));
        let bytes = |blocks: usize| blocks as u64 * BLOCK;
        let (size, plugged, runs) =
            (bytes(known.requested), bytes(plugged.len()), self.runs(&plugged));
        Seen { id: PartitionId(id), flags: known.flags, cookie: 700, size, plugged, runs }
    }

    fn answer_to_part_plug(&self, id: u32) -> u16 {
        match self.known.get(&id) {
            _ if !self.channel => ERROR,
            None => NACK,
            Some(known) if known.requested == 0 => NACK,
            Some(known) if known.requested > self.plugged_of(id).len() => {
                let missing = known.requested - self.plugged_of(id).len();
                let over = self.count() + missing > self.requested();
                if self.by_address && over { NACK } else { ACK }
            }
            Some(known) if known.resized => NACK,
            Some(_) => ERROR,
        }
    }

    fn answer_to_shrink(&self, id: u32, first: u64, count: u16) -> u16 {
        let Some(range) = self.range(first, count).filter(|_| self.channel) else { return ERROR };
        let Some(known) = self.known.get(&id) else { return ERROR };
        let plugged = self.plugged_of(id);
        let (removed, left) = (range.len(), plugged.len().saturating_sub(range.len()));
        match range.filter(|block| plugged.contains(block)).count() == removed {
            true if left < known.requested.max(1) => NACK,
            true => ACK,
            false => ERROR,
        }
    }
}

struct Pair {
    rig: Rig,
    model: Model,
    /// The host has failed to open a run, and then to close one that it had opened before.
    stuck_open: bool,
}

impl Pair {
    fn new() -> Self {
        let rig = Rig::channel();
        rig.host().fails = health(true);
        let blocks = BLOCKS as usize;
        let (owners, plugged) = (vec![None; blocks], vec![false; blocks]);
        let known = BTreeMap::new();
        let (channel, by_address) = (true, false);
        let model = Model { owners, plugged, known, channel, by_address, usable: blocks };
        Self { rig, model, stuck_open: false }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Add(..) | Step::Resize(..) | Step::Remove(_) | Step::Evacuate(_) => {
                self.wish(step)
            }
            Step::PartPlug(pick) => self.part_plug(pick),
            Step::Query(pick, flags) => self.query(pick, flags),
            Step::Reset(channel) => self.reset(channel),
            Step::Health(good) => self.rig.host().fails = health(good),
            _ => self.request(step),
        }
        self.model.learn(&self.rig);
        self.check();
    }

    /// What the host can't have changes nothing.
    fn wish(&mut self, step: &Step) {
        let (handle, model) = (self.rig.handle.clone(), &mut self.model);
        let known = |pick| PartitionId(model.id(Pick::Known(pick)));
        match *step {
            Step::Add(blocks, keep) => {
                let name = format!("fn-{}", self.rig.part_gen()).parse().unwrap();
                let (cookie, policy) = (Cookie(700), Policy { keep, prefault: false });
                if let Ok(view) = handle.add_partition(name, cookie, size(blocks), policy, None) {
                    let (requested, flags) = (blocks as usize, u32::from(keep));
                    let known = Known { requested, flags, ..Known::default() };
                    assert!(model.known.insert(view.id.0, known).is_none());
                }
            }
            Step::Resize(pick, blocks) => {
                let id = known(pick);
                let changed = handle.resize_partition(id, size(blocks), None);
                if let (Ok(memctl::Resize::Changed), Some(known)) =
                    (changed, model.known.get_mut(&id.0))
                {
                    (known.requested, known.resized) = (blocks as usize, true);
                    known.flags &= !2;
                }
            }
            Step::Remove(pick) => {
                let id = known(pick);
                let removed = handle.remove_partition(id).is_ok();
                assert_eq!(removed, model.known.contains_key(&id.0));
                model.known.entry(id.0).and_modify(|known| known.requested = 0);
            }
            Step::Evacuate(pick) => {
                let id = known(pick);
                assert_eq!(handle.ask_evacuation(id).is_ok(), model.known.contains_key(&id.0));
                model.known.entry(id.0).and_modify(|known| known.flags |= 2);
            }
            _ => unreachable!("not a wish"),
        }
    }

    fn part_plug(&mut self, pick: Pick) {
        let id = self.model.id(pick);
        let (expected, failed) = (self.model.answer_to_part_plug(id), self.rig.host().failed);
        let answer = self.rig.part_plug(PartitionId(id));
        let failures = self.rig.host().failed - failed;
        if failures > 0 {
            assert_eq!((expected, answer), (ACK, Err(BUSY)));
            self.stuck_open |= failures > 1;
            return;
        }
        let Ok(seen) = answer else { return assert_eq!(answer, Err(expected)) };
        assert_eq!(expected, ACK);
        for (first, count) in &seen.runs {
            for block in *first as usize..(first + count) as usize {
                assert_eq!(
                    (self.model.owners[block], self.model.plugged[block]),
                    (Some(id), false)
                );
                self.model.plugged[block] = true;
            }
        }
        let known = self.model.known.get_mut(&id).unwrap();
        known.resized = false;
        assert_eq!(self.model.plugged_of(id).len(), self.model.known[&id].requested);
        let whole = self.model.record(id);
        assert_eq!(Seen { runs: seen.runs.clone(), ..whole }, seen);
        self.assert_settled();
    }

    /// A change went through, so whatever was left undone before has been settled.
    fn assert_settled(&mut self) {
        assert_eq!(self.rig.host().open, self.model.plugged);
        self.stuck_open = false;
    }

    fn query(&mut self, pick: Pick, flags: u16) {
        let from = self.model.id(pick);
        let model = &self.model;
        let pending = |id: &u32| model.known[id].requested != model.plugged_of(*id).len();
        let mut found = model.known.keys().filter(|id| **id >= from);
        let found = found.find(|id| flags & PENDING == 0 || pending(id));
        let expected = match found {
            _ if !model.channel => Err(ERROR),
            Some(id) => Ok(model.record(*id)),
            None => Err(NACK),
        };
        assert_eq!(self.rig.query(from, flags), expected);
    }

    fn reset(&mut self, channel: bool) {
        self.rig.reset();
        self.model.channel = channel;
        match channel {
            true => self.rig.activate_channel(),
            false => self.rig.activate(),
        }
    }

    /// A request whose answer is ten bytes.
    fn request(&mut self, step: &Step) {
        let (expected, blocks, plug) = self.expected(step);
        let failed = self.rig.host().failed;
        let answer = self.ask(step);
        if self.rig.host().failed > failed {
            assert_eq!((expected, answer), (ACK, BUSY), "{step:?}");
            return;
        }
        assert_eq!(answer, expected, "{step:?}");
        if answer == ACK {
            self.apply(step, &blocks, plug);
        }
    }

    /// The answer of a host that does not fail, the blocks it changes, and what to.
    fn expected(&self, step: &Step) -> (u16, Vec<usize>, bool) {
        let model = &self.model;
        let answer = |ok: bool| if ok { ACK } else { ERROR };
        match *step {
            Step::Release(pick) => {
                let blocks = model.plugged_of(model.id(pick));
                (answer(model.channel && !blocks.is_empty()), blocks, false)
            }
            Step::Shrink(pick, first, count) => {
                let answer = model.answer_to_shrink(model.id(pick), first, count);
                (answer, model.range(first, count).into_iter().flatten().collect(), false)
            }
            Step::Notify(pick, event, _) => {
                let taken = model.known.get(&model.id(pick)).is_some_and(|known| known.taken);
                (answer(model.channel && taken && (1..=6).contains(&event)), vec![], false)
            }
            Step::Plug(first, count) => {
                let range = model.range(first, count).filter(|_| !model.channel);
                let Some(range) = range else { return (ERROR, vec![], true) };
                let over = model.count() + range.len() > model.requested();
                let clear = !model.plugged[range.clone()].contains(&true);
                (if over { NACK } else { answer(clear) }, range.collect(), true)
            }
            Step::Unplug(first, count) => {
                let range = model.range(first, count).filter(|_| !model.channel);
                let range = range.filter(|range| !model.plugged[range.clone()].contains(&false));
                (answer(range.is_some()), range.into_iter().flatten().collect(), false)
            }
            Step::State(first, count) => {
                (answer(model.range(first, count).is_some()), vec![], false)
            }
            _ => (ACK, (0..BLOCKS as usize).collect(), false),
        }
    }

    fn ask(&mut self, step: &Step) -> u16 {
        let id = |pick| PartitionId(self.model.id(pick));
        match *step {
            Step::Release(pick) => self.rig.release(id(pick)),
            Step::Shrink(pick, first, count) => self.rig.shrink(id(pick), first, count),
            Step::Notify(pick, event, arg) => self.rig.notify(id(pick), event, arg),
            Step::Plug(first, count) => self.rig.plug(first, count),
            Step::Unplug(first, count) => self.rig.unplug(first, count),
            Step::State(first, count) => self.rig.ask(STATE, BASE + first * BLOCK, count),
            _ => self.rig.unplug_all(),
        }
    }

    fn apply(&mut self, step: &Step, blocks: &[usize], plug: bool) {
        let id = match *step {
            Step::Release(pick) => Some(self.model.id(pick)),
            _ => None,
        };
        blocks.iter().for_each(|block| self.model.plugged[*block] = plug);
        self.model.by_address |= matches!(step, Step::Plug(..));
        self.model.by_address &= self.model.count() > 0;
        if let Some(known) = id.and_then(|id| self.model.known.get_mut(&id)) {
            known.requested = 0;
        }
        if let Step::UnplugAll = step {
            self.model.learn(&self.rig);
            self.model.usable = self.model.least_usable();
        }
        if !blocks.is_empty() {
            self.assert_settled();
        }
    }

    fn check(&mut self) {
        let model = &self.model;
        assert_eq!(self.rig.config_blocks(PLUGGED), model.count() as u64);
        assert_eq!(self.rig.config_blocks(REQUESTED), model.requested() as u64);
        assert_eq!(self.rig.config_blocks(USABLE), model.usable as u64);
        assert_eq!(self.rig.handle.channel_is_up(), model.channel);
        let ids: Vec<u32> = self.rig.handle.partitions().iter().map(|one| one.id.0).collect();
        assert!(model.known.keys().eq(&ids));
        let host = self.rig.host();
        let mut both = host.open.iter().zip(&model.plugged);
        let within = both.all(|(open, plugged)| !open || *plugged);
        assert!(within || self.stuck_open, "open, but not the guest's");
    }
}

proptest! {
    // Of 130,000 steps, more than 100,000 are requests.
    #![proptest_config(ProptestConfig {
        cases: 260,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_life_with_partitions_agrees_with_the_model(
        all in prop::collection::vec(steps(), 1..1000),
    ) {
        let mut pair = Pair::new();
        all.iter().for_each(|step| pair.step(step));
        // A host that works again settles all there is.
        pair.rig.host().fails = Box::new(|_| false);
        pair.step(&Step::UnplugAll);
        pair.rig.assert_agreement();
        assert_eq!(pair.rig.host().open_blocks(), 0);
    }
}
