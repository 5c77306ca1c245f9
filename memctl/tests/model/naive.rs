//! The model: one owner and one flag for each block, and the rules written out over them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use memctl::{Answer, PartitionId, PartitionState, PlugState, Policy, RangeError, Refusal};

use crate::steps::{PickedBlock, PickedId};
use crate::{BASE, BLOCK, BLOCKS};

/// What the model knows of a partition. Its blocks are in the model's vector.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) requested: usize,
    pub(crate) state: PartitionState,
    pub(crate) resized: bool,
    pub(crate) policy: Policy,
    pub(crate) evacuate: bool,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) owners: Vec<Option<PartitionId>>,
    pub(crate) plugged: Vec<bool>,
    pub(crate) partitions: BTreeMap<PartitionId, Known>,
    pub(crate) shared_area: usize,
    pub(crate) shared_requested: usize,
    pub(crate) usable: usize,
    pub(crate) channel: bool,
    pub(crate) by_address: bool,
    pub(crate) names: u32,
}

impl Model {
    pub(crate) fn new(shared_area: usize) -> Self {
        Self {
            owners: vec![None; BLOCKS],
            plugged: vec![false; BLOCKS],
            partitions: BTreeMap::new(),
            shared_area,
            shared_requested: 0,
            usable: shared_area,
            channel: false,
            by_address: false,
            names: 0,
        }
    }

    pub(crate) fn pick(&self, pick: usize) -> Option<PartitionId> {
        let count = self.partitions.len();
        (count > 0).then(|| *self.partitions.keys().nth(pick % count).unwrap())
    }

    pub(crate) fn id(&self, picked: PickedId) -> PartitionId {
        match picked {
            PickedId::Known(pick) => self.pick(pick).unwrap_or(PartitionId(0)),
            PickedId::Lie(id) => PartitionId(id),
        }
    }

    pub(crate) fn block(&self, id: PartitionId, picked: PickedBlock) -> u64 {
        match picked {
            PickedBlock::Own(pick) => {
                let blocks: Vec<_> = self.blocks_of(Some(id)).collect();
                blocks.get(pick % blocks.len().max(1)).map_or(0, |block| *block as u64)
            }
            PickedBlock::Lie(block) => block,
        }
    }

