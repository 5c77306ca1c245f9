//! One owner of blocks: what it asked for, what it holds, and where it is in its life.
//!
//! ```text
//!            add              all of it plugged      hint Bound
//!   Absent -------> Requested ---------------> Plugged <------> Bound
//!     ^               |   ^                       ^  |            |
//!     |    not wanted |   | all of it unplugged,  |  | hint       | hint Draining
//!     |               |   | and still wanted      |  v            v
//!     +---------------+   +---------------------- Draining <------+
//!     |                                               |
//!     +------- released, or unplugged and not wanted -+
//! ```
//!
//! `Requested`, `Plugged` and `Absent` follow from what is plugged; the guest's hints move a
//! partition between `Plugged`, `Bound` and `Draining`, which are policy and never accounting.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::Bytes;
use crate::blocks::{BlockRange, Blocks};

/// The number by which guest and host name a partition. Numbers are handed out in ascending
/// order, so that a late message about a gone partition does not hit a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u32);

impl PartitionId {
    /// No partition's number.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {}", self.0)
    }
}

/// An opaque number of the host's, which the guest shows to its userspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// A text that names no partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a name; use 1 to {max} ASCII letters, digits, dots, dashes, underscores",
    max = PartitionName::MAX
)]
pub struct NameError;

/// The host's name of a partition, such as `fn-7`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionName(Arc<str>);

impl PartitionName {
    /// The longest name in bytes.
    pub const MAX: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PartitionName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=Self::MAX).contains(&text.len()) && text.bytes().all(plain);
        fits.then(|| Self(text.into())).ok_or(NameError)
    }
}

impl fmt::Display for PartitionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How often and how much an owner's memory changed. Counts since the machine was made;
/// saturating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Runs of blocks booked as plugged.
    pub plugs: u64,
    /// Runs of blocks booked as unplugged.
    pub unplugs: u64,
}

/// The sizes of one owner: a partition, or the shared memory.
///
/// **Invariant:** `plugged <= peak`, and `plugged` is what the map says of the owner's blocks.
/// `plugged` may exceed `requested`: the host asked for memory back and the guest still holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// What the host wants the owner to have.
    pub requested: Blocks,
    /// What the owner has.
    pub plugged: Blocks,
    /// The most it ever had.
    pub peak: Blocks,
    /// How it came and went.
    pub counters: Counters,
    /// How long the host took to free what was last given back of it, in the request that did so:
    /// more than this owner's where that was UNPLUG_ALL. `None` until there was one.
    pub last_release: Option<Duration>,
    /// How much that was.
    pub last_released: Blocks,
}

impl Account {
    pub(crate) fn plug(&mut self, count: Blocks) {
        self.plugged += count;
        self.peak = self.peak.max(self.plugged);
        self.counters.plugs = self.counters.plugs.saturating_add(1);
    }

    pub(crate) fn unplug(&mut self, count: Blocks, took: Option<Duration>) {
        self.plugged -= count;
        if took.is_some() {
            (self.last_release, self.last_released) = (took, count);
        }
        self.counters.unplugs = self.counters.unplugs.saturating_add(1);
    }

    /// What the host has promised: what it wants the owner to have, or what it cannot take away.
    pub(crate) fn committed(&self) -> Blocks {
        self.requested.max(self.plugged)
    }
}

/// Where a partition is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionState {
    /// Not in the table: not asked for yet, or gone.
    Absent,
    /// Has its place, and the guest has not taken all of it yet.
    Requested,
    /// The guest has taken it.
    Plugged,
    /// The guest says that an instance uses it.
    Bound,
    /// The guest says that its instance has ended and pages remain.
    Draining,
}

impl fmt::Display for PartitionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "absent",
            Self::Requested => "requested",
            Self::Plugged => "plugged",
            Self::Bound => "bound",
            Self::Draining => "draining",
        })
    }
}

impl PartitionState {
    /// The state that `account` leaves: what is plugged decides, hints only refine.
    pub(crate) fn settled(self, account: &Account) -> Self {
        let wanted = account.requested > Blocks::ZERO;
        match (self, account.plugged > Blocks::ZERO) {
            (_, false) if wanted => Self::Requested,
            (_, false) => Self::Absent,
            (Self::Absent | Self::Requested, true) if account.plugged < account.requested => {
                Self::Requested
            }
            (Self::Absent | Self::Requested, true) => Self::Plugged,
            (taken, true) => taken,
        }
    }

    /// The state after a hint, or `None` where the guest can know nothing of the partition yet.
    fn hinted(self, hint: Hint) -> Option<Self> {
        match (self, hint) {
            (Self::Absent | Self::Requested, _) => None,
            (_, Hint::Bound { .. }) => Some(Self::Bound),
            (_, Hint::Draining { .. }) => Some(Self::Draining),
            (_, Hint::Empty) => Some(Self::Plugged),
            (same, Hint::Spilled(_) | Hint::Stuck(_) | Hint::Used(_)) => Some(same),
        }
    }
}

