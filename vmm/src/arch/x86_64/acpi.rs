//! ACPI tables of a hardware-reduced machine (ACPI 6.5, 4.1): no fixed registers beyond sleep and
//! reset, events through a generic event device, no legacy controllers for the guest to look for.

mod dsdt;
mod numa;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use devices::guest_memory::GuestMemory;
use devices::platform::power;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

pub use self::numa::{Affinity, Numa};
use super::layout;

const OEM: [u8; 6] = *b"TESERA";
const OEM_TABLE: [u8; 8] = *b"TESSERA ";
const REVISION: u32 = 1;

/// What the tables describe, apart from what [`layout`] fixes.
pub struct Platform {
    /// APIC id of each CPU.
    pub apic_ids: Vec<u8>,
    /// The 64-bit PCI aperture, where there is one.
    pub pci_memory_64: Option<Range<u64>>,
    /// Whether COM1 exists.
    pub serial: bool,
    /// What belongs to which NUMA node, where there are any.
    pub numa: Option<Numa>,
}

/// Writes the tables to [`layout::ACPI`] and returns the address of their root pointer.
///
/// # Errors
/// RAM ends below them.
pub fn write(platform: &Platform, memory: &GuestMemory) -> Result<u64, GuestMemoryError> {
    // The root pointer comes first, where a scan of the BIOS area would find it.
    let rsdp = layout::ACPI.start;
    let mut writer = Writer { memory, next: rsdp + 64 };
    let dsdt = writer.put(&dsdt::bytes(platform))?;
    let mut tables = vec![
        writer.put(&bytes(&fadt(dsdt)))?,
        writer.put(&bytes(&madt(platform)))?,
        writer.put(&bytes(&mcfg()))?,
    ];
    if let Some(numa) = &platform.numa {
        tables.push(writer.put(&bytes(&numa.srat(&platform.apic_ids)))?);
        tables.push(writer.put(&bytes(&numa.slit()))?);
    }
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    tables.into_iter().for_each(|table| xsdt.add_entry(table));
    let xsdt = writer.put(&bytes(&xsdt))?;
    memory.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(rsdp))?;
    Ok(rsdp)
}

