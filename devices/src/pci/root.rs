//! The root bus: 32 slots, how a guest configures what is in them, and how its memory accesses
//! reach their BARs.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use super::bar::{Aperture, Bar, BarKind};
use super::config::{Class, Configuration, Identity};
use super::function::PciFunction;
use crate::bus::{Bus, BusDevice};
use crate::sync::{lock, read, write};

/// Slots on a bus.
pub const SLOTS: usize = 32;
/// Bytes of ECAM that the bus takes.
pub const ECAM_SIZE: u64 = 1 << 20;
/// The I/O ports of configuration mechanism 1 (PCI 3.0, 3.2.2.3.2).
pub const CONFIG_PORTS: Range<u64> = 0xcf8..0xd00;

/// The address of a function: segment 0, bus 0, function 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    slot: u8,
}

impl Bdf {
    /// The slot on bus 0: 0 to 31.
    pub fn slot(self) -> u8 {
        self.slot
    }
}

/// As Linux writes it: `0000:00:04.0`.
impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.slot)
    }
}

/// The guest-physical addresses that BARs may take. Both ranges must be announced to the guest as
/// windows of the host bridge, not prefetchable.
#[derive(Clone, Debug)]
pub struct Apertures {
    /// Below 4 GiB.
    pub low: Range<u64>,
    /// Above 4 GiB; may be empty.
    pub high: Range<u64>,
}

/// A function could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// All slots are taken.
    #[error("all {SLOTS} PCI slots are taken")]
    NoSlot,
    /// No aperture has room for a BAR.
    #[error("no PCI address space left for a BAR of {size:#x} bytes")]
    NoSpace {
        /// The BAR's size in bytes.
        size: u64,
    },
}

type Functions = [Option<Arc<dyn PciFunction>>; SLOTS];
/// Address of each mapped BAR, by slot and BAR index.
type Placed = BTreeMap<(u8, u8), u64>;

/// PCI bus 0.
///
/// Locks, in order: `placed`, then one of `functions`, `map` or a function's own. All but `placed`
/// are released before a function is called; `placed` is held while functions are told of moved
/// BARs, so that they hear of them in order, and no function can take it.
pub struct PciRoot {
    functions: RwLock<Functions>,
    apertures: Mutex<[Aperture; 2]>,
    windows: [Range<u64>; 2],
    map: RwLock<Arc<Bus>>,
    placed: Mutex<Placed>,
    /// CONFIG_ADDRESS.
    address: AtomicU32,
}

impl PciRoot {
    /// A bus with a host bridge in slot 0, which places BARs in `apertures`.
    pub fn new(apertures: Apertures) -> Arc<Self> {
        let mut functions = Functions::default();
        functions[0] = Some(Arc::new(HostBridge::new()));
        let windows = [apertures.low, apertures.high];
        Arc::new(Self {
            functions: RwLock::new(functions),
            apertures: Mutex::new(windows.clone().map(Aperture::new)),
            windows,
            map: RwLock::default(),
            placed: Mutex::default(),
            address: AtomicU32::new(0),
        })
    }

    /// Puts `function` in the lowest free slot and gives its BARs addresses, memory decode off. May
    /// be called while the guest runs; the guest then has to be told to look.
    ///
    /// # Errors
    /// No slot or no address space is left; the bus is then unchanged.
    pub fn attach(&self, function: Arc<dyn PciFunction>) -> Result<Bdf, AttachError> {
        let mut functions = write(&self.functions);
        let slot = functions.iter().position(Option::is_none).ok_or(AttachError::NoSlot)?;
        let mut apertures = lock(&self.apertures);
        let mut config = lock(function.config());
        let mut after = apertures.clone();
        let mut addresses = Vec::new();
        for &bar in config.bars() {
            let address =
                allocate(&mut after, bar).ok_or(AttachError::NoSpace { size: bar.size })?;
            addresses.push((bar, address));
        }
        *apertures = after;
        addresses.into_iter().for_each(|(bar, address)| config.place(bar, address));
        drop(config);
        functions[slot] = Some(function);
        Ok(Bdf { slot: slot as u8 })
    }

