//! The driver's half of the partition channel.

use super::*;

pub(super) const PART_PLUG: u16 = 0x100;
pub(super) const PART_RELEASE: u16 = 0x101;
pub(super) const PART_SHRINK: u16 = 0x102;
pub(super) const PART_QUERY: u16 = 0x103;
pub(super) const PART_NOTIFY: u16 = 0x104;

/// PART_QUERY's flag.
pub(super) const PENDING: u16 = 1;

/// Room for the longest answer.
pub(super) const RECORD_ROOM: u32 = 4152;

/// PART_NOTIFY's events.
pub(super) const BOUND: u16 = 1;
pub(super) const DRAINING: u16 = 2;
pub(super) const EMPTY: u16 = 3;
pub(super) const SPILLED: u16 = 4;
pub(super) const STUCK: u16 = 5;
pub(super) const IN_USE: u16 = 6;

impl Rig {
    /// A device without shared memory whose driver has negotiated the partition channel.
    pub(super) fn channel() -> Self {
        let mut rig = Self::new(layout(0), None);
        rig.reset();
        rig.activate_channel();
        rig
    }

    /// The driver starts, and has partitions.
    pub(super) fn activate_channel(&mut self) {
        let features = F_UNPLUGGED_INACCESSIBLE | F_PARTITION | F_PART_ZEROED;
        self.worker = self.try_activate(features).unwrap().pop();
    }

    /// Asks about a partition as a driver does that needs no record.
    pub(super) fn part(
        &mut self,
        kind: u16,
        id: PartitionId,
        flags: u16,
        event: u16,
        arg: u64,
    ) -> u16 {
        self.ask_raw(&part_request(kind, id, flags, event, arg)).0
    }

    pub(super) fn release(&mut self, id: PartitionId) -> u16 {
        self.part(PART_RELEASE, id, 0, 0, 0)
    }

    pub(super) fn shrink(&mut self, id: PartitionId, first: u64, count: u16) -> u16 {
        self.part(PART_SHRINK, id, count, 0, BASE + first * BLOCK)
    }

    pub(super) fn notify(&mut self, id: PartitionId, event: u16, arg: u64) -> u16 {
        self.part(PART_NOTIFY, id, 0, event, arg)
    }

    /// Asks for a record; its bytes when there is one.
    pub(super) fn ask_record(&mut self, request: &[u8; 24]) -> Result<Seen, u16> {
        self.write(REQUEST, request);
        self.write(REPLY, &[0xee; RECORD_ROOM as usize]);
        let len = self.send(&[readable(REQUEST, 24), writable(REPLY, RECORD_ROOM)]);
        let mut reply = vec![0; len as usize];
        self.memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
        assert_eq!(reply[1..10], [0; 9], "type, padding and state");
        match u16::from(reply[0]) {
            ACK => Ok(Seen::read(&reply)),
            answer => {
                assert_eq!(len, 10);
                Err(answer)
            }
        }
    }

    pub(super) fn part_plug(&mut self, id: PartitionId) -> Result<Seen, u16> {
        self.ask_record(&part_request(PART_PLUG, id, 0, 0, 0))
    }

    pub(super) fn query(&mut self, from: u32, flags: u16) -> Result<Seen, u16> {
        self.ask_record(&part_request(PART_QUERY, PartitionId(from), flags, 0, 0))
    }

    /// Adds a partition.
    pub(super) fn add(&self, name: &str, blocks: u64) -> PartitionId {
        let (name, policy) = (name.parse().unwrap(), Policy::default());
        self.handle.add_partition(name, Cookie(700), size(blocks), policy, None).unwrap().id
    }

    /// Adds a partition, and the guest takes it.
    pub(super) fn taken(&mut self, name: &str, blocks: u64) -> PartitionId {
        let id = self.add(name, blocks);
        self.part_plug(id).unwrap();
        id
    }

    /// Eight blocks in four runs, not plugged.
    pub(super) fn scattered(&mut self) -> PartitionId {
        let gaps = [1, 1, 1, BLOCKS - 11].map(|wall| {
            let gap = self.add(&format!("gap-{}", self.handle.partitions().len()), 2);
            self.add(&format!("wall-{}", gap.0), wall);
            gap
        });
        for gap in gaps {
            self.handle.remove_partition(gap).unwrap();
        }
        self.add("scattered", 8)
    }

    pub(super) fn view(&self, id: PartitionId) -> Option<PartitionView> {
        self.handle.partitions().into_iter().find(|one| one.id == id)
    }

    pub(super) fn part_gen(&self) -> u32 {
        self.config(PART_GEN) as u32
    }
}

/// A record as the driver reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: PartitionId,
    pub(super) flags: u32,
    pub(super) cookie: u64,
    /// In bytes, as it says.
    pub(super) size: u64,
    pub(super) plugged: u64,
    /// First block and number of blocks.
    pub(super) runs: Vec<(u64, u64)>,
}

impl Seen {
    /// The record of an answer, which must be exactly as long as it says.
    pub(super) fn read(reply: &[u8]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(reply[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().unwrap());
        assert_eq!((&reply[10..16], u32_at(52)), (&[0; 6][..], 0), "padding");
        let runs = u32_at(48) as usize;
        assert_eq!(reply.len(), 56 + 16 * runs);
        let run = |at: usize| {
            let (addr, size) = (u64_at(56 + 16 * at), u64_at(64 + 16 * at));
            assert_eq!(((addr - BASE) % BLOCK, size % BLOCK), (0, 0));
            ((addr - BASE) / BLOCK, size / BLOCK)
        };
        let [cookie, size, plugged] = [24, 32, 40].map(u64_at);
        let (id, flags) = (PartitionId(u32_at(16)), u32_at(20));
        Self { id, flags, cookie, size, plugged, runs: (0..runs).map(run).collect() }
    }
}

/// `struct virtio_mem_req` about a partition, with junk for padding.
pub(super) fn part_request(
    kind: u16,
    id: PartitionId,
    flags: u16,
    event: u16,
    arg: u64,
) -> [u8; 24] {
    let mut bytes = [0xa5; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..12].copy_from_slice(&id.0.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..16].copy_from_slice(&event.to_le_bytes());
    bytes[16..].copy_from_slice(&arg.to_le_bytes());
    bytes
}
