//! MSI-X (PCI 3.0, 6.8.2): the capability, the vector table and the pending bits.
//!
//! A vector is *open* when MSI-X is enabled, the function is not masked and neither is the vector;
//! otherwise it is *blocked*, and triggering it leaves a pending bit that is delivered when it
//! opens.
//!
//! Telling the host where a vector goes costs it a grace period of its whole interrupt routing
//! table. So it is told when a vector opens with a message it does not have yet, and at no other
//! time: not for writes to a blocked vector, and not for writes to an open one, whose effect the
//! specification leaves undefined.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use log::warn;

use crate::hypervisor::{MsiMessage, MsiVectors};
use crate::sync::lock;

/// The capability's id.
pub const CAPABILITY_ID: u8 = 0x11;
/// Bytes of one table entry.
pub const ENTRY_SIZE: u64 = 16;
/// Where Message Control lies in the capability.
pub const CONTROL_OFFSET: usize = 2;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const ENTRY_MASK: u32 = 1;

/// Gate bit: triggering waits.
const BLOCKED: u8 = 1;
/// Gate bit: a trigger is waiting.
const PENDING: u8 = 2;

/// A function's MSI-X vectors.
///
/// The guest's side (table, pending bits, control) is called on vCPU threads;
/// [`Msix::trigger`] on any thread, and takes no lock.
pub struct Msix {
    table: Mutex<Table>,
    /// Per vector, [`BLOCKED`] and [`PENDING`].
    gates: Box<[AtomicU8]>,
    enabled: AtomicBool,
    vectors: Box<dyn MsiVectors>,
    warned: AtomicBool,
}

struct Table {
    entries: Box<[Entry]>,
    control: u16,
}

#[derive(Clone)]
struct Entry {
    /// Message address, upper address, data, control.
    words: [u32; 4],
    /// What the host was last told.
    routed: Option<MsiMessage>,
}

impl Entry {
    const POWER_ON: [u32; 4] = [0, 0, 0, ENTRY_MASK];

    fn message(&self) -> MsiMessage {
        let [low, high, data, _] = self.words;
        MsiMessage { address: u64::from(high) << 32 | u64::from(low), data }
    }

    fn is_masked(&self) -> bool {
        self.words[3] & ENTRY_MASK != 0
    }
}

impl Msix {
    /// `count` vectors over those of the host, all blocked. `count` is 1 to 2048.
    pub fn new(vectors: Box<dyn MsiVectors>, count: u16) -> Self {
        let entry = Entry { words: Entry::POWER_ON, routed: None };
        let entries = vec![entry; usize::from(count)].into_boxed_slice();
        Self {
            table: Mutex::new(Table { entries, control: 0 }),
            gates: (0..count).map(|_| AtomicU8::new(BLOCKED)).collect(),
            enabled: AtomicBool::new(false),
            vectors,
            warned: AtomicBool::new(false),
        }
    }

    /// Number of vectors.
    pub fn count(&self) -> u16 {
        self.gates.len() as u16
    }

    /// Body and writable bits of the capability, for
    /// [`Configuration::add_capability`](super::Configuration::add_capability): the table is at
    /// `table` and the pending bits at `pending` in BAR `bar`, both multiples of 8.
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.count() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        (body, (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes())
    }

