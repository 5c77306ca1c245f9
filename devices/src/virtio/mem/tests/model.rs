//! Random lives of a device against a model that is too simple to be wrong, over a host that fails
//! at random.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Resize(u64),
    Plug(u64, u16),
    Unplug(u64, u16),
    UnplugAll,
    State(u64, u16),
    Reset,
    /// The host gets better, or worse.
    Health(bool),
}

fn addresses() -> impl Strategy<Value = u64> {
    prop_oneof![
        20 => (0..BLOCKS + 2).prop_map(|block| BASE + block * BLOCK),
        1 => any::<u64>(),
        1 => Just(BASE - BLOCK),
        1 => Just(0u64.wrapping_sub(BLOCK)),
        1 => (0..BLOCKS).prop_map(|block| BASE + block * BLOCK + 4096),
    ]
}

fn counts() -> impl Strategy<Value = u16> {
    prop_oneof![16 => 1..8u16, 4 => 8..=BLOCKS as u16, 1 => Just(0), 1 => Just(65535)]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..=BLOCKS).prop_map(Step::Resize),
        10 => (addresses(), counts()).prop_map(|(addr, count)| Step::Plug(addr, count)),
        8 => (addresses(), counts()).prop_map(|(addr, count)| Step::Unplug(addr, count)),
        2 => Just(Step::UnplugAll),
        3 => (addresses(), counts()).prop_map(|(addr, count)| Step::State(addr, count)),
        1 => Just(Step::Reset),
        3 => any::<bool>().prop_map(Step::Health),
    ]
}

/// One flag per block, and the requested size.
struct Model {
    plugged: Vec<bool>,
    requested: usize,
}

impl Model {
    /// The blocks of a valid range.
    fn range(addr: u64, count: u16) -> Option<Range<usize>> {
        let blocks: Vec<u64> = (0..BLOCKS).map(|block| BASE + block * BLOCK).collect();
        let first = blocks.iter().position(|block| *block == addr)?;
        let end = first + usize::from(count);
        (count > 0 && end <= blocks.len()).then_some(first..end)
    }

    fn count(&self) -> usize {
        self.plugged.iter().filter(|plugged| **plugged).count()
    }

    /// The answer of a host that does not fail, and the blocks it changes.
    fn answer(&self, step: &Step) -> (u16, Range<usize>) {
        match *step {
            Step::Plug(addr, count) => match Self::range(addr, count) {
                Some(range) if self.count() + range.len() > self.requested => (NACK, 0..0),
                Some(range) if self.plugged[range.clone()].contains(&true) => (ERROR, 0..0),
                Some(range) => (ACK, range),
                None => (ERROR, 0..0),
            },
            Step::Unplug(addr, count) => match Self::range(addr, count) {
                Some(range) if !self.plugged[range.clone()].contains(&false) => (ACK, range),
                _ => (ERROR, 0..0),
            },
            _ => (ACK, 0..self.plugged.len()),
        }
    }

    fn state(&self, addr: u64, count: u16) -> (u16, u16) {
        let Some(range) = Self::range(addr, count) else { return (ERROR, 0) };
        let blocks = &self.plugged[range];
        let (some, all) = (blocks.contains(&true), !blocks.contains(&false));
        (
            ACK,
            if all {
                0
            } else if some {
                2
            } else {
                1
            },
        )
    }
}

struct Pair {
    rig: Rig,
    model: Model,
}

impl Pair {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Resize(blocks) => {
                self.rig.handle.resize_shared(size(blocks), None).unwrap();
                self.model.requested = blocks as usize;
            }
            Step::Plug(addr, count) => self.change(step, PLUG, addr, count),
            Step::Unplug(addr, count) => self.change(step, UNPLUG, addr, count),
            Step::UnplugAll => self.change(step, UNPLUG_ALL, 0, 0),
            Step::State(addr, count) => {
                let answer = self.rig.ask_raw(&request(STATE, addr, count));
                assert_eq!(answer, self.model.state(addr, count));
            }
            Step::Reset => {
                self.rig.reset();
                self.rig.activate();
            }
            Step::Health(good) => self.rig.host().fails = health(good),
        }
        self.check();
    }

    fn change(&mut self, step: &Step, kind: u16, addr: u64, count: u16) {
        let failed = self.rig.host().failed;
        let (expected, blocks) = self.model.answer(step);
        let answer = self.rig.ask(kind, addr, count);
        if self.rig.host().failed > failed {
            assert_eq!((expected, answer), (ACK, BUSY));
            return;
        }
        assert_eq!(answer, expected);
        self.model.plugged[blocks].fill(kind == PLUG);
        if answer == ACK {
            // It went through, so whatever was left undone before has been settled.
            assert_eq!(self.rig.host().open, self.model.plugged);
        }
    }

    fn check(&mut self) {
        let plugged = self.model.count() as u64;
        assert_eq!(self.rig.config_blocks(PLUGGED), plugged);
        assert_eq!(self.rig.config_blocks(REQUESTED), self.model.requested as u64);
        assert!(self.rig.config(USABLE) >= self.rig.config(REQUESTED));
        let host = self.rig.host();
        let mut both = host.open.iter().zip(&self.model.plugged);
        assert!(both.all(|(open, plugged)| !open || *plugged), "open, but not the guest's");
    }
}

/// Nine calls in ten succeed, or half of them.
pub(super) fn health(good: bool) -> Box<dyn FnMut(usize) -> bool + Send> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    Box::new(move |_| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % 10 < if good { 1 } else { 5 }
    })
}

proptest! {
    #[test]
    fn any_life_agrees_with_the_model(all in prop::collection::vec(steps(), 1..120)) {
        let rig = Rig::wanting(32);
        rig.host().fails = health(true);
        let plugged = vec![false; BLOCKS as usize];
        let mut pair = Pair { model: Model { plugged, requested: 32 }, rig };
        all.iter().for_each(|step| pair.step(step));
        // A host that works again settles all there is.
        pair.rig.host().fails = Box::new(|_| false);
        pair.step(&Step::UnplugAll);
        pair.rig.assert_agreement();
        assert_eq!(pair.rig.host().open_blocks(), 0);
    }
}
