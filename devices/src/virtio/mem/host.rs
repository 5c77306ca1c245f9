//! What the device asks of the host, and how a plan of several runs is carried out whole or not at
//! all.

use std::io;
use std::ops::Range;

use memctl::{BlockRange, Blocks, Geometry};

/// The host's memory behind the region of one device. `vmm` implements it.
///
/// Called on the device's thread, under the device's lock: it must not call a
/// [`MemHandle`](super::MemHandle). Ranges are in bytes from the start of the region, whole blocks
/// inside it. The device opens only what is closed and releases only what is open, all of it.
pub trait HostBlocks: Send {
    /// Makes `range` accessible to guest and monitor; it reads as zero.
    ///
    /// # Errors
    /// The host refused. Nothing has changed.
    fn open(&mut self, range: Range<u64>) -> io::Result<()>;

    /// As [`HostBlocks::open`], with all of the memory provided now, so that no touch waits for the
    /// host or finds it out of memory. A host that can't do so provides it on touch.
    ///
    /// # Errors
    /// The host refused, or has too little memory. Nothing has changed.
    fn open_populated(&mut self, range: Range<u64>) -> io::Result<()> {
        self.open(range)
    }

    /// Closes `range` to guest and monitor and frees its memory on the host, checked.
    ///
    /// # Errors
    /// The host refused, or did not free. The range is accessible as before; what was in it, which
    /// the guest has given up, may be gone.
    fn release(&mut self, range: Range<u64>) -> io::Result<()>;
}

/// What a host can do with a run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// [`HostBlocks::open`].
    Open,
    /// [`HostBlocks::open_populated`].
    OpenPopulated,
    /// [`HostBlocks::release`].
    Release,
}

impl Action {
    fn inverse(self) -> Self {
        match self {
            Self::Open | Self::OpenPopulated => Self::Release,
            Self::Release => Self::Open,
        }
    }
}

/// The host did not do its part. Nothing was booked.
#[derive(Debug, thiserror::Error)]
#[error(
    "the host can't change the memory ({unsettled} runs of it are not as the guest knows them)"
)]
pub(super) struct CarryError {
    /// Runs that could not be put back either.
    pub(super) unsettled: usize,
    pub(super) source: io::Error,
}

/// Carries plans out.
///
/// When a run fails, those before it are put back. When even that fails, a run stays open though the
/// books say unplugged, or closed though they say plugged. The former is memory that the guest
/// should not have; the latter is safe for the host, but a guest that touches it has reached for
/// closed memory. So nothing more is plugged or unplugged until the host has let the run be put
/// back. It is tried again before each later plan, which keeps the list as short as one plan.
///
/// A run that was released and opened again has lost its content: only UNPLUG_ALL and PART_RELEASE
/// have several runs, and their driver has nothing in them that it uses.
pub(super) struct Carrier {
    host: Box<dyn HostBlocks>,
    geometry: Geometry,
    unsettled: Vec<(Action, Range<u64>)>,
}

impl Carrier {
    pub(super) fn new(host: Box<dyn HostBlocks>, geometry: Geometry) -> Self {
        Self { host, geometry, unsettled: Vec::new() }
    }

    /// Where the region is.
    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Applies `action` to each of `runs`, or to none: one host call per run, however long. `runs`
    /// gives the same runs each time it is called.
    ///
    /// # Errors
    /// [`CarryError`]: all is as before, as far as the host let it be.
    pub(super) fn carry<I>(
        &mut self,
        action: Action,
        runs: impl Fn() -> I,
    ) -> Result<(), CarryError>
    where
        I: Iterator<Item = BlockRange>,
    {
        self.settle().map_err(|source| self.failed(source))?;
        for (done, run) in runs().enumerate() {
            if let Err(source) = self.apply(action, self.bytes(&run)) {
                self.undo(action, runs().take(done));
                return Err(self.failed(source));
            }
        }
        Ok(())
    }

    fn undo(&mut self, action: Action, done: impl Iterator<Item = BlockRange>) {
        for run in done {
            let bytes = self.bytes(&run);
            if self.apply(action.inverse(), bytes.clone()).is_err() {
                self.unsettled.push((action.inverse(), bytes));
            }
        }
    }

    /// Puts back what could not be put back before.
    fn settle(&mut self) -> io::Result<()> {
        while let Some((action, bytes)) = self.unsettled.last().cloned() {
            self.apply(action, bytes)?;
            self.unsettled.pop();
        }
        Ok(())
    }

    fn apply(&mut self, action: Action, bytes: Range<u64>) -> io::Result<()> {
        match action {
            Action::Open => self.host.open(bytes),
            Action::OpenPopulated => self.host.open_populated(bytes),
            Action::Release => self.host.release(bytes),
        }
    }

    fn failed(&self, source: io::Error) -> CarryError {
        CarryError { unsettled: self.unsettled.len(), source }
    }

