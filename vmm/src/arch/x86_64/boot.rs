//! Loading a kernel and telling it where things are.
//!
//! An ELF `vmlinux` is entered through PVH, a `bzImage` through the 64-bit Linux boot protocol. Both
//! get the same memory map, initramfs and command line at the same places.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};

use devices::guest_memory::GuestMemory;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use memctl::Bytes;
use vm_memory::{Bytes as _, GuestAddress};

use super::layout::{self, MapKind};
use super::registers::{Entry, GDT};
use crate::machine::spec::Payload;

/// Why a VM's payload can't be booted. Each names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error("{field}: cannot read {path}")]
    Read {
        /// The field of the configuration.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Neither kind of kernel.
    #[error("payload.kernel: {0} is neither an ELF vmlinux nor a bzImage")]
    UnknownFormat(PathBuf),
    /// An ELF without the entry.
    #[error("payload.kernel: {0} has no PVH entry; build it with CONFIG_PVH=y or pass its bzImage")]
    NoPvhEntry(PathBuf),
    /// A bzImage for 32-bit machines.
    #[error("payload.kernel: {0} has no 64-bit entry; pass an x86-64 kernel")]
    Not64Bit(PathBuf),
    /// The file ends before its header says.
    #[error("payload.kernel: {path} is truncated: {found} of {expected}")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: Bytes,
        /// The size in its header.
        expected: Bytes,
    },
    /// The loader refused.
    #[error("payload.kernel: {0} is truncated or corrupt, or memory.size is too small for it")]
    Load(PathBuf, #[source] linux_loader::loader::Error),
    /// Kernel and initramfs don't fit RAM.
    #[error("memory.size: {needed} are needed below {limit:#x} for {path}; raise it")]
    TooSmall {
        /// The file that did not fit.
        path: PathBuf,
        /// How much more than there is.
        needed: Bytes,
        /// Where usable memory ends.
        limit: u64,
    },
    /// The command line is too long or has a zero byte.
    #[error("payload.cmdline: at most {max} bytes, none of them zero", max = layout::CMDLINE_MAX - 1)]
    Cmdline,
    /// Writing to guest memory failed.
    #[error("memory.size: too small for the boot tables")]
    Tables(#[source] vm_memory::GuestMemoryError),
    /// The boot protocol's structures did not fit.
    #[error("memory.size: too small for the boot parameters")]
    Parameters(#[source] linux_loader::configurator::Error),
}

/// Puts the kernel, its initramfs and its boot information into `memory`, whose RAM lies at
/// `ram`; `rsdp` is where the ACPI tables' root is. Returns how to enter it.
///
/// # Errors
/// A file is missing, damaged or too big; see [`Error`].
pub fn load(
    payload: &Payload,
    memory: &GuestMemory,
    ram: &[Range<u64>],
    rsdp: u64,
) -> Result<Entry, Error> {
    let kernel = Kernel::load(&payload.kernel, memory, ram[0].end)?;
    write_cmdline(&payload.cmdline, memory)?;
    let info = Info {
        initramfs: match &payload.initramfs {
            Some(path) => load_initramfs(path, memory, kernel.end..ram[0].end)?,
            None => 0..0,
        },
        map: layout::memory_map(ram),
        rsdp,
    };
    match kernel.header {
        None => info.write_pvh(memory)?,
        Some(header) => info.write_linux(header, memory)?,
    }
    Ok(kernel.entry)
}

type SetupHeader = linux_loader::loader::bootparam::setup_header;

/// A kernel in guest memory.
struct Kernel {
    entry: Entry,
    /// First byte that it does not use before it knows its memory map.
    end: u64,
    /// The Linux boot protocol's header, for a bzImage.
    header: Option<SetupHeader>,
}

impl Kernel {
    fn load(path: &Path, memory: &GuestMemory, ram_end: u64) -> Result<Self, Error> {
        let read = |source| Error::Read { field: "payload.kernel", path: path.into(), source };
        let mut file = File::open(path).map_err(read)?;
        let mut magic = Vec::with_capacity(4);
        Read::by_ref(&mut file).take(4).read_to_end(&mut magic).map_err(read)?;
        file.rewind().map_err(read)?;
        let kernel = match magic.as_slice() {
            b"\x7fELF" => Self::load_elf(path, file, memory),
            _ => Self::load_bzimage(path, file, memory),
        }?;
        if kernel.end > ram_end {
            let needed = Bytes::new(kernel.end - ram_end);
            return Err(Error::TooSmall { path: path.into(), needed, limit: ram_end });
        }
        Ok(kernel)
    }

    fn load_elf(path: &Path, mut file: File, memory: &GuestMemory) -> Result<Self, Error> {
        let start = Some(GuestAddress(layout::HIGH_RAM));
        let loaded = Elf::load(memory, None, &mut file, start)
            .map_err(|source| Error::Load(path.into(), source))?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            return Err(Error::NoPvhEntry(path.into()));
        };
        Ok(Self { entry: Entry::Pvh { address: entry.0 }, end: loaded.kernel_end, header: None })
    }

    fn load_bzimage(path: &Path, mut file: File, memory: &GuestMemory) -> Result<Self, Error> {
        use linux_loader::loader::Error as Loader;
        use linux_loader::loader::bzimage::Error as Image;
        let start = Some(GuestAddress(layout::HIGH_RAM));
        let loaded =
            BzImage::load(memory, None, &mut file, start).map_err(|source| match source {
                Loader::Bzimage(
                    Image::InvalidBzImage | Image::ReadBzImageHeader | Image::Underflow,
                ) => Error::UnknownFormat(path.into()),
                source => Error::Load(path.into(), source),
            })?;
        let KernelLoaderResult { kernel_load, setup_header: Some(header), .. } = loaded else {
            return Err(Error::UnknownFormat(path.into()));
        };
        check_length(path, &file, &header)?;
        const XLF_KERNEL_64: u16 = 1;
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(Error::Not64Bit(path.into()));
        }
        Ok(Self {
            entry: Entry::Linux64 { address: kernel_load.0 + 0x200 },
            end: header.pref_address.max(kernel_load.0) + u64::from(header.init_size),
            header: Some(header),
        })
    }
}

