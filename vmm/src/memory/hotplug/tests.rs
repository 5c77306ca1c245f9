use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::thread;

use devices::guest_memory::GuestMemory;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use vm_memory::{Bytes as _, GuestAddress};

use super::areas::MAX_AREAS;
use super::*;
use crate::memory::{GuestRam, Room, allocate};

const BLOCK: u64 = 2 << 20;
const START: u64 = 4 << 30;

fn ram(backing: Backing, blocks: u64) -> (Arc<GuestMemory>, HotplugMemory) {
    let (memory, mut hotplug) = devices(backing, &[blocks]);
    (memory, hotplug.remove(0))
}

/// Devices of so many blocks, one behind the other.
fn devices(backing: Backing, blocks: &[u64]) -> (Arc<GuestMemory>, Vec<HotplugMemory>) {
    let memory = Memory { backing, ..Memory::plain() };
    let mut rooms = vec![Room { range: 0..BLOCK, memory: &memory, block: None }];
    let mut start = START;
    for count in blocks {
        let range = start..start + count * BLOCK;
        start = range.end;
        rooms.push(Room { range, memory: &memory, block: Some(Bytes::new(BLOCK)) });
    }
    let GuestRam { memory, hotplug } = allocate(&rooms, &Arc::default()).unwrap();
    (memory, hotplug)
}

fn blocks(range: Range<u64>) -> Range<u64> {
    range.start * BLOCK..range.end * BLOCK
}

fn at(block: u64) -> GuestAddress {
    GuestAddress(START + block * BLOCK)
}

