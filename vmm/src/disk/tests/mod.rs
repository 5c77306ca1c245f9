//! Both engines over real files.

mod engines;
mod opening;
mod queue;

use std::io;
use std::path::Path;
use std::sync::Arc;

use devices::guest_memory::{Gate, GuestMemory, Region};
use devices::virtio::block::{Buffers, Completion, DiskRange, Engine, Image, Operation, Sectors};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, MmapRegion};

use super::image::{DiskImage, open};
use super::sync::Blocking;
use super::uring::Uring;

/// Size of the images here: 256 KiB.
const SECTORS: u64 = 512;

/// Guest RAM: two regions that meet, the second gated.
const RAM: u64 = 1 << 20;
const GATED: u64 = RAM;
const BLOCK_SHIFT: u32 = 16;

fn memory() -> (Arc<GuestMemory>, Arc<Gate>) {
    let gate = Arc::new(Gate::closed(BLOCK_SHIFT, 4));
    gate.set(0, 4, true);
    let region = |start, size, gate| {
        let mapping = MmapRegion::new(size).unwrap();
        Region::new(mapping, GuestAddress(start), gate, Box::new(())).unwrap()
    };
    let regions =
        vec![region(0, RAM as usize, None), region(GATED, 4 << BLOCK_SHIFT, Some(gate.clone()))];
    (Arc::new(GuestMemory::from_regions(regions).unwrap()), gate)
}

/// What byte `at` of a fresh image is.
fn pattern(at: u64) -> u8 {
    (at / 512 * 7 + at) as u8
}

fn fresh_bytes(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(pattern).collect()
}

/// A fresh image in `directory`, or where temporary files go.
fn image_file(directory: Option<&Path>) -> NamedTempFile {
    let file = match directory {
        Some(directory) => NamedTempFile::new_in(directory).unwrap(),
        None => NamedTempFile::new().unwrap(),
    };
    std::fs::write(file.path(), fresh_bytes(0, SECTORS as usize * 512)).unwrap();
    file
}

/// An open image, guest RAM, and an engine between them.
struct Bench {
    file: NamedTempFile,
    image: DiskImage,
    memory: Arc<GuestMemory>,
    gate: Arc<Gate>,
    engine: Box<dyn Engine>,
}

/// How a test wants its image.
#[derive(Clone, Copy, Default)]
struct Setup<'a> {
    readonly: bool,
    direct: bool,
    directory: Option<&'a Path>,
}

impl Setup<'_> {
    /// Runs `test` once per engine that this host has.
    fn each_engine(self, test: impl Fn(&mut Bench)) {
        for uring in [false, true] {
            let file = image_file(self.directory);
            let image = match open(file.path(), self.readonly, self.direct) {
                Ok(image) => image,
                Err(error) if self.direct => {
                    eprintln!("not tested, no O_DIRECT here: {error:?}");
                    return;
                }
                Err(error) => panic!("{error:?}"),
            };
            let (memory, gate) = memory();
            let (disk, ram) = (Arc::clone(&image.file), Arc::clone(&memory));
            let engine: Box<dyn Engine> = match uring {
                false => Box::new(Blocking::new(disk, ram)),
                true => match Uring::new(disk, ram, 64) {
                    Ok(engine) => Box::new(engine),
                    Err(error) => {
                        eprintln!("not tested, no io_uring here: {error}");
                        return;
                    }
                },
            };
            test(&mut Bench { file, image, memory, gate, engine });
        }
    }
}

/// Runs `test` once per engine, on an image with the usual options.
fn each_engine(test: impl Fn(&mut Bench)) {
    Setup::default().each_engine(test);
}

impl Bench {
    fn range(&self, sector: u64, len: u64) -> DiskRange {
        let geometry = self.image.geometry();
        DiskRange::checked(&geometry, Sectors(sector), len, geometry.transfer_alignment).unwrap()
    }

    fn read(&self, sector: u64, parts: &[(u64, u32)]) -> Operation {
        let into = buffers(parts);
        Operation::Read { range: self.range(sector, into.len()), into }
    }

    fn write(&self, sector: u64, parts: &[(u64, u32)]) -> Operation {
        let from = buffers(parts);
        Operation::Write { range: self.range(sector, from.len()), from }
    }

    fn zeroes(&self, sector: u64, len: u64, may_unmap: bool) -> Operation {
        Operation::WriteZeroes { range: self.range(sector, len), may_unmap }
    }

    /// Does one thing and waits for it.
    fn run(&mut self, operation: Operation) -> io::Result<()> {
        self.engine.push(3, operation);
        let mut done = self.finish();
        assert_eq!(done.len(), 1);
        let completion = done.remove(0);
        assert_eq!(completion.token, 3);
        completion.result
    }

    /// Waits for all that was pushed.
    fn finish(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        self.engine.submit();
        self.engine.wait();
        self.engine.reap(&mut done);
        done
    }

    fn on_disk(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }

    fn fill(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

fn buffers(parts: &[(u64, u32)]) -> Buffers {
    let mut buffers = Buffers::default();
    parts.iter().for_each(|&(at, len)| buffers.push(GuestAddress(at), len).unwrap());
    buffers
}