/// What the guest says about a partition (PART_NOTIFY). Believed by policy, never by accounting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// An instance runs in it.
    Bound {
        /// What is in use by now.
        used: Bytes,
    },
    /// Its instance has ended; this much is still in use.
    Draining {
        /// What is not free yet.
        used: Bytes,
    },
    /// Nothing in it is in use, and the guest keeps it.
    Empty,
    /// So much of its instance's memory went to shared memory, for lack of room.
    Spilled(Bytes),
    /// So much could not be moved out of it.
    Stuck(Bytes),
    /// So much is in use, and nothing else has changed.
    Used(Bytes),
}

/// The last numbers of the guest's hints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// In use, at most what is plugged; `None` until the guest has said so.
    pub used: Option<Bytes>,
    /// The most that the guest has said was in use.
    pub used_peak: Bytes,
    /// Gone to shared memory.
    pub spilled: Bytes,
    /// Could not be moved out.
    pub stuck: Bytes,
}

/// What the host wants done with a partition, beside its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// When it is empty the guest says so and keeps it, warm for the next instance, instead of
    /// giving it back.
    pub keep: bool,
    /// The host provides its memory when it is plugged, not when it is touched.
    pub prefault: bool,
}

/// One partition: a set of whole blocks that one function instance owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub(crate) id: PartitionId,
    pub(crate) name: PartitionName,
    pub(crate) cookie: Cookie,
    pub(crate) state: PartitionState,
    pub(crate) account: Account,
    pub(crate) hints: Hints,
    pub(crate) policy: Policy,
    /// When it is to be given back, what is in use is to be moved elsewhere.
    pub(crate) evacuate: bool,
    /// Sorted, disjoint, and no two of them touch.
    pub(crate) extents: Vec<BlockRange>,
    /// The host changed its size since the guest last plugged it: an extra PART_PLUG is a race.
    pub(crate) resized: bool,
}

impl Partition {
    /// The most extents that a partition may be scattered over. It bounds what a guest can make
    /// the monitor keep by giving back every other block.
    pub const MAX_EXTENTS: usize = 256;

    pub(crate) fn new(id: PartitionId, name: PartitionName, cookie: Cookie, size: Blocks) -> Self {
        Self {
            id,
            name,
            cookie,
            state: PartitionState::Requested,
            account: Account { requested: size, ..Account::default() },
            hints: Hints::default(),
            policy: Policy::default(),
            evacuate: false,
            extents: Vec::new(),
            resized: false,
        }
    }

    /// The number by which the guest knows it.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The host's name for it.
    pub fn name(&self) -> &PartitionName {
        &self.name
    }

    /// The host's number for it.
    pub fn cookie(&self) -> Cookie {
        self.cookie
    }

    /// Where it is in its life.
    pub fn state(&self) -> PartitionState {
        self.state
    }

    /// Its sizes and counters.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// What the guest last said of it.
    pub fn hints(&self) -> &Hints {
        &self.hints
    }

    /// What the host wants done with it.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Whether the guest is to move what is in use elsewhere once the partition is not wanted.
    pub fn evacuate(&self) -> bool {
        self.evacuate
    }

    /// The blocks it owns, plugged or not: ascending runs that do not touch.
    pub fn extents(&self) -> &[BlockRange] {
        &self.extents
    }

    /// How many blocks it owns, plugged or not. O(extents).
    pub fn owned(&self) -> Blocks {
        self.extents.iter().map(BlockRange::count).sum()
    }

    /// Whether the host wants it; `false` once its removal was asked for.
    pub fn wanted(&self) -> bool {
        self.account.requested > Blocks::ZERO
    }

    /// Whether the guest has something to do about its size (PART_QUERY's PENDING).
    pub fn is_pending(&self) -> bool {
        self.account.plugged != self.account.requested
    }

    /// What the guest may still plug.
    pub fn missing(&self) -> Blocks {
        self.account.requested - self.account.plugged
    }

    /// What the guest may give back and stay a partition: it must leave what is wanted, and of a
    /// partition that must go as a whole, its last block.
    pub(crate) fn excess(&self) -> Blocks {
        self.account.plugged - self.account.requested.max(Blocks::new(1))
    }

    /// Owned, but neither plugged nor wanted any more.
    pub(crate) fn slack(&self) -> Blocks {
        self.owned() - self.account.committed()
    }

    /// The extent that holds all of a range.
    pub(crate) fn extent_of(&self, range: &BlockRange) -> Option<&BlockRange> {
        let at = self.extents.partition_point(|extent| extent.end() <= range.first());
        self.extents.get(at).filter(|extent| extent.contains(range))
    }