/// A bzImage's header says how long the rest is; the loader itself takes what there is.
fn check_length(path: &Path, file: &File, header: &SetupHeader) -> Result<(), Error> {
    let read = |source| Error::Read { field: "payload.kernel", path: path.into(), source };
    let setup_sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let expected = (setup_sectors + 1) * 512 + u64::from(header.syssize) * 16;
    let found = file.metadata().map_err(read)?.len();
    if found < expected {
        let (found, expected) = (Bytes::new(found), Bytes::new(expected));
        return Err(Error::Truncated { path: path.into(), found, expected });
    }
    Ok(())
}

/// Loads the initramfs as high in `free` as it goes, where the kernel's own early allocations are
/// least likely to meet it.
fn load_initramfs(
    path: &Path,
    memory: &GuestMemory,
    free: Range<u64>,
) -> Result<Range<u64>, Error> {
    let read = |source| Error::Read { field: "payload.initramfs", path: path.into(), source };
    let mut file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    // Linux's boot protocol places it below 2 GiB.
    let limit = free.end.min(1 << 31);
    let start = limit.saturating_sub(size) & !0xfff;
    if start < free.start {
        let needed = Bytes::new(free.start - start);
        return Err(Error::TooSmall { path: path.into(), needed, limit });
    }
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, size as usize)
        .map_err(|error| read(io::Error::other(error)))?;
    Ok(start..start + size)
}

fn write_cmdline(cmdline: &str, memory: &GuestMemory) -> Result<(), Error> {
    if cmdline.len() >= layout::CMDLINE_MAX || cmdline.contains('\0') {
        return Err(Error::Cmdline);
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(layout::CMDLINE)).map_err(Error::Tables)
}

