//! What a guest's request costs the partitioner: check, runs and commit, without the host's part.
//! The region has 1 TiB in 2 MiB blocks, and the promise is 2 microseconds whatever its size.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use memctl::{
    BlockRange, Blocks, Bytes, Cookie, Geometry, Layout, Mode, PartitionId, Partitioner, Policy,
};

const BLOCK: Bytes = Bytes::mib(2);
/// The most that placement cuts a partition into.
const PIECES: u32 = 16;
const SIZES: [Bytes; 4] = [Bytes::gib(1), Bytes::gib(16), Bytes::gib(256), Bytes::gib(1024)];

fn geometry(size: Bytes) -> Geometry {
    Geometry::new(1 << 40, BLOCK, size).expect("a power of two is a whole number of blocks")
}

fn shared_only(size: Bytes) -> Partitioner {
    let mut memory = Partitioner::new(Layout::shared_only(geometry(size)));
    let blocks = memory.geometry().blocks();
    memory.resize_shared(blocks, None).expect("the region is its shared area");
    memory
}

/// A channel's region with `others` small partitions that are plugged, and one of `size`.
fn with_partitions(others: u32, size: Blocks) -> (Partitioner, PartitionId) {
    let layout = Layout {
        geometry: geometry(Bytes::gib(1024)),
        shared_area: Blocks::ZERO,
        max_partitions: others + 1,
    };
    let mut memory = Partitioner::new(layout);
    memory.set_mode(Mode::Channel);
    for other in 0..others {
        let id = add(&mut memory, &format!("fn-{other}"), Blocks::new(1));
        plug_partition(&mut memory, id);
    }
    let id = add(&mut memory, "measured", size);
    (memory, id)
}

fn add(memory: &mut Partitioner, name: &str, size: Blocks) -> PartitionId {
    let name = name.parse().expect("a plain name");
    memory
        .add(name, Cookie(0), size, Policy::default(), None, &mut |_| {})
        .expect("the region has room")
}

fn plug_partition(memory: &mut Partitioner, id: PartitionId) {
    let plan = memory.plan_plug_partition(id).expect("a partition that waits to be plugged");
    plan.runs().for_each(|run| _ = black_box(run));
    plan.commit(&mut |_| {});
}

fn plug_then_unplug(memory: &mut Partitioner, range: BlockRange) {
    let plan = memory.plan_plug(range).expect("unplugged blocks");
    plan.runs().for_each(|run| _ = black_box(run));
    plan.commit(&mut |_| {});
    let plan = memory.plan_unplug(range).expect("plugged blocks");
    plan.runs().for_each(|run| _ = black_box(run));
    plan.commit(&mut |_| {});
}

/// One PLUG and one UNPLUG of the same blocks: half of it is a request.
fn by_number_of_blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("plug+unplug/1TiB/blocks");
    let mut memory = shared_only(Bytes::gib(1024));
    for count in [1, 64, 512, 4096, 65535] {
        let range = BlockRange::within(memory.geometry(), 100_001, count).expect("inside");
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| plug_then_unplug(&mut memory, black_box(range)));
        });
    }
    group.finish();
}

/// The same 64 blocks, 128 MiB, in regions of different size.
fn by_size_of_region(c: &mut Criterion) {
    let mut group = c.benchmark_group("plug+unplug/64-blocks/region");
    for size in SIZES {
        let mut memory = shared_only(size);
        let range = BlockRange::within(memory.geometry(), 101, 64).expect("inside");
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| plug_then_unplug(&mut memory, black_box(range)));
        });
    }
    group.finish();
}

/// A full region with a partition in the most pieces that placement makes, waiting to be plugged.
fn scattered() -> Partitioner {
    let mut layout = Layout::shared_only(geometry(Bytes::gib(1024)));
    (layout.shared_area, layout.max_partitions) = (Blocks::ZERO, 2 * PIECES + 2);
    let mut memory = Partitioner::new(layout);
    memory.set_mode(Mode::Channel);
    let gaps: Vec<_> = (0..PIECES)
        .map(|at| {
            let gap = add(&mut memory, &format!("gap-{at}"), Blocks::new(64));
            add(&mut memory, &format!("wall-{at}"), Blocks::new(1));
            gap
        })
        .collect();
    let rest = layout.geometry.blocks() - Blocks::new(65 * u64::from(PIECES));
    add(&mut memory, "rest", rest);
    for gap in gaps {
        memory.remove(gap, &mut |_| {}).expect("a partition");
    }
    add(&mut memory, "measured", Blocks::new(64 * u64::from(PIECES)));
    memory
}

/// PART_PLUG and PART_RELEASE among many partitions, and of one in many pieces.
fn partitions(c: &mut Criterion) {
    let mut group = c.benchmark_group("1TiB/4095-partitions");
    for size in [64, 256, 65536, 500_000] {
        let size = Blocks::new(size);
        let (waiting, _) = with_partitions(4095, size);
        plug_and_release(&mut group, &size.to_string(), &waiting, size);
    }
    group.finish();
    let mut group = c.benchmark_group("1TiB/pieces");
    let size = Blocks::new(64 * u64::from(PIECES));
    plug_and_release(&mut group, &PIECES.to_string(), &scattered(), size);
    group.finish();
}

/// Both requests of the partition that was added last, of `size`, which waits to be plugged. The add
/// in between is not measured.
fn plug_and_release(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    waiting: &Partitioner,
    size: Blocks,
) {
    let mut taken = waiting.clone();
    let id = last(&taken);
    plug_partition(&mut taken, id);
    group.bench_function(BenchmarkId::new("part_plug", name), |b| {
        let mut memory = waiting.clone();
        b.iter_custom(|iterations| {
            timed(iterations, &mut memory, plug_partition, |memory| {
                release(memory, last(memory));
                add(memory, "measured", size);
            })
        });
    });
    group.bench_function(BenchmarkId::new("part_release", name), |b| {
        let mut memory = taken.clone();
        b.iter_custom(|iterations| {
            timed(iterations, &mut memory, release, |memory| {
                let id = add(memory, "measured", size);
                plug_partition(memory, id);
            })
        });
    });
}

fn release(memory: &mut Partitioner, id: PartitionId) {
    let plan = memory.plan_release(id).expect("a plugged partition");
    plan.runs().for_each(|run| _ = black_box(run));
    plan.commit(&mut |_| {});
}

/// The partition that was added last.
fn last(memory: &Partitioner) -> PartitionId {
    let ids = memory.partitions().map(memctl::Partition::id);
    ids.max().expect("there are partitions")
}

/// The time that `measured` takes on the last partition, with `restored` after each, not counted.
fn timed(
    iterations: u64,
    memory: &mut Partitioner,
    measured: impl Fn(&mut Partitioner, PartitionId),
    restored: impl Fn(&mut Partitioner),
) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..iterations {
        let id = last(memory);
        let start = std::time::Instant::now();
        measured(memory, black_box(id));
        spent += start.elapsed();
        restored(memory);
    }
    spent
}

criterion_group!(accounting, by_number_of_blocks, by_size_of_region, partitions);
criterion_main!(accounting);
