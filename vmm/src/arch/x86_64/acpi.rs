//! ACPI tables of a hardware-reduced machine (ACPI 6.5, 4.1): no fixed registers beyond sleep and
//! reset, events through a generic event device, no legacy controllers for the guest to look for.

mod dsdt;

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
    let tables = [
        writer.put(&bytes(&fadt(dsdt)))?,
        writer.put(&bytes(&madt(platform)))?,
        writer.put(&bytes(&mcfg()))?,
    ];
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
        assert!(self.next <= layout::ACPI.end, "255 CPUs' tables take under 8 KiB");
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