/// Resident bytes of this process in the area that begins with `block`, as the kernel counts them.
fn resident(hotplug: &HotplugMemory, block: u64) -> u64 {
    let needle = format!("{:x}-", hotplug.mapping.host_address() as u64 + block * BLOCK);
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let entry = maps.split_once(&needle).unwrap().1;
    let line = entry.lines().find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn memory_is_out_of_reach_until_opened_and_again_after_release() {
    for backing in [Backing::Anonymous, Backing::Shared] {
        let (memory, mut hotplug) = ram(backing, 8);
        memory.write_obj(1u64, at(2)).unwrap_err();
        hotplug.open(blocks(2..5)).unwrap();
        memory.write_obj(7u64, at(2)).unwrap();
        memory.write_obj(7u64, at(5)).unwrap_err();
        hotplug.release(blocks(2..3)).unwrap();
        memory.read_obj::<u64>(at(2)).unwrap_err();
        memory.write_obj(8u64, at(3)).unwrap();
    }
}

#[test]
fn the_next_owner_reads_zeros() {
    for backing in [Backing::Anonymous, Backing::Shared] {
        let (memory, mut hotplug) = ram(backing, 4);
        hotplug.open(blocks(0..4)).unwrap();
        memory.write_slice(&[0x5a; 4096], at(1)).unwrap();
        hotplug.release(blocks(1..2)).unwrap();
        hotplug.open(blocks(1..2)).unwrap();
        assert_eq!(memory.read_obj::<u64>(at(1)).unwrap(), 0);
    }
}

#[test]
fn released_private_memory_is_gone_from_the_process() {
    let (memory, mut hotplug) = ram(Backing::Anonymous, 8);
    hotplug.open(blocks(0..8)).unwrap();
    memory.write_slice(&vec![1; 8 * BLOCK as usize], at(0)).unwrap();
    assert_eq!(resident(&hotplug, 0), 8 * BLOCK);
    hotplug.release(blocks(0..8)).unwrap();
    assert_eq!(resident(&hotplug, 0), 0);
}

#[test]
fn memory_opened_populated_is_there_before_it_is_touched() {
    for backing in [Backing::Anonymous, Backing::Shared] {
        let (_memory, mut hotplug) = ram(backing, 8);
        hotplug.open(blocks(0..2)).unwrap();
        hotplug.open_populated(blocks(4..7)).unwrap();
        assert_eq!(resident(&hotplug, 0), 0);
        assert_eq!(resident(&hotplug, 4), 3 * BLOCK);
        hotplug.release(blocks(4..7)).unwrap();
        hotplug.open(blocks(4..7)).unwrap();
        assert_eq!(resident(&hotplug, 4), 0, "only once");
    }
}

#[test]
fn memory_of_a_host_node_that_is_not_there_stays_closed() {
    let (memory, mut hotplug) = ram(Backing::Anonymous, 4);
    hotplug.memory.host_node = Some(1023);
    hotplug.open(blocks(1..2)).unwrap_err();
    memory.write_obj(7u64, at(1)).unwrap_err();
    hotplug.memory.host_node = Some(u16::MAX);
    hotplug.open(blocks(1..2)).unwrap_err();
    hotplug.memory.host_node = None;
    hotplug.open(blocks(1..2)).unwrap();
    assert_eq!(hotplug.count.get(), 1);
}

#[test]
fn released_shared_memory_is_gone_from_its_file() {
    let (memory, mut hotplug) = ram(Backing::Shared, 4);
    hotplug.open(blocks(0..4)).unwrap();
    memory.write_slice(&vec![1; 4 * BLOCK as usize], at(0)).unwrap();
    let used =
        |hotplug: &HotplugMemory| hotplug.file.as_ref().unwrap().metadata().unwrap().blocks() * 512;
    assert_eq!(used(&hotplug), 4 * BLOCK);
    hotplug.release(blocks(1..3)).unwrap();
    assert_eq!(used(&hotplug), 2 * BLOCK);
}

#[test]
fn a_refused_release_leaves_the_memory_as_it_was() {
    let (memory, mut hotplug) = ram(Backing::Anonymous, 4);
    hotplug.open(blocks(0..4)).unwrap();
    memory.write_obj(9u64, at(3)).unwrap();
    // Past the end of the mapping: the host's call is never made.
    hotplug.release(blocks(3..5)).unwrap_err();
    assert_eq!(memory.read_obj::<u64>(at(3)).unwrap(), 9);
}

/// Huge pages that the host does not have: the mapping is there, and can't be filled.
#[test]
fn memory_that_cannot_be_filled_stays_closed() {
    let huge = Backing::Hugetlb { page: Bytes::mib(2), shared: false };
    // More than any machine has in its pool.
    let all = 1 << 22;
    let (memory, mut hotplug) = ram(huge, all);
    hotplug.memory.prefault = true;
    hotplug.open(blocks(0..all)).unwrap_err();
    assert_eq!((hotplug.count.get(), hotplug.gate.allows(0, 1)), (0, false));
    memory.read_obj::<u64>(at(0)).unwrap_err();
    // Bare address space again, which the next open finds as it was.
    hotplug.memory = Memory { backing: Backing::Anonymous, prefault: false, ..hotplug.memory };
    hotplug.open(blocks(3..4)).unwrap();
    memory.write_obj(7u64, at(3)).unwrap();
    memory.write_obj(7u64, at(2)).unwrap_err();
}

/// How the area with the first byte of `block` is accessible; `None` for a hole.
fn access(hotplug: &HotplugMemory, block: u64) -> Option<String> {
    let at = hotplug.mapping.host_address() + (block * BLOCK) as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().find_map(|line| {
        let (area, rest) = line.split_once(' ')?;
        let (start, end) = area.split_once('-')?;
        let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).unwrap());
        (start..end).contains(&at).then(|| rest[..4].to_owned())
    })
}

/// The kernel finds a pool too small when it has unmapped what was there: the monitor's next
/// mapping could have landed in the hole, in the guest's hands.
#[test]
fn memory_that_cannot_be_reserved_leaves_no_hole() {
    // More than any machine has in its pool.
    let all = 1 << 22;
    for shared in [false, true] {
        let (_, mut hotplug) = ram(Backing::Hugetlb { page: Bytes::mib(2), shared }, all);
        hotplug.memory.reserve = true;
        hotplug.open(blocks(0..all)).unwrap_err();
        for block in [0, all / 2, all - 1] {
            assert_eq!(access(&hotplug, block).as_deref(), Some("---p"), "shared: {shared}");
        }
    }
}

#[test]
fn huge_pages_to_be_reserved_are_taken_when_they_are_opened() {
    let memory = Memory { reserve: true, ..Memory::plain() };
    assert_eq!(hotpluggable(&memory), memory);
    let huge = Backing::Hugetlb { page: Bytes::mib(2), shared: false };
    let memory = hotpluggable(&Memory { backing: huge, ..memory });
    assert!(memory.prefault && !memory.reserve);
}

