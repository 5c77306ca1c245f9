//! The host fails a request of the channel: all is as before, or as after.

use memctl::{Answer, Mode, PartitionState, Partitioner};

use super::super::books::{Books, Failure, Traces};
use super::super::counters::Counters;
use super::super::host::Carrier;
use super::super::record::Record;
use super::super::reply::Detail;
use super::super::request::{Named, Request};
use super::channel_driver::*;
use super::*;

/// Number of runs of [`Rig::scattered`].
const RUNS: usize = 4;

/// What must not change: blocks, sizes, what is told.
fn picture(rig: &Rig) -> (Vec<bool>, [u64; 3], u8, Vec<PartitionView>) {
    let open = rig.host().open.clone();
    let generation = rig.device.config().generation();
    let sizes = [PLUGGED, REQUESTED, PART_GEN].map(|offset| rig.config(offset));
    (open, sizes, generation, rig.handle.partitions())
}

#[test]
fn a_plug_that_fails_at_any_run_is_busy_and_changes_nothing() {
    for position in 0..RUNS {
        let mut rig = Rig::channel();
        let id = rig.scattered();
        let (before, next) = (picture(&rig), rig.host().calls.len());
        rig.events();
        rig.host().fails = Box::new(move |call| call == next + position);
        assert_eq!(rig.part_plug(id), Err(BUSY), "run {position}");
        assert_eq!((picture(&rig), rig.events()), (before, vec![]));
        rig.assert_agreement();
        assert_eq!(rig.part_plug(id).unwrap().runs.len(), RUNS, "the next try");
        rig.assert_agreement();
    }
}

#[test]
fn a_release_that_fails_at_any_run_is_busy_and_changes_nothing() {
    for position in 0..RUNS {
        let mut rig = Rig::channel();
        let id = rig.scattered();
        rig.part_plug(id).unwrap();
        let (before, next) = (picture(&rig), rig.host().calls.len());
        rig.events();
        rig.host().fails = Box::new(move |call| call == next + position);
        assert_eq!(rig.release(id), BUSY, "run {position}");
        assert_eq!((picture(&rig), rig.events()), (before, vec![]));
        assert_eq!((rig.counter("releases"), rig.counter("host_failures")), (0, 1));
        rig.assert_agreement();
        assert_eq!((rig.release(id), rig.config(PLUGGED)), (ACK, 0), "the next try");
        rig.assert_agreement();
    }
}

#[test]
fn a_release_that_can_t_be_put_back_is_busy_until_it_can() {
    for position in 1..RUNS {
        let mut rig = Rig::channel();
        let id = rig.scattered();
        rig.part_plug(id).unwrap();
        let next = rig.host().calls.len();
        rig.host().fails = Box::new(move |call| call >= next + position);
        assert_eq!(rig.release(id), BUSY);
        // The safe side: nothing is open that the guest does not have.
        assert_eq!(rig.host().open_blocks(), 8 - 2 * position as u64);
        let other = rig.query(0, PENDING).unwrap().id;
        assert_eq!((rig.part_plug(other), rig.release(id)), (Err(BUSY), BUSY));
        assert_eq!(rig.view(id).unwrap().state, PartitionState::Plugged);
        rig.host().fails = Box::new(|_| false);
        assert_eq!((rig.release(id), rig.host().open_blocks()), (ACK, 0));
        rig.assert_agreement();
    }
}

#[test]
fn a_shrink_that_fails_is_busy_and_changes_nothing() {
    let mut rig = Rig::channel();
    let id = rig.taken("fn-1", 8);
    rig.handle.resize_partition(id, size(4), None).unwrap();
    let before = picture(&rig);
    rig.fail_calls(&[0]);
    assert_eq!(rig.shrink(id, 2, 2), BUSY);
    assert_eq!(picture(&rig), before);
    assert_eq!(rig.shrink(id, 2, 2), ACK);
    rig.assert_agreement();
}

#[test]
fn a_host_without_memory_to_prefault_is_busy() {
    let mut rig = Rig::channel();
    let (name, policy) = ("fn-1".parse().unwrap(), Policy { keep: false, prefault: true });
    let id = rig.handle.add_partition(name, Cookie(0), size(4), policy, None).unwrap().id;
    rig.fail_calls(&[0]);
    assert_eq!((rig.part_plug(id), rig.config(PLUGGED)), (Err(BUSY), 0));
    assert_eq!(rig.part_plug(id).unwrap().runs, [(0, 4)]);
    assert_eq!(rig.host().populated, 2);
}