    pub(crate) fn blocks_of(&self, owner: Option<PartitionId>) -> impl Iterator<Item = usize> + '_ {
        (0..BLOCKS).filter(move |block| self.owners[*block] == owner)
    }

    pub(crate) fn plugged_of(&self, owner: Option<PartitionId>) -> usize {
        self.blocks_of(owner).filter(|block| self.plugged[*block]).count()
    }

    pub(crate) fn plugged_in_all(&self) -> usize {
        self.plugged.iter().filter(|plugged| **plugged).count()
    }

    pub(crate) fn requested(&self) -> usize {
        self.shared_requested + self.partitions.values().map(|known| known.requested).sum::<usize>()
    }

    pub(crate) fn committed(&self) -> usize {
        let held =
            |(id, known): (&PartitionId, &Known)| known.requested.max(self.plugged_of(Some(*id)));
        let shared = self.shared_requested.max(self.plugged_of(None));
        shared + self.partitions.iter().map(held).sum::<usize>()
    }

    pub(crate) fn least_usable(&self) -> usize {
        let end = self.owners.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if self.channel { BLOCKS } else { self.shared_area.max(end) }
    }

    /// Runs of blocks that a partition could get.
    pub(crate) fn free_runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for block in self.shared_area..BLOCKS {
            if self.owners[block].is_some() || self.plugged[block] {
                continue;
            }
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        runs
    }

    /// Runs of blocks for a new partition: best fit, or the sixteen largest runs.
    pub(crate) fn place(&mut self, wanted: u64) -> Option<Vec<(usize, usize)>> {
        let ids: Vec<_> = self.partitions.keys().copied().collect();
        ids.into_iter().for_each(|id| self.give_up_slack(id));
        let mut runs = self.free_runs();
        runs.sort_by_key(|(first, count)| (Reverse(*count), *first));
        let fitting = runs.iter().filter(|(_, count)| *count as u64 >= wanted);
        if let Some((first, _)) = fitting.min_by_key(|(first, count)| (*count, *first)) {
            return Some(vec![(*first, wanted as usize)]);
        }
        let mut left = wanted;
        let mut pieces = Vec::new();
        for (first, count) in runs.into_iter().take(16) {
            let count = left.min(count as u64);
            pieces.push((first, count as usize));
            left -= count;
        }
        (left == 0).then_some(pieces)
    }

    /// Runs of blocks for a partition that is to have `size`: none, the run after one of its own, or
    /// as for a new one.
    pub(crate) fn place_growth(
        &mut self,
        id: PartitionId,
        size: u64,
    ) -> Option<Vec<(usize, usize)>> {
        if size <= self.blocks_of(Some(id)).count() as u64 {
            return Some(Vec::new());
        }
        self.place(1);
        let wanted = size - self.blocks_of(Some(id)).count() as u64;
        let follows = |(first, count): &(usize, usize)| {
            let after_its_own = *first > 0 && self.owners[first - 1] == Some(id);
            after_its_own && *count as u64 >= wanted
        };
        match self.free_runs().into_iter().find(follows) {
            Some((first, _)) => Some(vec![(first, wanted as usize)]),
            None => self.place(wanted),
        }
    }

    pub(crate) fn give(&mut self, id: PartitionId, pieces: &[(usize, usize)]) {
        for (first, count) in pieces {
            self.owners[*first..first + count].fill(Some(id));
        }
        self.usable = self.usable.max(self.least_usable());
    }

    /// Takes what a partition neither wants nor has from the end of each of its unplugged runs.
    pub(crate) fn give_up_slack(&mut self, id: PartitionId) {
        let least = self.partitions[&id].requested.max(self.plugged_of(Some(id)));
        let mut slack = self.blocks_of(Some(id)).count() - least;
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for block in self.blocks_of(Some(id)).filter(|block| !self.plugged[*block]) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        for (first, count) in runs {
            let given = slack.min(count);
            self.owners[first + count - given..first + count].fill(None);
            slack -= given;
        }
    }

    /// Whether a partition may ever have `size`.
    pub(crate) fn is_possible(&self, size: u64) -> bool {
        (1..=(BLOCKS - self.shared_area) as u64).contains(&size)
    }

    /// Whether the host's wish fits free memory, were an owner that has `requested` and
    /// `plugged` to get `size`.
    pub(crate) fn admits(
        &self,
        (requested, plugged): (usize, usize),
        size: u64,
        free: Option<u64>,
    ) -> bool {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let before = self.committed();
        let after = (before - requested.max(plugged)).saturating_add(size.max(plugged));
        let wanted = (after - self.plugged_in_all()) as u64;
        after <= before || free.is_none_or(|free| free >= wanted)
    }

    /// The states that follow from what is plugged.
    pub(crate) fn settle(&mut self) {
        self.by_address &= self.plugged_in_all() > 0;
        let ids: Vec<_> = self.partitions.keys().copied().collect();
        for id in ids {
            let plugged = self.plugged_of(Some(id));
            let known = self.partitions.get_mut(&id).unwrap();
            match (plugged, known.requested) {
                (0, 0) => {
                    self.partitions.remove(&id);
                    for owner in &mut self.owners {
                        if *owner == Some(id) {
                            *owner = None;
                        }
                    }
                }
                (0, _) => known.state = PartitionState::Requested,
                (some, wanted) if some >= wanted && known.state == PartitionState::Requested => {
                    known.state = PartitionState::Plugged;
                }
                _ => {}
            }
        }
    }

    pub(crate) fn checked(&self, addr: u64, count: u64) -> Result<std::ops::Range<usize>, Refusal> {
        let addr = i128::from(addr) - i128::from(BASE);
        let (first, end) = (addr / i128::from(BLOCK), addr / i128::from(BLOCK) + i128::from(count));
        let error = if addr < 0 {
            RangeError::BelowRegion
        } else if addr % i128::from(BLOCK) != 0 {
            RangeError::Misaligned
        } else if count == 0 {
            RangeError::Empty
        } else if end > BLOCKS as i128 {
            RangeError::PastEnd
        } else {
            return Ok(first as usize..end as usize);
        };
        Err(error.into())
    }

    pub(crate) fn answer_to_plug(&self, addr: u64, count: u64) -> Answer {
        match self.checked(addr, count) {
            Err(_) => Answer::Error,
            Ok(range) if self.channel || range.end > self.usable => Answer::Error,
            Ok(range) if self.plugged_in_all() + range.len() > self.requested() => Answer::Nack,
            Ok(range) if self.plugged[range.clone()].contains(&true) => Answer::Error,
            Ok(_) => Answer::Ack,
        }
    }

    pub(crate) fn answer_to_unplug(&self, addr: u64, count: u64) -> Answer {
        match self.checked(addr, count) {
            Ok(range) if !self.channel && range.end <= self.usable => {
                if self.plugged[range].contains(&false) { Answer::Error } else { Answer::Ack }
            }
            _ => Answer::Error,
        }
    }

    pub(crate) fn answer_to_state(&self, addr: u64, count: u64) -> Option<PlugState> {
        let range = self.checked(addr, count).ok().filter(|range| range.end <= self.usable)?;
        let plugged = &self.plugged[range];
        Some(match (plugged.contains(&true), plugged.contains(&false)) {
            (true, true) => PlugState::Mixed,
            (true, false) => PlugState::Plugged,
            (false, _) => PlugState::Unplugged,
        })
    }

    pub(crate) fn answer_to_plug_partition(&self, id: PartitionId) -> Answer {
        match self.partitions.get(&id) {
            _ if !self.channel => Answer::Error,
            None => Answer::Nack,
            Some(known) if known.requested == 0 => Answer::Nack,
            Some(known) if known.requested > self.plugged_of(Some(id)) => {
                let missing = known.requested - self.plugged_of(Some(id));
                let over = self.plugged_in_all() + missing > self.requested();
                if self.by_address && over { Answer::Nack } else { Answer::Ack }
            }
            Some(known) if known.resized => Answer::Nack,
            Some(_) => Answer::Error,
        }
    }

    pub(crate) fn answer_to_query(&self, from: PartitionId, pending: bool) -> Option<PartitionId> {
        let satisfied = |id, known: &Known| known.requested == self.plugged_of(Some(id));
        let mut found = self.partitions.iter().filter(|(id, _)| **id >= from);
        found.find(|(id, known)| !pending || !satisfied(**id, known)).map(|(id, _)| *id)
    }

    pub(crate) fn answer_to_shrink(&self, id: PartitionId, first: u64, count: u64) -> Answer {
        let Some(known) = self.partitions.get(&id).filter(|_| self.channel) else {
            return Answer::Error;
        };
        let Ok(range) = self.checked((first * BLOCK).wrapping_add(BASE), count) else {
            return Answer::Error;
        };
        let lies =
            range.clone().any(|block| self.owners[block] != Some(id) || !self.plugged[block]);
        let left = self.plugged_of(Some(id)).saturating_sub(range.len());
        match lies {
            true => Answer::Error,
            false if left < known.requested.max(1) => Answer::Nack,
            false => Answer::Ack,
        }
    }
}