/// A file that can be mapped, and no hole be made in it.
#[test]
fn memory_whose_file_does_not_shrink_stays_with_the_guest() {
    let (memory, mut hotplug) = ram(Backing::Shared, 4);
    hotplug.open(blocks(0..3)).unwrap();
    let zeros = File::options().read(true).write(true).open("/dev/zero").unwrap();
    let file = hotplug.file.replace(Arc::new(zeros));
    hotplug.release(blocks(0..1)).unwrap_err();
    memory.write_obj(7u64, at(0)).unwrap();
    hotplug.file = file;
    hotplug.release(blocks(0..1)).unwrap();
    memory.read_obj::<u64>(at(0)).unwrap_err();
    assert_eq!(hotplug.count.get(), 1);
}

/// Runs `test` on a thread to which the host refuses a system call, for want of memory.
fn refusing<T: Send>(call: libc::c_long, test: impl FnOnce() -> T + Send) -> T {
    refusing_all([(call, vec![])].into(), test)
}

/// The same for several, or those that are made so.
fn refusing_all<T: Send>(
    calls: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    test: impl FnOnce() -> T + Send,
) -> T {
    let filtered = || {
        let filter = SeccompFilter::new(
            calls,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOMEM as u32),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program = BpfProgram::try_from(filter.unwrap()).unwrap();
        seccompiler::apply_filter(&program).unwrap();
        test()
    };
    thread::scope(|scope| scope.spawn(filtered).join().unwrap())
}

#[test]
fn each_call_that_the_host_refuses_leaves_open_what_was_open() {
    use Backing::{Anonymous, Shared};
    // With each call, whether opening succeeds, and what is left of the nine after a release.
    for (backing, call, opens, left) in [
        (Anonymous, libc::SYS_mmap, false, Some(0)),
        (Anonymous, libc::SYS_madvise, false, None),
        (Shared, libc::SYS_mmap, false, Some(9)),
        (Shared, libc::SYS_madvise, false, None),
        (Shared, libc::SYS_fallocate, true, Some(9)),
    ] {
        let (memory, mut hotplug) = ram(backing, 4);
        hotplug.open(blocks(0..1)).unwrap();
        memory.write_obj(9u64, at(0)).unwrap();

        let opened = refusing(call, || hotplug.open(blocks(2..3)));
        assert_eq!(opened.is_ok(), opens, "call {call} of {backing:?}: {opened:?}");
        assert_eq!(memory.write_obj(7u64, at(2)).is_ok(), opens);
        assert_eq!(hotplug.count.get(), 1 + usize::from(opens));

        let released = refusing(call, || hotplug.release(blocks(0..1)));
        assert_eq!(released.is_err(), left.is_some(), "call {call} of {backing:?}: {released:?}");
        assert_eq!(memory.read_obj::<u64>(at(0)).ok(), left);

        if left.is_some() {
            hotplug.release(blocks(0..1)).unwrap();
        }
        if !opens {
            hotplug.open(blocks(2..3)).unwrap();
        }
        assert_eq!((hotplug.count.get(), memory.read_obj::<u64>(at(0)).is_err()), (1, true));
    }
}

/// The books say that it is unplugged, so nothing else may move until it is.
#[test]
fn memory_that_neither_opens_nor_closes_is_closed_first_thing_later() {
    for backing in [Backing::Anonymous, Backing::Shared] {
        let (memory, mut hotplug) = ram(backing, 4);
        let none = libc::PROT_NONE as u64;
        let is_none =
            SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, none).unwrap();
        let closing = SeccompRule::new(vec![is_none]).unwrap();
        let calls = [(libc::SYS_madvise, vec![]), (libc::SYS_mmap, vec![closing])].into();
        refusing_all(calls, || {
            hotplug.open(blocks(0..1)).unwrap_err();
            hotplug.open(blocks(2..3)).unwrap_err();
        });
        let ways = [0, 2].map(|block| access(&hotplug, block).unwrap());
        assert!(ways[0].starts_with("rw-") && ways[1] == "---p", "{ways:?}");
        memory.read_obj::<u64>(at(0)).unwrap_err();
        hotplug.open(blocks(2..3)).unwrap();
        assert_eq!(access(&hotplug, 0).as_deref(), Some("---p"));
        assert_eq!(hotplug.count.get(), 1);
    }
}

