//! Kernels made by hand, good and bad.

use std::fs;
use std::path::PathBuf;

use devices::guest_memory::Region;
use vm_memory::MmapRegion;

use super::*;

const SIZE: u64 = 32 << 20;
const LOAD: u64 = 0x100_0000;

/// A folder of files, and RAM to load them into.
struct Bench {
    folder: tempfile::TempDir,
    memory: GuestMemory,
}

impl Bench {
    fn new() -> Self {
        let region = Region::open(MmapRegion::new(SIZE as usize).unwrap(), GuestAddress(0));
        let memory = GuestMemory::from_regions(vec![region.unwrap()]).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), memory }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn boot(&self, kernel: &[u8], initramfs: Option<&[u8]>, cmdline: &str) -> Result<Entry, Error> {
        let payload = Payload {
            kernel: self.file("kernel", kernel),
            initramfs: initramfs.map(|bytes| self.file("initramfs", bytes)),
            cmdline: cmdline.to_owned(),
        };
        load(&payload, &self.memory, std::slice::from_ref(&(0..SIZE)), 0xe0000)
    }

    fn u32_at(&self, address: u64) -> u32 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn u64_at(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

/// An ELF with one loaded segment of `text`, and a PVH note where `pvh` says so.
fn elf(text: &[u8], memory_size: u64, pvh: bool) -> Vec<u8> {
    let note: Vec<u8> = [4u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()).collect();
    let note = [note.as_slice(), b"Xen\0", &(LOAD as u32).to_le_bytes()].concat();
    let (note_at, text_at) = (64 + 2 * 56, 64 + 2 * 56 + note.len());
    let header = |kind: u32, at: usize, size: usize, memory_size: u64| {
        let words = [at as u64, LOAD, LOAD, size as u64, memory_size, 4];
        let words = words.iter().flat_map(|word| word.to_le_bytes());
        kind.to_le_bytes().into_iter().chain(5u32.to_le_bytes()).chain(words).collect::<Vec<u8>>()
    };
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([LOAD, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 2, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(header(1, text_at, text.len(), memory_size));
    file.extend(header(if pvh { 4 } else { 0 }, note_at, note.len(), note.len() as u64));
    [file, note, text.to_vec()].concat()
}

/// A bzImage whose protected-mode part is `text`.
fn bzimage(text: &[u8], xloadflags: u16) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    file[0x1f4..0x1f8].copy_from_slice(&(text.len() as u32 / 16).to_le_bytes());
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x211] = 1;
    file[0x214..0x218].copy_from_slice(&(layout::HIGH_RAM as u32).to_le_bytes());
    file[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&LOAD.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
    file.extend_from_slice(text);
    file
}

#[test]
fn an_elf_is_entered_through_pvh_with_all_it_needs() {
    let bench = Bench::new();
    let entry = bench.boot(&elf(b"code", 4, true), Some(b"files"), "quiet").unwrap();
    assert_eq!(entry, Entry::Pvh { address: LOAD });
    let mut code = [0; 4];
    bench.memory.read_slice(&mut code, GuestAddress(LOAD)).unwrap();
    assert_eq!(&code, b"code");
    let info = layout::BOOT_INFO;
    assert_eq!((bench.u32_at(info), bench.u32_at(info + 12)), (0x336e_c578, 1));
    let initramfs = bench.u64_at(bench.u64_at(info + 16));
    assert_eq!(initramfs, SIZE - 0x1000);
    let mut files = [0; 5];
    bench.memory.read_slice(&mut files, GuestAddress(initramfs)).unwrap();
    assert_eq!(&files, b"files");
    let mut cmdline = [0; 6];
    bench.memory.read_slice(&mut cmdline, GuestAddress(bench.u64_at(info + 24))).unwrap();
    assert_eq!(&cmdline, b"quiet\0");
    assert_eq!(bench.u64_at(info + 32), 0xe0000);
    let (map, entries) = (bench.u64_at(info + 40), bench.u32_at(info + 48));
    assert_eq!(bench.u64_at(map + 8), layout::LOW_RAM_END);
    assert_eq!(entries, 4);
}

#[test]
fn a_bzimage_is_entered_in_64_bit_mode() {
    let bench = Bench::new();
    let entry = bench.boot(&bzimage(&[0x90; 64], 1), None, "").unwrap();
    assert_eq!(entry, Entry::Linux64 { address: layout::HIGH_RAM + 0x200 });
    let zero_page = layout::BOOT_INFO;
    assert_eq!(bench.u32_at(zero_page + 0x228), layout::CMDLINE as u32);
    assert_eq!(bench.u64_at(zero_page + 0x70), 0xe0000);
    assert_eq!(bench.u64_at(layout::GDT + 16), GDT[2]);
    assert_eq!(bench.u64_at(layout::PAGE_TABLES + 0x2000), 0x83);
    assert_eq!(bench.u64_at(layout::PAGE_TABLES + 0x5ff8), 0xffe0_0083);
}

/// What a person reads when it can't boot.
fn refusal(kernel: &[u8], initramfs: Option<&[u8]>, cmdline: &str) -> String {
    let bench = Bench::new();
    let error = bench.boot(kernel, initramfs, cmdline).unwrap_err().to_string();
    error.replace(&*bench.folder.path().to_string_lossy(), "FOLDER")
}

#[test]
fn files_that_are_no_kernel_are_named() {
    let expected = "payload.kernel: FOLDER/kernel is neither an ELF vmlinux nor a bzImage";
    for file in [&b""[..], b"MZ", &[0; 600], &[0x41; 4096]] {
        assert_eq!(refusal(file, None, ""), expected);
    }
}

#[test]
fn truncated_kernels_are_told_from_whole_ones() {
    let whole = elf(&[1; 4096], 4096, true);
    for length in [5, 63, 100, whole.len() - 1] {
        let error = refusal(&whole[..length], None, "");
        assert!(error.contains("FOLDER/kernel is truncated or corrupt"), "{length}: {error}");
    }
    let image = bzimage(&[1; 4096], 1);
    let error = refusal(&image[..image.len() - 100], None, "");
    assert_eq!(error, "payload.kernel: FOLDER/kernel is truncated: 5020 bytes of 5 KiB",);
}

#[test]
fn kernels_that_cannot_be_entered_say_what_to_pass_instead() {
    let error = refusal(&elf(b"code", 4, false), None, "");
    assert!(error.ends_with("has no PVH entry; build it with CONFIG_PVH=y or pass its bzImage"));
    let error = refusal(&bzimage(&[0; 64], 0), None, "");
    assert!(error.ends_with("has no 64-bit entry; pass an x86-64 kernel"));
}

#[test]
fn what_does_not_fit_memory_says_how_much_is_missing() {
    let error = refusal(&elf(b"code", SIZE, true), None, "");
    assert!(error.starts_with("memory.size: 16 MiB are needed"), "{error}");
    let error = refusal(&elf(b"code", 4, true), Some(&vec![0; 20 << 20]), "");
    assert!(error.contains("FOLDER/initramfs"), "{error}");
    assert!(error.starts_with("memory.size: "), "{error}");
}

#[test]
fn a_command_line_that_linux_would_cut_is_refused() {
    let kernel = elf(b"code", 4, true);
    for cmdline in ["x".repeat(layout::CMDLINE_MAX), "a\0b".to_owned()] {
        assert!(refusal(&kernel, None, &cmdline).starts_with("payload.cmdline: "));
    }
    let bench = Bench::new();
    bench.boot(&kernel, None, &"x".repeat(layout::CMDLINE_MAX - 1)).unwrap();
}

#[test]
fn missing_files_are_named_with_their_field() {
    let bench = Bench::new();
    let payload =
        Payload { kernel: "/nowhere/kernel".into(), initramfs: None, cmdline: String::new() };
    let ram = std::slice::from_ref(&(0..SIZE));
    let error = load(&payload, &bench.memory, ram, 0xe0000).unwrap_err();
    assert_eq!(error.to_string(), "payload.kernel: cannot read /nowhere/kernel");
}
