//! The DSDT: devices the guest can't find by itself.

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Equal, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method,
    Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use devices::platform::power::{self, Event};

use super::{OEM, OEM_TABLE, Platform, REVISION, layout};

/// The table's bytes, checksum included.
pub(super) fn bytes(platform: &Platform) -> Vec<u8> {
    let mut body = Vec::new();
    let mut add = |aml: &dyn Aml| aml.to_aml_bytes(&mut body);
    pci(platform.pci_memory_64.as_ref(), &mut add);
    motherboard(&mut add);
    if platform.serial {
        serial(&mut add);
    }
    rtc(&mut add);
    events(&mut add);
    // S5, soft off, is sleep type 5 in the sleep control register.
    add(&Name::new("_S5_".into(), &Package::new(vec![&power::SLEEP_TYPE_S5])));
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}

/// Receives one object after another.
type Add<'a> = dyn FnMut(&dyn Aml) + 'a;

fn pci(memory_64: Option<&Range<u64>>, add: &mut Add<'_>) {
    let window = |range: &Range<u64>| {
        AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            range.start,
            range.end - 1,
            None,
        )
    };
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let memory_32 = window(&layout::PCI_MEMORY_32);
    let memory_64 = memory_64.map(window);
    let mut windows: Vec<&dyn Aml> = vec![&bus, &ports, &memory_32];
    windows.extend(memory_64.as_ref().map(|window| window as &dyn Aml));
    add(&Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(windows)),
        ],
    ));
}

/// Linux believes MCFG only for memory that a device here claims.
fn motherboard(add: &mut Add<'_>) {
    let size = (layout::ECAM.end - layout::ECAM.start) as u32;
    add(&Device::new(
        "_SB_.MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(
                    true,
                    layout::ECAM.start as u32,
                    size,
                )]),
            ),
        ],
    ));
}

fn serial(add: &mut Add<'_>) {
    let start = layout::SERIAL_PORTS.start as u16;
    add(&Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Interrupt::new(true, true, false, false, layout::SERIAL_LINE),
                    &IO::new(start, start, 1, 8),
                ]),
            ),
        ],
    ));
}

fn rtc(add: &mut Add<'_>) {
    let start = layout::RTC_PORTS.start as u16;
    add(&Device::new(
        "_SB_.RTC0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(start, start, 1, 2)])),
        ],
    ));
}

/// The power button, and the generic event device that reports it (ACPI 6.5, 5.6.9): its method
/// reads the pending events, which clears them, and notifies the device of each.
fn events(add: &mut Add<'_>) {
    add(&Device::new(
        "_SB_.PWRB".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &ZERO),
        ],
    ));
    let port = layout::POWER_PORTS.start + power::EVENTS;
    let pending = Path::new("PEND");
    add(&Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    layout::EVENT_LINE,
                )]),
            ),
            &OpRegion::new("REGS".into(), OpRegionSpace::SystemIO, &(port as u16), &ONE),
            &Field::new(
                "REGS".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"PEND", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &pending),
                    &And::new(&Local(1), &Local(0), &(Event::PowerButton as u8)),
                    &If::new(
                        &Equal::new(&Local(1), &(Event::PowerButton as u8)),
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &0x80u8)],
                    ),
                ],
            ),
        ],
    ));
}
