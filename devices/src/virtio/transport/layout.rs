//! Where things are: the one BAR, and the capabilities that point into it (virtio 1.3, 4.1.4).

use crate::pci::msix::{self, Msix};
use crate::pci::{Bar, BarKind, Class, Configuration, Identity};

/// The BAR that holds everything.
pub(super) const BAR: Bar = Bar { index: 0, size: 0x8000, kind: BarKind::Memory64 };

/// The notify address of queue `n` is `n` times this after [`Area::Notify`].
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// The most queues whose doorbells and vectors fit the areas: one vector more than queues.
pub(super) const MAX_QUEUES: usize = 511;

const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
const CAPABILITY_VENDOR: u8 = 9;

/// A part of the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    /// Common configuration, 4.1.4.3.
    Common,
    /// ISR status, 4.1.4.5.
    Isr,
    /// Device-specific configuration, 4.1.4.6.
    Device,
    /// Doorbells, 4.1.4.4.
    Notify,
    /// The MSI-X table.
    MsixTable,
    /// The MSI-X pending bits.
    MsixPending,
}

impl Area {
    const ALL: [Self; 6] =
        [Self::Common, Self::Isr, Self::Device, Self::Notify, Self::MsixTable, Self::MsixPending];

    /// Where it starts in the BAR.
    pub(super) const fn start(self) -> u32 {
        match self {
            Self::Common => 0x0000,
            Self::Isr => 0x1000,
            Self::Device => 0x2000,
            Self::Notify => 0x3000,
            Self::MsixTable => 0x4000,
            Self::MsixPending => 0x6000,
        }
    }

    /// The area that `offset` in the BAR lies in, and the offset in it. An area reaches to the
    /// start of the next.
    pub(super) fn find(offset: u64) -> (Self, u64) {
        let below = |area: &&Self| u64::from(area.start()) <= offset;
        let area = Self::ALL.iter().rev().find(below).copied().unwrap_or(Self::Common);
        (area, offset - u64::from(area.start()))
    }
}

/// A function's configuration space, and where in it the parts that act are.
pub(super) struct Layout {
    /// The registers.
    pub(super) config: Configuration,
    /// MSI-X Message Control.
    pub(super) msix_control: usize,
    /// The window into the BAR.
    pub(super) window: ConfigWindow,
}

impl Layout {
    /// For a device of type `device_id` with `queues` queues.
    pub(super) fn new(device_id: u16, queues: usize, msix: &Msix) -> Self {
        let mut config = Configuration::new(identity(device_id));
        config.add_bar(BAR);
        let notify_len = NOTIFY_MULTIPLIER * queues as u32;
        let mut add = |kind, area: Area, length, extra: &[u8]| {
            let body = capability(kind, area.start(), length, extra);
            config.add_capability(CAPABILITY_VENDOR, &body, &[]);
        };
        add(1, Area::Common, super::common::LENGTH, &[]);
        add(2, Area::Notify, notify_len, &NOTIFY_MULTIPLIER.to_le_bytes());
        add(3, Area::Isr, 1, &[]);
        add(4, Area::Device, Area::Notify.start() - Area::Device.start(), &[]);
        let body = capability(5, 0, 0, &[0; 4]);
        let window = ConfigWindow {
            at: config.add_capability(CAPABILITY_VENDOR, &body, &ConfigWindow::WRITABLE),
        };
        let (table, pending) = (Area::MsixTable.start(), Area::MsixPending.start());
        let (body, writable) = msix.capability(BAR.index, table, pending);
        let at = config.add_capability(msix::CAPABILITY_ID, &body, &writable);
        Self { config, msix_control: at + msix::CONTROL_OFFSET, window }
    }
}

/// The PCI identity of virtio device type `device_id` (virtio 1.3, 4.1.2). A driver goes by the
/// vendor and device id; the class is for people who run `lspci`.
fn identity(device_id: u16) -> Identity {
    let (base, sub) = match device_id {
        1 => (0x02, 0x00),
        2 => (0x01, 0x80),
        3 => (0x07, 0x80),
        _ => (0xff, 0x00),
    };
    let device = FIRST_DEVICE + device_id;
    Identity {
        vendor: VENDOR,
        device,
        revision: 1,
        class: Class { base, sub },
        subsystem_vendor: VENDOR,
        subsystem: device,
    }
}

/// `struct virtio_pci_cap` (virtio 1.3, 4.1.4) after its id and link, for [`BAR`].
fn capability(kind: u8, offset: u32, length: u32, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + extra.len() as u8, kind, BAR.index, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(extra);
    body
}

/// VIRTIO_PCI_CAP_PCI_CFG (virtio 1.3, 4.1.4.9): a window of at most 4 bytes into the BAR, for
/// firmware that can reach configuration space only. The driver sets offset and length; reading or
/// writing the data register then reads or writes the BAR.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfigWindow {
    /// Where the capability starts.
    at: usize,
}

impl ConfigWindow {
    /// BAR, offset, length and data, seen from behind the capability's id and link.
    const WRITABLE: [u8; 18] =
        [0, 0, 0xff, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255];

    /// Where the data register is.
    pub(super) fn data(self) -> usize {
        self.at + 16
    }

    /// Whether an access to configuration space touches the data register.
    pub(super) fn is_touched(self, offset: usize, len: usize) -> bool {
        offset < self.data() + 4 && self.data() < offset + len
    }

    /// The part of the BAR that the data register now stands for: offset and length. `None` while
    /// the driver has it set to something that does not exist.
    pub(super) fn target(self, config: &Configuration) -> Option<(u64, usize)> {
        let bar = config.u16_at(self.at + 4) as u8;
        let offset = u64::from(config.u32_at(self.at + 8));
        let length = config.u32_at(self.at + 12);
        let aligned = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(u64::from(length));
        (bar == BAR.index && aligned && offset < BAR.size).then_some((offset, length as usize))
    }
}