/// A host that can do everything.
struct Willing;

impl HostBlocks for Willing {
    fn open(&mut self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn release(&mut self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }
}

/// Books for 1024 blocks with one partition of all of them, for which the rig has no room.
struct Large {
    books: Books,
    record: Record,
    id: PartitionId,
}

impl Large {
    fn new(mode: Mode) -> Self {
        let blocks = 1024;
        let geometry = Geometry::new(BASE, size(1), size(blocks)).unwrap();
        let mut partitioner = Partitioner::new(Layout { geometry, ..layout(0) });
        partitioner.set_mode(mode);
        let (name, size, policy) =
            ("fn-1".parse().unwrap(), Blocks::new(blocks), Policy::default());
        let id = partitioner.add(name, Cookie(0), size, policy, None, &mut |_| {}).unwrap();
        let carrier = Carrier::new(Box::new(Willing), geometry);
        Self { books: Books::new(partitioner, carrier), record: Record::new(), id }
    }

    /// The answer, and the number of runs where it has some.
    fn ask(&mut self, request: Request) -> (Answer, Option<usize>) {
        let (counters, watch) = (Counters::default(), &mut |_: memctl::Change<'_>| {});
        let mut traces = Traces { counters: &counters, record: &mut self.record, watch };
        match self.books.carry_out(request, &mut traces) {
            Ok(response) => {
                let runs = (response.detail == Detail::Record)
                    .then(|| self.record.as_bytes().1.len() / 16);
                (response.answer, runs)
            }
            Err(failure) => (Failure::answer(&failure), None),
        }
    }

    fn query(&mut self) -> (Answer, Option<usize>) {
        self.ask(Request::PartQuery { from: PartitionId(0), pending: false })
    }
}

fn block(index: u64) -> Named {
    Named { addr: BASE + index * BLOCK, count: 1 }
}

#[test]
fn a_shrink_into_more_than_256_pieces_is_busy() {
    let mut large = Large::new(Mode::Channel);
    let id = large.id;
    assert_eq!(large.ask(Request::PartPlug(id)), (Answer::Ack, Some(1)));
    let one = Blocks::new(1);
    large.books.partitioner.resize(id, one, None, &mut |_| {}).unwrap();
    for split in 1..256 {
        assert_eq!(large.ask(Request::PartShrink(id, block(2 * split))), (Answer::Ack, None));
    }
    assert_eq!(large.query(), (Answer::Ack, Some(256)));
    assert_eq!(large.ask(Request::PartShrink(id, block(600))), (Answer::Busy, None));
    assert_eq!(large.ask(Request::PartShrink(id, block(1023))), (Answer::Ack, None), "at an end");
    assert_eq!(large.query(), (Answer::Ack, Some(256)));
    assert_eq!(large.ask(Request::PartRelease(id)), (Answer::Ack, None));
}

/// A driver that plugs by address can leave more pieces than a record has room for.
#[test]
fn more_runs_than_a_record_holds_are_busy_and_can_be_released() {
    let mut large = Large::new(Mode::Plain);
    let id = large.id;
    for index in 0..256 {
        assert_eq!(large.ask(Request::Plug(block(2 * index))), (Answer::Ack, None));
    }
    large.books.partitioner.set_mode(Mode::Channel);
    assert_eq!(large.query(), (Answer::Ack, Some(256)));

    large.books.partitioner.set_mode(Mode::Plain);
    assert_eq!(large.ask(Request::Plug(block(1000))), (Answer::Ack, None));
    large.books.partitioner.set_mode(Mode::Channel);
    assert_eq!(large.query(), (Answer::Busy, None));
    assert_eq!(large.ask(Request::PartPlug(id)), (Answer::Busy, None));
    assert_eq!(large.books.partitioner.plugged_size(), size(257), "nothing was done");
    assert_eq!(large.ask(Request::PartRelease(id)), (Answer::Ack, None));
    assert_eq!(large.books.partitioner.plugged_size(), size(0));
}