#[test]
fn a_guest_cannot_use_up_the_address_space_areas_with_all_its_devices() {
    let half = MAX_AREAS as u64 / 2;
    let (_, mut devices) = devices(Backing::Anonymous, &[2 * half + 2, 2 * half + 2]);
    let [one, other] = &mut devices[..] else { unreachable!("there are two") };
    for run in 0..half {
        one.open(blocks(2 * run..2 * run + 1)).unwrap();
        other.open(blocks(2 * run..2 * run + 1)).unwrap();
    }
    let last = blocks(2 * half..2 * half + 1);
    one.open(last.clone()).unwrap_err();
    other.open(last.clone()).unwrap_err();
    // What joins another is none more, and what goes may come with the other.
    one.open(blocks(1..2)).unwrap();
    other.open(last.clone()).unwrap_err();
    one.release(blocks(0..2)).unwrap();
    other.open(last).unwrap();
    one.open(blocks(0..1)).unwrap_err();
}

/// Runs of open blocks were counted: a guest that filled the gaps between them had as many areas,
/// and could have as many runs again.
#[test]
fn areas_are_counted_as_the_kernel_has_them() {
    let steps = [
        (0..2, true),
        (4..6, true),
        (2..4, true),
        (6..7, true),
        (1..2, false),
        (1..2, true),
        (0..1, false),
        (3..5, false),
        (4..5, true),
        (3..4, true),
        (1..7, false),
    ];
    let huge = |shared| Backing::Hugetlb { page: Bytes::mib(2), shared };
    let (of_huge, of_shared) =
        ([1, 2, 3, 4, 4, 5, 4, 4, 5, 6, 0], [1, 2, 1, 1, 2, 1, 1, 2, 2, 1, 0]);
    for (backing, counts, kernel) in [
        (Backing::Shared, of_shared, of_shared),
        // Not all that was cut is known to be whole again.
        (Backing::Anonymous, [1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 0], [1, 2, 2, 2, 3, 2, 2, 2, 2, 2, 0]),
        (huge(false), of_huge, of_huge),
        (huge(true), of_huge, of_huge),
    ] {
        let (memory, mut hotplug) = ram(backing, 8);
        let expected = counts.into_iter().zip(kernel);
        for ((range, open), expected) in steps.iter().cloned().zip(expected) {
            match open {
                true => hotplug.open(blocks(range.clone())).unwrap(),
                false => hotplug.release(blocks(range.clone())).unwrap(),
            }
            // The pool may have no huge pages.
            if open && !matches!(backing, Backing::Hugetlb { .. }) {
                range.clone().for_each(|block| memory.write_obj(7u64, at(block)).unwrap());
            }
            let counted = (hotplug.count.get(), hotplug.mapping.open_areas().unwrap().len());
            assert_eq!(counted, expected, "{backing:?}: {range:?} open: {open}");
        }
    }
}

/// Its parts had no pages when it was cut, and each has its own when the gaps are filled.
#[test]
fn memory_that_was_cut_before_it_was_touched_is_not_taken_for_whole_again() {
    let (memory, mut hotplug) = ram(Backing::Anonymous, 32);
    hotplug.open(blocks(0..32)).unwrap();
    let odd = || (1..32).step_by(2).map(|block| blocks(block..block + 1));
    odd().for_each(|range| hotplug.release(range).unwrap());
    (0..32).step_by(2).for_each(|block| memory.write_obj(7u64, at(block)).unwrap());
    odd().for_each(|range| hotplug.open(range).unwrap());
    assert_eq!((hotplug.count.get(), hotplug.mapping.open_areas().unwrap().len()), (16, 16));
}

/// A guest whose memory comes and goes for months has no more areas than it began with.
#[test]
fn what_is_whole_again_is_not_counted_as_cut_for_ever() {
    let (_, mut hotplug) = ram(Backing::Anonymous, 64);
    hotplug.areas.recount_at(8);
    hotplug.open(blocks(0..64)).unwrap();
    for block in 1..63 {
        hotplug.release(blocks(block..block + 1)).unwrap();
        hotplug.open(blocks(block..block + 1)).unwrap();
        hotplug.areas.recount_at(8);
    }
    assert!(hotplug.count.get() <= 10, "{}", hotplug.count.get());
    hotplug.release(blocks(0..64)).unwrap();
    assert_eq!(hotplug.count.get(), 0);
}
