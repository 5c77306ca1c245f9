//! `release_cost`: what the monitor's part of a release costs beside the bare system call that
//! frees the same memory.
//!
//! No guest and no KVM, so it is best run on a machine that is not emulated: `--here` of `cargo
//! xtask bench`. Memory of a virtio-mem region is opened, touched page by page and released
//! as a guest's request would have it released; next to it an ordinary anonymous mapping of the
//! same size is touched in the same way and unmapped. Both in turn, with small and with huge pages.
//! Meanwhile another thread asks the kernel for other pages of this process, as a vCPU does that
//! runs another function and touches fresh memory: how long it waits at most is shown too.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use benches::comparison::{Comparison, Merit};
use benches::output::Output;
use benches::unit::Unit;
use clap::Parser;
use devices::guest_memory::GuestMemory;
use devices::readers::Readers;
use devices::virtio::mem::HostBlocks;
use guest_tests::MIB;
use memctl::Bytes;
use memmap2::{Advice, MmapMut};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::machine::spec::{Backing, Memory};
use vmm::memory::{HotplugMemory, Room, allocate};

const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;

/// Where the region is in the guest: anywhere.
const START: u64 = 4 << 30;

const OURS: &str = "Tessera, release";
const BARE: &str = "munmap alone";

/// What the project promises.
const GOAL: f64 = 1.2;

/// Between two page faults of the other thread.
const PAUSE: Duration = Duration::from_micros(100);

/// What one release cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    time: Duration,
    /// The longest that a page fault elsewhere took meanwhile.
    wait: Duration,
}

/// How to run the measurement.
#[derive(Parser)]
#[command(about = "Freeing memory on the host: a release against the bare system call")]
struct Options {
    #[command(flatten)]
    output: Output,
    /// How often each is measured.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Sizes in MiB.
    #[arg(long, default_value = "128,1024", value_delimiter = ',')]
    sizes: Vec<u64>,
}

fn main() -> ExitCode {
    benches::exit("release_cost", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let mut merits = Vec::new();
    for (huge, pages) in [(false, "4 KiB pages"), (true, "huge pages")] {
        for &mib in &options.sizes {
            let size = usize::try_from(mib * MIB)?;
            let (ours, bare) = measure(size, huge, options.runs)?;
            let merit = |name: &str, value: fn(&Cost) -> Duration| {
                let seconds =
                    |costs: &[Cost]| costs.iter().map(|cost| value(cost).as_secs_f64()).collect();
                let values = [(OURS, seconds(&ours)), (BARE, seconds(&bare))];
                Merit::new(name, Unit::Seconds, values)
            };
            let name = format!("{mib} MiB, {pages}");
            merits.push(merit(&name, |cost| cost.time)?.promised(BARE, GOAL));
            let name = format!("{name}: the longest page fault elsewhere meanwhile");
            merits.push(merit(&name, |cost| cost.wait)?);
        }
    }
    let how = format!("Medians of {} runs each, in turn; every page touched.", options.runs);
    let title = "The host's part of a release";
    Comparison::new(&options.output, "release_cost", title, how, merits).publish(&options.output)
}

/// The costs of both, one run of each to warm up.
fn measure(size: usize, huge: bool, runs: u32) -> Result<(Vec<Cost>, Vec<Cost>)> {
    let (memory, mut blocks) = region(size, huge)?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..=runs {
        ours.push(release(&memory, &mut blocks, size)?);
        bare.push(unmap(size, huge)?);
    }
    drop(ours.drain(..1));
    drop(bare.drain(..1));
    Ok((ours, bare))
}

/// The room of a virtio-mem device, all closed.
fn region(size: usize, huge: bool) -> Result<(Arc<GuestMemory>, HotplugMemory)> {
    let memory = Memory {
        backing: Backing::Anonymous,
        prefault: false,
        thp: huge,
        mergeable: false,
        reserve: false,
        host_node: None,
    };
    let range = START..START + size as u64;
    let room = Room { range, memory: &memory, block: Some(Bytes::mib(2)) };
    let mut ram = allocate(&[room], &Arc::new(Readers::default()))?;
    let blocks = ram.hotplug.pop().context("no room was made")?;
    Ok((ram.memory, blocks))
}

fn release(memory: &GuestMemory, blocks: &mut HotplugMemory, size: usize) -> Result<Cost> {
    blocks.open(0..size as u64)?;
    for at in (0..size).step_by(PAGE) {
        memory.write_obj(1u8, GuestAddress(START + at as u64))?;
    }
    let cost = watched(|| Ok(blocks.release(0..size as u64)?))?;
    ensure!(memory.read_obj::<u8>(GuestAddress(START)).is_err(), "released memory can be read");
    Ok(cost)
}

fn unmap(size: usize, huge: bool) -> Result<Cost> {
    let mut mapping = MmapMut::map_anon(size + HUGE_PAGE)?;
    mapping.advise(if huge { Advice::HugePage } else { Advice::NoHugePage })?;
    let skip = mapping.as_ptr().align_offset(HUGE_PAGE);
    for at in (skip..skip + size).step_by(PAGE) {
        mapping[at] = 1;
    }
    watched(|| {
        drop(mapping);
        Ok(())
    })
}

/// What `work` costs, and what it costs a page fault elsewhere.
///
/// Linux resolves a vCPU's page fault, as it does an access through `/proc/self/mem`, with the lock
/// of the whole address space.
fn watched(work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let elsewhere = MmapMut::map_anon(PAGE)?;
    let (address, memory) = (elsewhere.as_ptr() as u64, File::open("/proc/self/mem")?);
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let prober = scope.spawn(|| -> Result<Duration> {
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Acquire) {
                let start = Instant::now();
                memory.read_at(&mut [0], address)?;
                if ready.swap(true, Ordering::AcqRel) {
                    longest = longest.max(start.elapsed());
                }
                thread::sleep(PAUSE);
            }
            Ok(longest)
        });
        while !ready.load(Ordering::Acquire) && !prober.is_finished() {
            thread::yield_now();
        }
        let start = Instant::now();
        let worked = work();
        let time = start.elapsed();
        done.store(true, Ordering::Release);
        let wait = prober.join().map_err(|_| anyhow!("the prober panicked"))??;
        worked.map(|()| Cost { time, wait })
    })
}