/// What either boot protocol tells the kernel.
struct Info {
    initramfs: Range<u64>,
    map: Vec<(Range<u64>, MapKind)>,
    rsdp: u64,
}

impl Info {
    fn write_pvh(&self, memory: &GuestMemory) -> Result<(), Error> {
        const MAGIC: u32 = 0x336e_c578;
        let modules: Vec<_> = (!self.initramfs.is_empty())
            .then(|| hvm_modlist_entry {
                paddr: self.initramfs.start,
                size: self.initramfs.end - self.initramfs.start,
                ..Default::default()
            })
            .into_iter()
            .collect();
        let map: Vec<_> = self.map.iter().map(pvh_entry).collect();
        let map_address = layout::PVH_TABLES + size_of::<hvm_modlist_entry>() as u64;
        let start = hvm_start_info {
            magic: MAGIC,
            version: 1,
            nr_modules: modules.len() as u32,
            modlist_paddr: layout::PVH_TABLES,
            cmdline_paddr: layout::CMDLINE,
            rsdp_paddr: self.rsdp,
            memmap_paddr: map_address,
            memmap_entries: map.len() as u32,
            ..Default::default()
        };
        let mut params = BootParams::new(&start, GuestAddress(layout::BOOT_INFO));
        params.set_sections(&map, GuestAddress(map_address));
        params.set_modules(&modules, GuestAddress(layout::PVH_TABLES));
        PvhBootConfigurator::write_bootparams(&params, memory).map_err(Error::Parameters)
    }

    fn write_linux(&self, header: SetupHeader, memory: &GuestMemory) -> Result<(), Error> {
        const LOADER_UNDEFINED: u8 = 0xff;
        let mut params =
            boot_params { hdr: header, acpi_rsdp_addr: self.rsdp, ..Default::default() };
        params.hdr.type_of_loader = LOADER_UNDEFINED;
        params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
        params.hdr.ramdisk_image = self.initramfs.start as u32;
        params.hdr.ramdisk_size = (self.initramfs.end - self.initramfs.start) as u32;
        params.e820_entries = self.map.len() as u8;
        for (entry, range) in params.e820_table.iter_mut().zip(&self.map) {
            *entry = e820_entry(range);
        }
        let params = BootParams::new(&params, GuestAddress(layout::BOOT_INFO));
        LinuxBootConfigurator::write_bootparams(&params, memory).map_err(Error::Parameters)?;
        write_long_mode_tables(memory).map_err(Error::Tables)
    }
}

fn pvh_entry((range, kind): &(Range<u64>, MapKind)) -> hvm_memmap_table_entry {
    hvm_memmap_table_entry {
        addr: range.start,
        size: range.end - range.start,
        type_: *kind as u32,
        ..Default::default()
    }
}

fn e820_entry((range, kind): &(Range<u64>, MapKind)) -> boot_e820_entry {
    boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: *kind as u32 }
}

/// The descriptor table, and page tables that map the first 4 GiB to themselves with 2 MiB pages.
fn write_long_mode_tables(memory: &GuestMemory) -> vm_memory::guest_memory::Result<()> {
    const PAGE: u64 = 0x1000;
    const PRESENT_WRITABLE: u64 = 3;
    const HUGE: u64 = 1 << 7;
    let write = |address: u64, entries: &[u64]| {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(address))
    };
    let pointers = layout::PAGE_TABLES + PAGE;
    let directories: Vec<u64> = (1..=4).map(|i| (pointers + i * PAGE) | PRESENT_WRITABLE).collect();
    let pages: Vec<u64> = (0..4 * 512).map(|i| (i << 21) | HUGE | PRESENT_WRITABLE).collect();
    write(layout::GDT, &GDT)?;
    write(layout::PAGE_TABLES, &[pointers | PRESENT_WRITABLE])?;
    write(pointers, &directories)?;
    write(pointers + PAGE, &pages)
}

#[cfg(test)]
mod tests;
