//! The same table for both engines.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::*;

fn error_code(result: io::Result<()>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn reads_scatter_over_parts_and_regions() {
    each_engine(|bench| {
        let parts = [(100, 412), (GATED - 50, 100), (4096, 512)];
        let read = bench.read(5, &parts);
        bench.run(read).unwrap();
        let mut from = 5 * 512;
        for (at, len) in parts {
            assert_eq!(bench.bytes(at, len as usize), fresh_bytes(from, len as usize));
            from += u64::from(len);
        }
    });
}

#[test]
fn writes_gather_and_land_where_they_should() {
    each_engine(|bench| {
        bench.fill(0, &[1; 700]);
        bench.fill(9000, &[2; 324]);
        let write = bench.write(SECTORS - 2, &[(0, 700), (9000, 324)]);
        bench.run(write).unwrap();
        bench.run(Operation::Flush).unwrap();
        let disk = bench.on_disk();
        let at = (SECTORS as usize - 2) * 512;
        assert_eq!(disk[..at], fresh_bytes(0, at));
        assert_eq!(disk[at..at + 700], [1; 700]);
        assert_eq!(disk[at + 700..], [2; 324]);
    });
}

#[test]
fn a_request_of_more_parts_than_one_call_takes() {
    each_engine(|bench| {
        let parts: Vec<_> = (0..3000).map(|i| (i * 32, 16)).chain([(200_000, 128)]).collect();
        let read = bench.read(0, &parts);
        bench.run(read).unwrap();
        let read: Vec<u8> =
            parts.iter().flat_map(|&(at, len)| bench.bytes(at, len as usize)).collect();
        assert_eq!(read, fresh_bytes(0, read.len()));
    });
}

#[test]
fn many_in_flight_all_finish_with_their_own_token() {
    each_engine(|bench| {
        for round in 0..20u64 {
            for token in 0..64u16 {
                let place = u64::from(token) * 512;
                let operation = match (u64::from(token) + round) % 8 {
                    7 => Operation::Flush,
                    _ => bench.read(u64::from(token) + round, &[(place, 512)]),
                };
                bench.engine.push(token, operation);
            }
            let mut done = bench.finish();
            done.sort_unstable_by_key(|completion| completion.token);
            let tokens: Vec<_> = done.iter().map(|completion| completion.token).collect();
            assert_eq!(tokens, (0..64).collect::<Vec<_>>());
            done.into_iter().for_each(|completion| completion.result.unwrap());
            for token in (0..64u64).filter(|token| (token + round) % 8 != 7) {
                let expected = fresh_bytes((token + round) * 512, 512);
                assert_eq!(bench.bytes(token * 512, 512), expected, "{token} in {round}");
            }
        }
    });
}

#[test]
fn finished_work_makes_the_descriptor_readable_until_it_is_reaped() {
    each_engine(|bench| {
        let Some(_) = bench.engine.completions() else { return };
        let is_readable = |bench: &Bench, wait: Duration| {
            let fd = bench.engine.completions().unwrap();
            let wait = Timespec::try_from(wait).unwrap();
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap() == 1
        };
        assert!(!is_readable(bench, Duration::ZERO));
        // A flush always takes the kernel's own threads.
        bench.engine.push(0, Operation::Flush);
        bench.engine.submit();
        assert!(is_readable(bench, Duration::from_secs(20)));
        assert_eq!(bench.finish().len(), 1);
        assert!(!is_readable(bench, Duration::ZERO));
    });
}

#[test]
fn zeroed_ranges_read_as_zeros_and_the_rest_is_left_alone() {
    // The second kind of file system has no way to zero a range but writing.
    for directory in [None, Some(Path::new("/dev/shm"))] {
        if directory.is_some_and(|directory| !directory.exists()) {
            continue;
        }
        Setup { directory, ..Setup::default() }.each_engine(|bench| {
            for may_unmap in [false, true] {
                let (first, len) = (1 + u64::from(may_unmap) * 256, 100 * 512);
                let zeroes = bench.zeroes(first, len, may_unmap);
                bench.run(zeroes).unwrap();
                let (disk, start) = (bench.on_disk(), first as usize * 512);
                assert_eq!(disk.len(), SECTORS as usize * 512);
                assert!(disk[start..start + len as usize].iter().all(|&byte| byte == 0));
                assert_eq!(disk[start - 512..start], fresh_bytes((first - 1) * 512, 512));
                let end = start + len as usize;
                assert_eq!(disk[end..end + 512], fresh_bytes(end as u64, 512));
            }
        });
    }
}

#[test]
fn zeros_longer_than_the_buffer_of_zeros() {
    let shm = Path::new("/dev/shm");
    let setup = Setup { directory: shm.exists().then_some(shm), ..Setup::default() };
    setup.each_engine(|bench| {
        let zeroes = bench.zeroes(0, SECTORS * 512, false);
        bench.run(zeroes).unwrap();
        assert!(bench.on_disk().iter().all(|&byte| byte == 0));
    });
}

#[test]
fn discarded_ranges_give_space_back() {
    each_engine(|bench| {
        bench.run(Operation::Flush).unwrap();
        let before = bench.file.path().metadata().unwrap().blocks();
        let range = bench.range(0, 128 << 10);
        bench.run(Operation::Discard(range)).unwrap();
        let after = bench.file.path().metadata().unwrap();
        assert!(after.blocks() < before, "{} then {}", before, after.blocks());
        assert_eq!(after.size(), SECTORS * 512);
        assert_eq!(bench.on_disk()[128 << 10..], fresh_bytes(128 << 10, 128 << 10));
    });
}

#[test]
fn a_file_that_shrank_gives_errors_and_no_data() {
    each_engine(|bench| {
        bench.file.as_file().set_len(10 * 512 + 100).unwrap();
        for (sector, len) in [(10, 512), (100, 512), (9, 1024)] {
            let read = bench.read(sector, &[(0, len)]);
            let error = bench.run(read).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{sector}");
        }
        let read = bench.read(9, &[(0, 512)]);
        bench.run(read).unwrap();
    });
}

#[test]
fn a_file_that_vanished_is_still_there_for_us() {
    each_engine(|bench| {
        std::fs::remove_file(bench.file.path()).unwrap();
        let read = bench.read(7, &[(0, 512)]);
        bench.run(read).unwrap();
        assert_eq!(bench.bytes(0, 512), fresh_bytes(7 * 512, 512));
    });
}

#[test]
fn writes_to_a_read_only_image_fail() {
    Setup { readonly: true, ..Setup::default() }.each_engine(|bench| {
        let write = bench.write(0, &[(0, 512)]);
        assert_eq!(error_code(bench.run(write)), Some(libc::EBADF));
        let zeroes = bench.zeroes(0, 512, true);
        assert_eq!(error_code(bench.run(zeroes)), Some(libc::EBADF));
        let read = bench.read(0, &[(0, 512)]);
        bench.run(read).unwrap();
        bench.run(Operation::Flush).unwrap();
    });
}

#[test]
fn memory_that_is_not_plugged_is_a_fault() {
    each_engine(|bench| {
        bench.gate.set(1, 1, false);
        let closed = GATED + (1 << BLOCK_SHIFT);
        for part in [(closed, 512), (closed - 1, 512), (1 << 40, 512)] {
            let read = bench.read(0, &[part]);
            assert_eq!(error_code(bench.run(read)), Some(libc::EFAULT), "{part:x?}");
            let write = bench.write(0, &[part]);
            assert_eq!(error_code(bench.run(write)), Some(libc::EFAULT), "{part:x?}");
        }
        assert_eq!(bench.on_disk(), fresh_bytes(0, SECTORS as usize * 512));
        let read = bench.read(0, &[(closed - 512, 512)]);
        bench.run(read).unwrap();
    });
}

/// Takes all access rights from the first block of the gated region, as unplugging it does.
fn take_rights(memory: &GuestMemory) {
    let region = memory.find_region(GuestAddress(GATED)).unwrap();
    let address = region.get_host_address(MemoryRegionAddress(0)).unwrap();
    // SAFETY: the range lies in a mapping of this test, to which no Rust reference exists.
    let result = unsafe { libc::mprotect(address.cast(), 1 << BLOCK_SHIFT, libc::PROT_NONE) };
    assert_eq!(result, 0);
}

#[test]
fn memory_that_goes_away_between_check_and_use_is_a_fault() {
    for direct in [false, true] {
        Setup { direct, ..Setup::default() }.each_engine(|bench| {
            take_rights(&bench.memory);
            // Aligned, so taken as it is, and unaligned, so copied where `direct`.
            for at in [GATED, GATED + 3] {
                let read = bench.read(0, &[(at, 4096)]);
                assert_eq!(error_code(bench.run(read)), Some(libc::EFAULT));
                let write = bench.write(0, &[(at, 4096)]);
                assert_eq!(error_code(bench.run(write)), Some(libc::EFAULT));
            }
            assert_eq!(bench.on_disk(), fresh_bytes(0, SECTORS as usize * 512));
        });
    }
}

#[test]
fn past_the_page_cache_any_alignment_of_memory_will_do() {
    Setup { direct: true, ..Setup::default() }.each_engine(|bench| {
        let cases: [&[(u64, u32)]; 4] = [
            &[(8192, 4096)],
            &[(8192 + 3, 4096)],
            &[(100, 1000), (5000, 3000), (GATED - 48, 96)],
            &[(1, 200 << 10)],
        ];
        for parts in cases {
            let read = bench.read(8, parts);
            bench.run(read).unwrap();
            let read: Vec<u8> =
                parts.iter().flat_map(|&(at, len)| bench.bytes(at, len as usize)).collect();
            assert_eq!(read, fresh_bytes(8 * 512, read.len()), "{parts:?}");
            let write = bench.write(16, parts);
            bench.run(write).unwrap();
            assert_eq!(bench.on_disk()[16 * 512..][..read.len()], read, "{parts:?}");
            std::fs::write(bench.file.path(), fresh_bytes(0, SECTORS as usize * 512)).unwrap();
        }
        bench.file.as_file().set_len(8 * 512).unwrap();
        for at in [0, 1] {
            let read = bench.read(8, &[(at, 4096)]);
            assert_eq!(bench.run(read).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    });
}

#[test]
fn an_engine_dropped_at_work_has_let_go_of_memory() {
    // Past the page cache, so that the disk is really at work when the engine goes.
    Setup { direct: true, ..Setup::default() }.each_engine(|bench| {
        for token in 0..64 {
            let read = bench.read(0, &[(u64::from(token) * 4096, 4096)]);
            bench.engine.push(token, read);
        }
        bench.engine.submit();
        let image = Arc::clone(&bench.image.file);
        bench.engine = Box::new(Blocking::new(image, Arc::clone(&bench.memory)));
        let zeros = vec![0; 64 * 4096];
        bench.fill(0, &zeros);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(bench.bytes(0, zeros.len()), zeros);
    });
}

#[test]
fn a_token_in_use_is_refused() {
    each_engine(|bench| {
        if bench.engine.completions().is_none() {
            return;
        }
        bench.engine.push(0, Operation::Flush);
        bench.engine.push(0, Operation::Flush);
        let done = bench.finish();
        assert_eq!(done.iter().filter(|completion| completion.result.is_ok()).count(), 1);
        assert_eq!(done.len(), 2);
    });
}