    /// Takes up a hint. `false` when there is nothing plugged that it could be about.
    pub(crate) fn take_hint(&mut self, hint: Hint, plugged: Bytes) -> bool {
        let Some(state) = self.state.hinted(hint) else { return false };
        self.state = state;
        match hint {
            Hint::Bound { used } | Hint::Draining { used } | Hint::Used(used) => {
                let used = used.min(plugged);
                self.hints.used = Some(used);
                self.hints.used_peak = self.hints.used_peak.max(used);
            }
            Hint::Empty => self.hints.used = Some(Bytes::ZERO),
            Hint::Spilled(bytes) => self.hints.spilled = bytes,
            Hint::Stuck(bytes) => self.hints.stuck = bytes,
        }
        true
    }

    /// Brings state and hints in line with the account, of which `plugged` is the size in bytes. A
    /// partition that is gone keeps its last numbers, for who is told of its end.
    pub(crate) fn settle(&mut self, plugged: Bytes) {
        self.state = self.state.settled(&self.account);
        self.hints.used = self.hints.used.map(|used| used.min(plugged));
        if plugged == Bytes::ZERO && self.state != PartitionState::Absent {
            self.hints = Hints::default();
        }
    }
}

/// A partition has changed its state. Passed to the caller's watcher while it happens.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The partition as it is now; when it is `Absent`, as it was last.
    pub partition: &'a Partition,
    /// Its state before.
    pub from: PartitionState,
}

/// Who is told of each change of a partition's state, for events and the log.
pub type Watch<'a> = dyn FnMut(Change<'_>) + 'a;

#[cfg(test)]
mod tests {
    use super::*;
    use PartitionState::{Absent, Bound, Draining, Plugged, Requested};

    fn account(requested: u64, plugged: u64) -> Account {
        let (requested, plugged) = (Blocks::new(requested), Blocks::new(plugged));
        Account { requested, plugged, peak: plugged, ..Account::default() }
    }

    #[test]
    fn what_is_plugged_decides_the_state() {
        for state in [Absent, Requested, Plugged, Bound, Draining] {
            assert_eq!(state.settled(&account(4, 0)), Requested);
            assert_eq!(state.settled(&account(0, 0)), Absent);
        }
        assert_eq!(Requested.settled(&account(4, 3)), Requested);
        assert_eq!(Requested.settled(&account(4, 4)), Plugged);
        assert_eq!(Requested.settled(&account(0, 1)), Plugged);
        for taken in [Plugged, Bound, Draining] {
            assert_eq!(taken.settled(&account(8, 4)), taken);
            assert_eq!(taken.settled(&account(0, 4)), taken);
        }
    }

    #[test]
    fn hints_move_only_what_is_plugged() {
        let bound = Hint::Bound { used: Bytes::ZERO };
        for hint in [bound, Hint::Empty, Hint::Stuck(Bytes::ZERO), Hint::Used(Bytes::ZERO)] {
            assert_eq!(Absent.hinted(hint), None);
            assert_eq!(Requested.hinted(hint), None);
        }
        for taken in [Plugged, Bound, Draining] {
            assert_eq!(taken.hinted(bound), Some(Bound));
            assert_eq!(taken.hinted(Hint::Draining { used: Bytes::ZERO }), Some(Draining));
            assert_eq!(taken.hinted(Hint::Empty), Some(Plugged));
            assert_eq!(taken.hinted(Hint::Spilled(Bytes::ZERO)), Some(taken));
            assert_eq!(taken.hinted(Hint::Used(Bytes::ZERO)), Some(taken));
        }
    }

    #[test]
    fn names_are_short_and_plain() {
        let name: PartitionName = "fn-7_a.B".parse().unwrap();
        assert_eq!((name.as_str(), name.to_string()), ("fn-7_a.B", "fn-7_a.B".to_string()));
        assert!("x".repeat(64).parse::<PartitionName>().is_ok());
        for text in ["", "a b", "a/b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(text.parse::<PartitionName>(), Err(NameError), "{text:?}");
        }
    }

    #[test]
    fn states_and_ids_read_well() {
        let shown = [Absent, Requested, Plugged, Bound, Draining].map(|state| state.to_string());
        assert_eq!(shown, ["absent", "requested", "plugged", "bound", "draining"]);
        assert_eq!(PartitionId(7).to_string(), "partition 7");
    }

    #[test]
    fn counters_saturate() {
        let mut account = account(4, 0);
        account.counters.plugs = u64::MAX;
        account.plug(Blocks::new(4));
        assert_eq!(account.counters.plugs, u64::MAX);
        account.unplug(Blocks::new(3), None);
        assert_eq!((account.plugged, account.peak), (Blocks::new(1), Blocks::new(4)));
    }
}
