//! What can be opened, and by how many.

use std::fs;

use devices::virtio::block::SECTOR;

use super::super::Error;
use super::*;

#[test]
fn what_is_no_disk_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for (name, bytes) in [("empty", 0), ("short", 511)] {
        fs::write(path(name), vec![1; bytes]).unwrap();
        let error = open(&path(name), false, false).unwrap_err();
        assert!(matches!(error, Error::TooSmall { .. }), "{name}: {error:?}");
    }
    let error = open(&path("missing"), true, false).unwrap_err();
    assert!(matches!(error, Error::Open { .. }), "{error:?}");
    assert!(error.to_string().contains("missing"));
    let pipe = path("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
    for other in [directory.path(), &pipe, Path::new("/dev/null")] {
        let error = open(other, true, false).unwrap_err();
        assert!(matches!(error, Error::NotADisk { .. }), "{other:?}: {error:?}");
    }
}

#[test]
fn a_size_between_sectors_is_rounded_down() {
    let file = NamedTempFile::new().unwrap();
    for (bytes, sectors) in [(512, 1), (1023, 1), (1024, 2), (1 << 20 | 1, 2048)] {
        file.as_file().set_len(bytes).unwrap();
        let geometry = open(file.path(), false, false).unwrap().geometry();
        assert_eq!(geometry.capacity, Sectors(sectors), "{bytes}");
        assert_eq!(u64::from(geometry.logical_block), SECTOR);
        assert_eq!(u64::from(geometry.transfer_alignment), SECTOR);
        assert!(geometry.physical_block.is_power_of_two());
        assert!(!geometry.readonly);
    }
}

#[test]
fn one_writer_or_many_readers() {
    let file = image_file(None);
    let open = |readonly| open(file.path(), readonly, false);
    let writer = open(false).unwrap();
    for readonly in [false, true] {
        assert!(matches!(open(readonly), Err(Error::InUse { .. })), "{readonly}");
    }
    let (memory, _) = memory();
    let engine = writer.engine(&memory, 8).unwrap();
    drop(writer);
    assert!(matches!(open(true), Err(Error::InUse { .. })), "an engine still writes");
    drop(engine);
    let readers = [open(true).unwrap(), open(true).unwrap()];
    assert!(matches!(open(false), Err(Error::InUse { .. })));
    drop(readers);
    open(false).unwrap();
}

#[test]
fn an_image_without_uring_works_all_the_same() {
    let file = image_file(None);
    let (memory, _) = memory();
    let image = open(file.path(), false, false).unwrap().without_uring();
    let mut engine = image.engine(&memory, 8).unwrap();
    assert!(engine.completions().is_none());
    let into = buffers(&[(0, 512)]);
    let range = DiskRange::checked(&image.geometry(), Sectors(1), 512, 512).unwrap();
    engine.push(0, Operation::Read { range, into });
    let mut done = Vec::new();
    engine.reap(&mut done);
    assert!(done.remove(0).result.is_ok());
}