    /// The enhanced configuration space of this bus (PCI Express 5.0, 7.2.2), [`ECAM_SIZE`] bytes.
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(Arc::clone(self)))
    }

    /// Configuration mechanism 1, for the ports [`CONFIG_PORTS`].
    pub fn config_ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ConfigPorts(Arc::clone(self)))
    }

    /// The memory windows, each with the device that serves it. An empty window is left out.
    pub fn windows(self: &Arc<Self>) -> Vec<(Range<u64>, Arc<dyn BusDevice>)> {
        let window = |range: &Range<u64>| {
            let device = Window { root: Arc::clone(self), start: range.start };
            (range.clone(), Arc::new(device) as Arc<dyn BusDevice>)
        };
        self.windows.iter().filter(|range| !range.is_empty()).map(window).collect()
    }

    fn function(&self, slot: usize) -> Option<Arc<dyn PciFunction>> {
        read(&self.functions).get(slot)?.clone()
    }

    fn config_read(&self, slot: usize, offset: usize, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(function) = self.function(slot) {
            function.config_read(offset, data);
        }
    }

    fn config_write(&self, slot: usize, offset: usize, data: &[u8]) {
        let Some(function) = self.function(slot) else { return };
        let before = lock(function.config()).decoded();
        function.config_write(offset, data);
        let after = lock(function.config()).decoded();
        if before != after {
            self.remap();
        }
    }

    /// Brings the memory map in line with all configuration spaces and tells the functions whose
    /// BARs it moved.
    fn remap(&self) {
        let mut placed = lock(&self.placed);
        let functions = read(&self.functions).clone();
        let (map, now) = self.plan(&functions);
        let was = std::mem::replace(&mut *placed, now);
        let tell = |(slot, bar): (u8, u8), address| {
            if let Some(function) = &functions[usize::from(slot)] {
                function.bar_moved(bar, address);
            }
        };
        for (&key, _) in was.iter().filter(|(key, address)| placed.get(key) != Some(address)) {
            tell(key, None);
        }
        *write(&self.map) = Arc::new(map);
        for (&key, &address) in placed.iter().filter(|(key, address)| was.get(key) != Some(address))
        {
            tell(key, Some(address));
        }
    }

    /// The memory map that the configuration spaces call for. A BAR outside the windows, or on top
    /// of one in a lower slot, is not mapped.
    fn plan(&self, functions: &Functions) -> (Bus, Placed) {
        let (mut map, mut placed) = (Bus::default(), Placed::new());
        let present = (0..).zip(functions).filter_map(|(slot, f)| Some((slot, f.as_ref()?)));
        for (slot, function) in present {
            let decoded = lock(function.config()).decoded();
            for (bar, range) in decoded.into_iter().filter(|(_, range)| self.is_ours(range)) {
                let start = range.start;
                let window = BarWindow { function: Arc::clone(function), bar };
                if map.insert(range, Arc::new(window)).is_ok() {
                    placed.insert((slot, bar), start);
                }
            }
        }
        (map, placed)
    }

    fn is_ours(&self, range: &Range<u64>) -> bool {
        self.windows.iter().any(|window| window.start <= range.start && range.end <= window.end)
    }

    fn map(&self) -> Arc<Bus> {
        Arc::clone(&read(&self.map))
    }
}

/// A wide BAR goes high while there is room, so that what is low is left for those that need it.
fn allocate([low, high]: &mut [Aperture; 2], bar: Bar) -> Option<u64> {
    match bar.kind {
        BarKind::Memory32 => low.allocate(bar.size),
        BarKind::Memory64 => high.allocate(bar.size).or_else(|| low.allocate(bar.size)),
    }
}

/// Offset = bus, 8 bits; slot, 5; function, 3; register, 12.
struct Ecam(Arc<PciRoot>);

impl Ecam {
    /// Slot and register of an access, unless it is to another bus or function.
    fn decode(offset: u64) -> Option<(usize, usize)> {
        let (slot, function) = ((offset >> 15) as usize, offset >> 12 & 7);
        (slot < SLOTS && function == 0).then_some((slot, (offset & 0xfff) as usize))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((slot, register)) = Self::decode(offset) {
            self.0.config_read(slot, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, register)) = Self::decode(offset) {
            self.0.config_write(slot, register, data);
        }
    }
}

/// CONFIG_ADDRESS at offset 0, CONFIG_DATA at 4 to 7.
struct ConfigPorts(Arc<PciRoot>);

impl ConfigPorts {
    const ENABLE: u32 = 1 << 31;

    /// Slot and register of a data access; `None` while the address names no slot of ours.
    fn decode(&self, offset: u64) -> Option<(usize, usize)> {
        let address = self.0.address.load(Ordering::Relaxed);
        let (bus, function) = (address >> 16 & 0xff, address >> 8 & 7);
        let register = (address & 0xfc) as usize + offset.checked_sub(4)? as usize;
        let ours = address & Self::ENABLE != 0 && bus == 0 && function == 0;
        ours.then_some(((address >> 11 & 0x1f) as usize, register))
    }
}

/// Only a 4-byte access reaches CONFIG_ADDRESS. Narrower ones are to other devices, as a guest that
/// probes for this mechanism knows.
impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = self.0.address.load(Ordering::Relaxed).to_le_bytes();
        } else if let Some((slot, register)) = self.decode(offset) {
            self.0.config_read(slot, register, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.0.address.store(u32::from_le_bytes(data) & 0x80ff_fffc, Ordering::Relaxed);
        } else if let Some((slot, register)) = self.decode(offset) {
            self.0.config_write(slot, register, data);
        }
    }
}

/// One aperture, as the machine's bus sees it.
struct Window {
    root: Arc<PciRoot>,
    start: u64,
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.root.map().read(self.start + offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.root.map().write(self.start + offset, data);
    }
}

/// One mapped BAR.
struct BarWindow {
    function: Arc<dyn PciFunction>,
    bar: u8,
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.bar_read(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(self.bar, offset, data);
    }
}

/// A host bridge that does nothing but be there: without one, a guest doubts that there is a bus.
struct HostBridge(Mutex<Configuration>);

impl HostBridge {
    fn new() -> Self {
        Self(Mutex::new(Configuration::new(Identity {
            vendor: 0x8086,
            device: 0x0d57,
            revision: 0,
            class: Class { base: 6, sub: 0 },
            subsystem_vendor: 0,
            subsystem: 0,
        })))
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &Mutex<Configuration> {
        &self.0
    }
}

#[cfg(test)]
mod tests;