    fn bytes(&self, run: &BlockRange) -> Range<u64> {
        let offset = |block: u64| self.geometry.bytes(Blocks::new(block)).as_u64();
        offset(run.first().as_u64())..offset(run.end().as_u64())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use memctl::{Bytes, Cookie, Layout, Mode, PartitionId, Partitioner, PlugState, Policy};

    use super::*;

    const BLOCK: u64 = 2 << 20;

    #[derive(Default)]
    struct State {
        open: Vec<u64>,
        /// The calls that are to fail, counted from the last [`Host::fail`] on.
        failing: Vec<usize>,
        calls: usize,
    }

    #[derive(Clone, Default)]
    struct Host(Arc<Mutex<State>>);

    impl Host {
        fn call(&self, range: Range<u64>, open: bool) -> io::Result<()> {
            let mut state = self.0.lock().unwrap();
            state.calls += 1;
            if state.failing.contains(&(state.calls - 1)) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            for block in range.start / BLOCK..range.end / BLOCK {
                assert_ne!(state.open.contains(&block), open, "block {block} twice");
                state.open.retain(|other| *other != block);
                state.open.extend(open.then_some(block));
            }
            Ok(())
        }

        fn open_blocks(&self) -> usize {
            self.0.lock().unwrap().open.len()
        }

        fn fail(&self, numbers: &[usize]) {
            let mut state = self.0.lock().unwrap();
            (state.failing, state.calls) = (numbers.to_vec(), 0);
        }
    }

    impl HostBlocks for Host {
        fn open(&mut self, range: Range<u64>) -> io::Result<()> {
            self.call(range, true)
        }

        fn release(&mut self, range: Range<u64>) -> io::Result<()> {
            self.call(range, false)
        }
    }

    /// A partition of eight blocks in four runs, not plugged, which no plain request can make.
    fn scattered() -> (Partitioner, PartitionId, Carrier, Host) {
        let geometry = Geometry::new(0, Bytes::new(BLOCK), Bytes::new(15 * BLOCK)).unwrap();
        let layout = Layout { geometry, shared_area: Blocks::ZERO, max_partitions: 16 };
        let mut partitioner = Partitioner::new(layout);
        partitioner.set_mode(Mode::Channel);
        let add = |partitioner: &mut Partitioner, name: String, size| {
            let (name, size) = (name.parse().unwrap(), Blocks::new(size));
            partitioner.add(name, Cookie(0), size, Policy::default(), None, &mut |_| {}).unwrap()
        };
        let walls: Vec<_> = (0..5)
            .map(|at| {
                let gap = add(&mut partitioner, format!("gap-{at}"), 2);
                add(&mut partitioner, format!("wall-{at}"), 1);
                gap
            })
            .collect();
        walls.iter().take(4).for_each(|gap| {
            partitioner.remove(*gap, &mut |_| {}).unwrap();
        });
        let id = add(&mut partitioner, "scattered".into(), 8);
        let host = Host::default();
        let carrier = Carrier::new(Box::new(host.clone()), geometry);
        (partitioner, id, carrier, host)
    }

    #[test]
    fn a_plan_of_several_runs_fails_as_a_whole_at_any_position() {
        for position in 0..4 {
            let (mut partitioner, id, mut carrier, host) = scattered();
            let plan = partitioner.plan_plug_partition(id).unwrap();
            assert_eq!(plan.runs().count(), 4);
            host.fail(&[position]);
            let error = carrier.carry(Action::Open, || plan.runs()).unwrap_err();
            assert_eq!((error.unsettled, host.open_blocks()), (0, 0), "run {position}");
            carrier.carry(Action::Open, || plan.runs()).unwrap();
            assert_eq!(host.open_blocks(), 8);

            host.fail(&[position]);
            carrier.carry(Action::Release, || plan.runs()).unwrap_err();
            assert_eq!(host.open_blocks(), 8);
        }
    }

    #[test]
    fn what_stays_open_wrongly_is_closed_before_anything_else_is_opened() {
        let (mut partitioner, id, mut carrier, host) = scattered();
        let plan = partitioner.plan_plug_partition(id).unwrap();
        // The last run, and the closing of the first and the third.
        host.fail(&[3, 4, 6]);
        let error = carrier.carry(Action::Open, || plan.runs()).unwrap_err();
        assert_eq!((error.unsettled, host.open_blocks()), (2, 4));
        assert!(error.to_string().contains("2 runs"));

        host.fail(&[0]);
        let error = carrier.carry(Action::Open, || plan.runs()).unwrap_err();
        assert_eq!((error.unsettled, host.open_blocks()), (2, 4), "nothing new was opened");
        host.fail(&[1]);
        let error = carrier.carry(Action::Open, || plan.runs()).unwrap_err();
        assert_eq!((error.unsettled, host.open_blocks()), (1, 2), "one is settled");

        host.fail(&[]);
        carrier.carry(Action::Open, || plan.runs()).unwrap();
        assert_eq!(host.open_blocks(), 8);
        plan.commit(&mut |_| {});
        let all = partitioner.geometry().all();
        assert_eq!(partitioner.state(&all), Ok(PlugState::Mixed));
    }
}
