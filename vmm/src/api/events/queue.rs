//! What waits to be written, and how much of it may be a guest's doing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::sync::lock;

/// The most lines that wait, beside those that tell of an end or of a guest's doing.
const LINES: usize = 256;
/// The most lines that wait and tell of an end: all partitions that a VM may have, twice.
const END_LINES: usize = 2 * 4096;
/// The most lines that wait and tell of a guest's doing.
const GUEST_LINES: usize = 256;
/// Lines about one subject, of one kind, that a guest brings about in one [`PERIOD`].
const BURST: usize = 16;
/// When a guest may have its burst again, and the last of what was too much is told.
const PERIOD: Duration = Duration::from_secs(1);

/// What a line is about: its source, and an id.
type Subject = (&'static str, String);

/// Lines on their way from any thread to the one that writes.
///
/// What a guest has brought about is told at once as far as its burst reaches. Of what goes beyond,
/// the last line about each subject is held until the period is over, and then told: who reads is
/// never left with a state that was.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    lines: VecDeque<Line>,
    /// How many of `lines` are of which kind.
    waiting: BTreeMap<Kind, usize>,
    /// How many lines of each kind were told in this period.
    told: BTreeMap<Subject, BTreeMap<&'static str, usize>>,
    held: BTreeMap<Subject, Vec<u8>>,
    period_end: Instant,
    lost: u64,
    closed: bool,
}

struct Line {
    text: Vec<u8>,
    kind: Kind,
}

/// Lines of one kind take no room from those of another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Plain,
    End,
    OfGuest,
}

impl Kind {
    /// How many lines of it may wait.
    fn limit(self) -> usize {
        match self {
            Self::Plain => LINES,
            Self::End => END_LINES,
            Self::OfGuest => GUEST_LINES,
        }
    }
}