    /// Whether the guest has turned MSI-X on.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Raises `vector` when it is open, else marks it pending. A vector that does not exist is
    /// nothing to raise. Callable from any thread; never blocks.
    pub fn trigger(&self, vector: u16) {
        let Some(gate) = self.gates.get(usize::from(vector)) else { return };
        let mark = |gate| (gate & BLOCKED != 0).then_some(gate | PENDING);
        let waits = gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, mark).is_ok();
        if !waits {
            self.vectors.trigger(vector);
        }
    }

    /// The guest has written Message Control, which now reads `control`.
    pub fn set_control(&self, control: u16) {
        let mut table = lock(&self.table);
        if table.control == control {
            return;
        }
        table.control = control;
        self.enabled.store(control & CONTROL_ENABLE != 0, Ordering::Relaxed);
        for vector in 0..self.count() {
            self.settle(&mut table, vector);
        }
    }

    /// The guest reads the table. What lies past its end reads as zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = lock(&self.table);
        for (at, byte) in (offset..).zip(data) {
            let entry = table.entries.get((at / ENTRY_SIZE) as usize);
            let word = entry.map_or(0, |entry| entry.words[(at % ENTRY_SIZE / 4) as usize]);
            *byte = word.to_le_bytes()[(at % 4) as usize];
        }
    }

    /// The guest writes the table: an aligned 4 or 8 bytes. Anything else is dropped, as the
    /// specification defines no other access.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let len = data.len() as u64;
        if !matches!(len, 4 | 8) || !offset.is_multiple_of(len) {
            return;
        }
        let vector = offset / ENTRY_SIZE;
        let mut table = lock(&self.table);
        let Some(entry) = table.entries.get_mut(vector as usize) else { return };
        let words = &mut entry.words[(offset % ENTRY_SIZE / 4) as usize..];
        for (word, bytes) in words.iter_mut().zip(data.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        // The other bits of an entry's control are reserved and read as zero.
        entry.words[3] &= ENTRY_MASK;
        self.settle(&mut table, vector as u16);
    }

    /// The guest reads the pending bits, one per vector. What lies past their end reads as zero.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            let gates = self.gates.chunks(8).nth(at).unwrap_or_default();
            let bit = |gate: &AtomicU8| gate.load(Ordering::Acquire) & PENDING != 0;
            *byte = gates.iter().rev().fold(0, |bits, gate| bits << 1 | u8::from(bit(gate)));
        }
    }

    /// Opens or blocks `vector` as the registers now say.
    fn settle(&self, table: &mut Table, vector: u16) {
        let masked = CONTROL_ENABLE != table.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        let entry = &mut table.entries[usize::from(vector)];
        let gate = &self.gates[usize::from(vector)];
        if masked || entry.is_masked() {
            gate.fetch_or(BLOCKED, Ordering::AcqRel);
            return;
        }
        if gate.load(Ordering::Acquire) & BLOCKED == 0 || !self.route(entry, vector) {
            return;
        }
        // The route is in place before the gate opens: a trigger never takes the former one.
        if gate.swap(0, Ordering::AcqRel) & PENDING != 0 {
            self.vectors.trigger(vector);
        }
    }

    /// Tells the host where `vector` goes unless it knows; returns whether it does now.
    fn route(&self, entry: &mut Entry, vector: u16) -> bool {
        let message = entry.message();
        if entry.routed == Some(message) {
            return true;
        }
        match self.vectors.route(vector, Some(message)) {
            Ok(()) => entry.routed = Some(message),
            // Said once: the guest can make it happen as often as it likes.
            Err(error) if !self.warned.swap(true, Ordering::Relaxed) => {
                warn!(
                    "MSI-X vector {vector} stays blocked: the host refused {message:x?}: {error}"
                );
            }
            Err(_) => {}
        }
        entry.routed == Some(message)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pci::mock::{HostLog, MockVectors};
    use proptest::prelude::*;

    const ENABLE: u16 = CONTROL_ENABLE;
    const MASK_ALL: u16 = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;

    fn msix(count: u16) -> (Msix, Arc<HostLog>) {
        let log = Arc::new(HostLog::default());
        (Msix::new(Box::new(MockVectors(Arc::clone(&log))), count), log)
    }

    fn set(msix: &Msix, vector: u64, address: u32, data: u32) {
        msix.write_table(vector * 16, &address.to_le_bytes());
        msix.write_table(vector * 16 + 4, &[0; 4]);
        msix.write_table(vector * 16 + 8, &data.to_le_bytes());
    }

    fn mask(msix: &Msix, vector: u64, masked: bool) {
        msix.write_table(vector * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    fn pending(msix: &Msix) -> u64 {
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits);
        u64::from_le_bytes(bits)
    }

    #[test]
    fn the_capability_names_size_table_and_pending_bits() {
        let (msix, _) = msix(3);
        let (body, writable) = msix.capability(2, 0x4000, 0x6000);
        assert_eq!(body, [2, 0, 0x02, 0x40, 0, 0, 0x02, 0x60, 0, 0]);
        assert_eq!(writable, [0, 0xc0]);
    }

    #[test]
    fn a_blocked_vector_pends_until_each_mask_is_lifted() {
        let (msix, log) = msix(10);
        set(&msix, 9, 0xfee0_0000, 0x41);
        msix.trigger(9);
        assert_eq!(pending(&msix), 1 << 9);
        mask(&msix, 9, false);
        msix.set_control(MASK_ALL);
        msix.trigger(9);
        assert!(log.triggered().is_empty());
        msix.set_control(ENABLE);
        assert_eq!(log.triggered(), [9]);
        assert_eq!(pending(&msix), 0);
        msix.trigger(9);
        assert_eq!(log.triggered(), [9, 9]);
    }

    #[test]
    fn a_vector_that_does_not_exist_is_ignored() {
        let (msix, log) = msix(2);
        msix.set_control(ENABLE);
        msix.trigger(2);
        msix.trigger(0xffff);
        assert_eq!(pending(&msix), 0);
        assert!(log.triggered().is_empty());
    }

    #[test]
    fn the_host_hears_of_a_route_only_when_it_opens_changed() {
        let (msix, log) = msix(2);
        // What Linux does: enable with everything masked, fill in, then unmask.
        msix.set_control(MASK_ALL);
        set(&msix, 0, 0xfee0_0000, 1);
        set(&msix, 0, 0xfee0_1000, 2);
        assert!(log.routed().is_empty());
        msix.set_control(ENABLE);
        assert!(log.routed().is_empty());
        mask(&msix, 0, false);
        let first = MsiMessage { address: 0xfee0_1000, data: 2 };
        assert_eq!(log.routed(), [(0, Some(first))]);
        mask(&msix, 0, true);
        mask(&msix, 0, false);
        msix.set_control(MASK_ALL);
        msix.set_control(ENABLE);
        assert_eq!(log.routed().len(), 1, "an unchanged message is not routed again");
        mask(&msix, 0, true);
        set(&msix, 0, 0xfee0_2000, 2);
        mask(&msix, 0, false);
        let moved = MsiMessage { address: 0xfee0_2000, data: 2 };
        assert_eq!(log.routed(), [(0, Some(first)), (0, Some(moved))]);
    }

    #[test]
    fn a_refused_route_leaves_the_vector_blocked() {
        let (msix, log) = msix(1);
        log.refuse(true);
        msix.set_control(ENABLE);
        mask(&msix, 0, false);
        msix.trigger(0);
        assert_eq!((log.triggered(), pending(&msix)), (vec![], 1));
        log.refuse(false);
        mask(&msix, 0, true);
        mask(&msix, 0, false);
        assert_eq!((log.triggered(), pending(&msix)), (vec![0], 0));
    }

    #[test]
    fn eight_byte_accesses_span_two_words() {
        let (msix, _) = msix(2);
        msix.write_table(16, &0x1_fee0_0000_u64.to_le_bytes());
        msix.write_table(24, &0x0000_0002_0000_0041_u64.to_le_bytes());
        let mut entry = [0; 16];
        msix.read_table(16, &mut entry);
        assert_eq!(entry, [0, 0, 0xe0, 0xfe, 1, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0]);
        msix.write_table(20, &[0xff; 8]);
        msix.write_table(18, &[0xff; 4]);
        msix.write_table(16, &[0xff; 2]);
        let mut same = [0; 16];
        msix.read_table(16, &mut same);
        assert_eq!(entry, same, "unaligned or narrow writes are dropped");
    }

    #[test]
    fn no_trigger_is_lost_while_the_guest_masks_and_unmasks() {
        let (msix, log) = msix(1);
        msix.set_control(ENABLE);
        let msix = &msix;
        std::thread::scope(|scope| {
            scope.spawn(|| (0..1000).for_each(|_| msix.trigger(0)));
            scope.spawn(|| (0..1000).for_each(|i| mask(msix, 0, i % 2 == 0)));
        });
        mask(msix, 0, false);
        let before = log.triggered().len();
        assert!((1..=1000).contains(&before));
        msix.trigger(0);
        assert_eq!((log.triggered().len(), pending(msix)), (before + 1, 0));
    }

    proptest! {
        #[test]
        fn any_access_is_survived(
            steps in proptest::collection::vec(
                (0u64..200, proptest::collection::vec(any::<u8>(), 0..9), any::<u16>()), 1..60),
        ) {
            let (msix, _) = msix(5);
            for (offset, mut data, control) in steps {
                msix.write_table(offset, &data);
                msix.read_table(offset, &mut data);
                msix.read_pending(offset, &mut data);
                msix.set_control(control);
                msix.trigger(control);
            }
        }
    }
}