/// Places tables one after another.
struct Writer<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Writer<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, GuestMemoryError> {
        let address = self.next;
        self.next = (address + table.len() as u64).next_multiple_of(16);
        assert!(self.next <= layout::ACPI.end, "255 CPUs and 64 nodes take under 32 KiB");
        self.memory.write_slice(table, GuestAddress(address))?;
        Ok(address)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> impl Aml {
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    let register = |offset: u64| {
        let port = layout::POWER_PORTS.start + offset;
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM).into();
    fadt.reset_reg = register(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(power::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(platform: &Platform) -> MADT {
    let local = LocalInterruptController::Address(layout::LAPIC as u32);
    let mut madt = MADT::new(OEM, OEM_TABLE, REVISION, local);
    for (index, &apic_id) in platform.apic_ids.iter().enumerate() {
        madt.add_structure(ProcessorLocalApic::new(index as u8, apic_id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    mcfg
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use devices::guest_memory::Region;
    use vm_memory::MmapRegion;

    use super::*;

    fn memory(size: usize) -> GuestMemory {
        let region = Region::open(MmapRegion::new(size).unwrap(), GuestAddress(0)).unwrap();
        GuestMemory::from_regions(vec![region]).unwrap()
    }

    fn platform(cpus: u8) -> Platform {
        let pci_memory_64 = Some(0x1_0000_0000..0x10_0000_0000);
        Platform { apic_ids: (0..cpus).collect(), pci_memory_64, serial: true, numa: None }
    }

    /// A platform of the most nodes, each with a vCPU and memory that comes and goes.
    fn nodes(cpus: u8) -> Platform {
        let start = |node: u16| (4 + u64::from(node)) << 30;
        let memory = (0..64).map(|node| Affinity {
            range: start(node)..start(node) + (1 << 30),
            node,
            hotplug: node % 2 == 1,
        });
        let numa = Numa {
            cpus: (0..cpus).map(|cpu| u16::from(cpu % 64)).collect(),
            memory: memory.collect(),
            distances: vec![(0, 1, 15), (1, 0, 25)],
        };
        Platform { numa: Some(numa), ..platform(cpus) }
    }

    fn u64_at(memory: &GuestMemory, address: u64) -> u64 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// The table at `address`, as long as its header says.
    fn table(memory: &GuestMemory, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// The tables that a guest finds, by signature, found the way it finds them.
    fn tables(platform: &Platform) -> Vec<(String, Vec<u8>)> {
        let memory = memory(1 << 20);
        let rsdp = write(platform, &memory).unwrap();
        let xsdt = table(&memory, u64_at(&memory, rsdp + 24));
        let entries = xsdt[36..].chunks_exact(8).map(|e| u64::from_le_bytes(e.try_into().unwrap()));
        let mut tables: Vec<_> = entries.map(|entry| table(&memory, entry)).collect();
        let fadt = tables.iter().find(|table| table.starts_with(b"FACP")).unwrap();
        let dsdt = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
        tables.push(table(&memory, dsdt));
        let name = |table: &[u8]| String::from_utf8(table[..4].to_vec()).unwrap();
        tables.into_iter().map(|table| (name(&table), table)).collect()
    }

    #[test]
    fn a_guest_finds_every_table_with_a_good_checksum() {
        let names = |tables: &[(String, Vec<u8>)]| {
            tables.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&tables(&platform(2))), ["FACP", "APIC", "MCFG", "DSDT"]);
        let tables = tables(&nodes(2));
        assert_eq!(names(&tables), ["FACP", "APIC", "MCFG", "SRAT", "SLIT", "DSDT"]);
        for (name, bytes) in &tables {
            assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{name}");
        }
    }

    #[test]
    fn nodes_have_their_processors_memory_and_distances() {
        let tables = tables(&nodes(2));
        let table = |name: &str| &tables.iter().find(|(its, _)| its == name).unwrap().1;
        let srat = table("SRAT");
        assert_eq!(srat.len(), 48 + 2 * 16 + 64 * 40);
        // The second processor: type, length, domain, APIC id, enabled.
        assert_eq!(srat[64..72], [0, 16, 1, 1, 1, 0, 0, 0]);
        let second = &srat[48 + 32 + 40..][..40];
        assert_eq!(second[..6], [1, 40, 1, 0, 0, 0]);
        assert_eq!(second[8..16], (5u64 << 30).to_le_bytes());
        assert_eq!(second[16..24], (1u64 << 30).to_le_bytes());
        assert_eq!(second[28], 3, "enabled and hot-pluggable");
        let slit = table("SLIT");
        assert_eq!(slit[36..44], 64u64.to_le_bytes());
        assert_eq!(slit[44..47], [10, 15, 20]);
        assert_eq!(slit[44 + 64..][..3], [25, 10, 20]);
    }

    #[test]
    fn the_largest_machine_fits_and_the_smallest_memory_is_an_error() {
        let madt = tables(&nodes(254)).swap_remove(1).1;
        assert_eq!(madt.len(), 44 + 254 * 8 + 12);
        write(&platform(1), &memory(0xe0000)).unwrap_err();
    }

    /// Runs the reference compiler in `folder`; its report.
    fn iasl(folder: &Path, arguments: &[&str]) -> String {
        let output = Command::new("iasl").args(arguments).current_dir(folder).output();
        let output = output.expect("iasl runs; `cargo xtask setup` installs acpica-tools");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    }

    #[test]
    fn the_reference_compiler_takes_every_table_apart_and_back_together() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in tables(&nodes(4)) {
            let file = format!("{name}.dat");
            fs::write(folder.path().join(&file), bytes).unwrap();
            iasl(folder.path(), &["-d", &file]);
            let report = iasl(folder.path(), &["-ve", &format!("{name}.dsl")]);
            assert!(report.contains("0 Errors, 0 Warnings"), "{name}: {report}");
        }
    }
}