impl Queue {
    pub(super) fn new() -> Self {
        let state = State {
            lines: VecDeque::new(),
            waiting: BTreeMap::new(),
            told: BTreeMap::new(),
            held: BTreeMap::new(),
            period_end: Instant::now(),
            lost: 0,
            closed: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds a line that no guest can bring about as often as it likes.
    pub(super) fn push(&self, text: Vec<u8>) {
        self.change(|state| state.push(Kind::Plain, text));
    }

    /// Adds a line of kind `event` about `subject`, which a guest may have brought about.
    pub(super) fn push_of_guest(&self, subject: Subject, event: &'static str, text: Vec<u8>) {
        self.change(|state| {
            state.turn(Instant::now());
            let has_room = state.has_room(Kind::OfGuest);
            let told = state.told.entry(subject.clone()).or_default().entry(event).or_default();
            if *told < BURST && has_room {
                *told += 1;
                state.held.remove(&subject);
                state.push(Kind::OfGuest, text);
            } else {
                state.held.insert(subject, text);
            }
        });
    }

    /// Adds the last line about `subject`: what comes under its id later is another.
    pub(super) fn push_end(&self, subject: &Subject, text: Vec<u8>) {
        self.change(|state| {
            state.told.remove(subject);
            state.held.remove(subject);
            state.push(Kind::End, text);
        });
    }

    /// No more is added. What waits is still to be taken.
    pub(super) fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// Waits for the next line, and tells how many were lost since the last: there was no room for
    /// them. `None` when the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<(Vec<u8>, u64)> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            state.turn(now);
            if let Some(line) = state.lines.pop_front() {
                *state.waiting.entry(line.kind).or_default() -= 1;
                return Some((line.text, std::mem::take(&mut state.lost)));
            }
            state = match state.held.is_empty() {
                true if state.closed => return None,
                true => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                false => {
                    let left = state.period_end.saturating_duration_since(now);
                    let woken = self.changed.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        if !state.closed {
            change(&mut state);
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn has_room(&self, kind: Kind) -> bool {
        self.waiting.get(&kind).is_none_or(|&lines| lines < kind.limit())
    }

    fn push(&mut self, kind: Kind, text: Vec<u8>) {
        if self.has_room(kind) {
            *self.waiting.entry(kind).or_default() += 1;
            self.lines.push_back(Line { text, kind });
        } else {
            self.lost += 1;
        }
    }

    /// Begins a new period when one is over; the end of the queue ends the last.
    fn turn(&mut self, now: Instant) {
        if now < self.period_end && !self.closed {
            return;
        }
        self.period_end = now + PERIOD;
        self.told.clear();
        while self.has_room(Kind::OfGuest)
            && let Some((_, text)) = self.held.pop_first()
        {
            self.push(Kind::OfGuest, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: &str = "fn-1";

    fn subject(id: &str) -> Subject {
        ("partition", id.to_owned())
    }

    fn told(queue: &Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop())
            .map(|(text, _)| String::from_utf8(text).unwrap())
            .collect()
    }

    fn flip(queue: &Queue, times: usize) {
        for number in 0..times {
            queue.push_of_guest(subject(SUBJECT), "changed", number.to_string().into_bytes());
        }
    }

    #[test]
    fn a_guest_that_flips_a_state_is_told_of_up_to_its_burst_and_then_with_the_last() {
        let queue = Queue::new();
        flip(&queue, 1000);
        queue.close();
        let mut expected: Vec<_> = (0..BURST).map(|number| number.to_string()).collect();
        expected.push("999".to_owned());
        assert_eq!(told(&queue), expected);
    }

    #[test]
    fn the_last_state_is_told_once_the_period_is_over_though_nothing_more_happens() {
        let queue = Queue::new();
        flip(&queue, 100);
        let start = Instant::now();
        (0..BURST).for_each(|_| assert!(queue.pop().is_some()));
        assert_eq!(queue.pop(), Some((b"99".to_vec(), 0)));
        assert!(start.elapsed() > PERIOD / 2 && start.elapsed() < 10 * PERIOD);
    }

    #[test]
    fn a_guest_takes_no_room_from_what_must_not_be_missed() {
        let queue = Queue::new();
        for id in 0..2 * GUEST_LINES {
            let id = id.to_string();
            queue.push_of_guest(subject(&id), "changed", id.into_bytes());
        }
        (0..LINES).for_each(|_| queue.push(b"refused".to_vec()));
        queue.close();
        let lines: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(lines.iter().map(|(_, lost)| lost).sum::<u64>(), 0);
        assert_eq!(lines.iter().filter(|(text, _)| text == b"refused").count(), LINES);
        assert_eq!(lines.len(), 2 * GUEST_LINES + LINES, "nothing of the others either");
    }

    /// A guest that unplugs everything ends all its partitions at once.
    #[test]
    fn the_ends_of_all_partitions_are_told_beside_all_else() {
        let queue = Queue::new();
        (0..LINES).for_each(|_| queue.push(b"refused".to_vec()));
        for id in 0..4096 {
            queue.push_end(&subject(&id.to_string()), b"released".to_vec());
        }
        (0..2 * END_LINES).for_each(|_| queue.push_end(&subject(SUBJECT), b"more".to_vec()));
        queue.close();
        let lines: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(lines.iter().filter(|(text, _)| text == b"released").count(), 4096);
        assert_eq!(lines.len(), LINES + END_LINES, "there is an end to them too");
    }

    #[test]
    fn the_end_of_a_subject_is_told_at_once_and_another_begins_afresh() {
        let queue = Queue::new();
        flip(&queue, 100);
        queue.push_end(&subject(SUBJECT), b"released".to_vec());
        flip(&queue, 1);
        queue.close();
        let lines = told(&queue);
        assert_eq!(lines[BURST..], ["released", "0"], "what was held is out of date");
    }

    #[test]
    fn what_was_reached_is_told_at_once_and_puts_an_end_to_the_way_there() {
        let queue = Queue::new();
        for _ in 0..100 {
            queue.push_of_guest(("memory", "mem".into()), "resizing", b"resizing".to_vec());
        }
        queue.push_of_guest(("memory", "mem".into()), "resized", b"resized".to_vec());
        queue.close();
        let lines = told(&queue);
        assert_eq!((lines.len(), lines[BURST].as_str()), (BURST + 1, "resized"));
    }
}
