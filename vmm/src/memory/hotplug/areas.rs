//! How many of the process's address-space areas open memory takes.
//!
//! The kernel merges neighbours that look alike, but not all of them: huge pages never, and private
//! memory not with what has pages of its own from before. A guest chooses the order in which blocks
//! open, so the areas are counted as the kernel makes them, and not the runs of open blocks.

use std::collections::BTreeSet;
use std::io::{self, Error, ErrorKind};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::machine::spec::Backing;

/// Areas of open memory that a guest may have. Each may have one of closed memory behind it.
pub(super) const MAX_AREAS: usize = 16_384;

/// How many areas are open, of all devices of a guest.
#[derive(Debug, Default)]
pub(in crate::memory) struct AreaCount(AtomicUsize);

impl AreaCount {
    /// Counts so many more or less.
    ///
    /// # Errors
    /// There would be too many.
    pub(super) fn add(&self, delta: isize) -> io::Result<()> {
        let after = |areas: usize| {
            let after = areas.checked_add_signed(delta)?;
            (delta <= 0 || after <= MAX_AREAS).then_some(after)
        };
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after) {
            Ok(_) => Ok(()),
            Err(_) => {
                let text = format!("more than {MAX_AREAS} separate areas of memory would be open");
                Err(Error::new(ErrorKind::QuotaExceeded, text))
            }
        }
    }

    /// Undoes [`AreaCount::add`].
    pub(super) fn take_back(&self, delta: isize) {
        // Wraps, and so subtracts what is negative.
        self.0.fetch_sub(delta.cast_unsigned(), Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// So many are not looked at again.
const FEW: usize = 1024;

/// The areas of one device's open memory: never fewer than the kernel has.
///
/// There may be more. Private memory that was cut and is whole again is one area for the kernel if
/// it had pages when it was cut, and only the kernel knows that. So when there are many, the kernel
/// is asked ([`Areas::recounted`]).
pub(super) struct Areas {
    /// On how many sides memory that opens becomes part of what is there.
    sides: usize,
    /// Where they start, in bytes from the start of the region.
    starts: BTreeSet<u64>,
    /// As many as this are counted again.
    recount_at: usize,
}

/// What opening or closing a range changes.
pub(super) struct Change {
    /// Areas that start here are none any more.
    gone: Range<u64>,
    new: Option<u64>,
    /// How many areas there are more, or less.
    pub(super) delta: isize,
}

impl Areas {
    pub(super) fn new(backing: Backing) -> Self {
        let sides = match backing {
            Backing::Hugetlb { .. } => 0,
            Backing::Anonymous => 1,
            Backing::Shared => 2,
        };
        Self { sides, starts: BTreeSet::new(), recount_at: FEW }
    }

    /// What opening `range`, all of which is closed, will change. `is_open` tells of its two
    /// neighbours, by a byte of each.
    pub(super) fn opening(&self, range: &Range<u64>, is_open: impl Fn(u64) -> bool) -> Change {
        let before = self.sides > 0 && range.start.checked_sub(1).is_some_and(&is_open);
        let after = self.sides > usize::from(before) && is_open(range.end);
        let gone = range.end..range.end + u64::from(after);
        self.change(gone, (!before).then_some(range.start))
    }

    /// What closing `range`, all of which is open, will change.
    pub(super) fn closing(&self, range: &Range<u64>, is_open: impl Fn(u64) -> bool) -> Change {
        let cut = is_open(range.end) && !self.starts.contains(&range.end);
        self.change(range.clone(), cut.then_some(range.end))
    }

    /// It has been done.
    pub(super) fn commit(&mut self, change: Change) {
        self.starts.extract_if(change.gone, |_| true).for_each(drop);
        self.starts.extend(change.new);
    }

    /// Whether there are so many that the kernel is to be asked: twice as many as when it was last,
    /// so that a guest does not have it asked all the time.
    pub(super) fn are_many(&self) -> bool {
        self.starts.len() >= self.recount_at
    }

    /// They are these. Returns how many that is more, or less.
    pub(super) fn recounted(&mut self, starts: impl Iterator<Item = u64>) -> isize {
        let before = self.starts.len() as isize;
        self.starts = starts.collect();
        self.recount_at = FEW.max(2 * self.starts.len());
        self.starts.len() as isize - before
    }

    #[cfg(test)]
    pub(super) fn recount_at(&mut self, areas: usize) {
        self.recount_at = areas;
    }

    fn change(&self, gone: Range<u64>, new: Option<u64>) -> Change {
        let fewer = self.starts.range(gone.clone()).count();
        Change { delta: isize::from(new.is_some()) - fewer as isize, gone, new }
    }
}
