//! Which blocks are plugged: one bit each.

use crate::blocks::{BlockIndex, BlockRange, Blocks};

const WORD: u64 = u64::BITS as u64;

/// One bit for each block of a region. Every operation costs what the 64-bit words of its range
/// cost, whatever the size of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    words: Vec<u64>,
}

/// A range as words: the bits of the first, all bits of those between, the bits of the last.
struct Span {
    head: usize,
    head_bits: u64,
    tail: usize,
    tail_bits: u64,
}

impl Span {
    fn of(range: &BlockRange) -> Self {
        let (first, last) = (range.first().as_u64(), range.end().as_u64() - 1);
        let (head, tail) = ((first / WORD) as usize, (last / WORD) as usize);
        let mut head_bits = u64::MAX << (first % WORD);
        let mut tail_bits = u64::MAX >> (WORD - 1 - last % WORD);
        if head == tail {
            head_bits &= tail_bits;
            tail_bits = 0;
        }
        Self { head, head_bits, tail, tail_bits }
    }

    fn body(&self) -> std::ops::Range<usize> {
        self.head + 1..self.tail.max(self.head + 1)
    }
}

impl BlockMap {
    /// A map of `blocks` blocks, all clear.
    pub fn new(blocks: Blocks) -> Self {
        Self { words: vec![0; blocks.as_u64().div_ceil(WORD) as usize] }
    }

    /// Sets the bits of a range.
    pub fn set(&mut self, range: &BlockRange) {
        let span = Span::of(range);
        self.words[span.head] |= span.head_bits;
        self.words[span.body()].fill(u64::MAX);
        self.words[span.tail] |= span.tail_bits;
    }

    /// Clears the bits of a range.
    pub fn clear(&mut self, range: &BlockRange) {
        let span = Span::of(range);
        self.words[span.head] &= !span.head_bits;
        self.words[span.body()].fill(0);
        self.words[span.tail] &= !span.tail_bits;
    }

    /// Whether every bit of a range is set.
    pub fn all_set(&self, range: &BlockRange) -> bool {
        self.all(range, u64::MAX)
    }

    /// Whether no bit of a range is set.
    pub fn all_clear(&self, range: &BlockRange) -> bool {
        self.all(range, 0)
    }

    fn all(&self, range: &BlockRange, value: u64) -> bool {
        let span = Span::of(range);
        let same = |word: usize, bits: u64| (self.words[word] ^ value) & bits == 0;
        same(span.head, span.head_bits)
            && same(span.tail, span.tail_bits)
            && self.words[span.body()].iter().all(|word| *word == value)
    }

    /// How many bits of a range are set.
    pub fn count(&self, range: &BlockRange) -> Blocks {
        let span = Span::of(range);
        let ends = (self.words[span.head] & span.head_bits).count_ones()
            + (self.words[span.tail] & span.tail_bits).count_ones();
        let body: u64 =
            self.words[span.body()].iter().map(|word| u64::from(word.count_ones())).sum();
        Blocks::new(u64::from(ends) + body)
    }

    /// The longest runs of equal bits of `value` inside a range, in order.
    pub fn runs(&self, range: BlockRange, value: bool) -> impl Iterator<Item = BlockRange> + '_ {
        let mut rest = Some(range);
        std::iter::from_fn(move || {
            let all = rest?;
            let run = self.next_run(&all, value)?;
            rest = BlockRange::span(run.end(), all.end());
            Some(run)
        })
    }

    /// The first run of bits of `value` inside a range.
    pub(crate) fn next_run(&self, range: &BlockRange, value: bool) -> Option<BlockRange> {
        let first = self.find(range.first(), range.end(), value);
        BlockRange::span(first, self.find(first, range.end(), !value))
    }

    /// The first bit of `value` in `from..end`, or `end`.
    fn find(&self, from: BlockIndex, end: BlockIndex, value: bool) -> BlockIndex {
        if from >= end {
            return end;
        }
        let flip = if value { 0 } else { u64::MAX };
        let mut at = from.as_u64() / WORD;
        let mut bits = (self.words[at as usize] ^ flip) & (u64::MAX << (from.as_u64() % WORD));
        while bits == 0 {
            at += 1;
            if at * WORD >= end.as_u64() {
                return end;
            }
            bits = self.words[at as usize] ^ flip;
        }
        BlockIndex::new(at * WORD + u64::from(bits.trailing_zeros())).min(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 300;

    fn range(first: u64, count: u64) -> BlockRange {
        BlockRange::span(BlockIndex::new(first), BlockIndex::new(first + count)).unwrap()
    }

    #[test]
    fn only_the_bits_of_the_range_change() {
        let mut map = BlockMap::new(Blocks::new(BLOCKS));
        map.set(&range(63, 66));
        assert!(map.all_set(&range(63, 66)) && map.all_clear(&range(0, 63)));
        assert!(map.all_clear(&range(129, 171)));
        map.clear(&range(64, 64));
        assert_eq!(map.count(&range(0, BLOCKS)), Blocks::new(2));
        assert_eq!(
            map.runs(range(0, BLOCKS), true).collect::<Vec<_>>(),
            [range(63, 1), range(128, 1)]
        );
    }

    #[test]
    fn runs_stop_at_the_range_and_not_at_words() {
        let mut map = BlockMap::new(Blocks::new(BLOCKS));
        map.set(&range(0, BLOCKS));
        assert_eq!(map.runs(range(10, 200), true).collect::<Vec<_>>(), [range(10, 200)]);
        assert_eq!(map.runs(range(10, 200), false).count(), 0);
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_a_vector(
            steps in prop::collection::vec((0..BLOCKS, 1..=BLOCKS, any::<bool>()), 0..20),
            looked in (0..BLOCKS, 1..=BLOCKS),
        ) {
            let fit = |(first, count): (u64, u64)| range(first, count.min(BLOCKS - first));
            let indices = |range: &BlockRange| {
                range.first().as_u64() as usize..range.end().as_u64() as usize
            };
            let mut map = BlockMap::new(Blocks::new(BLOCKS));
            let mut model = vec![false; BLOCKS as usize];
            for (first, count, value) in steps {
                let range = fit((first, count));
                if value { map.set(&range) } else { map.clear(&range) }
                model[indices(&range)].fill(value);
            }
            let range = fit(looked);
            let seen = &model[indices(&range)];
            prop_assert_eq!(map.all_set(&range), seen.iter().all(|bit| *bit));
            prop_assert_eq!(map.all_clear(&range), !seen.iter().any(|bit| *bit));
            let ones = seen.iter().filter(|bit| **bit).count() as u64;
            prop_assert_eq!(map.count(&range).as_u64(), ones);
            for value in [true, false] {
                let mut from_runs = vec![!value; model.len()];
                for run in map.runs(range, value) {
                    from_runs[indices(&run)].fill(value);
                }
                prop_assert_eq!(&from_runs[indices(&range)], seen);
            }
        }
    }
}
