//! What the monitor's JSON says about memory. Unknown fields are ignored, missing ones are zero:
//! monitors older and newer than this command are read as well as they can be.

use std::collections::BTreeMap;

use memctl::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::CallError;
use super::text::plain_name;

/// What shared memory is called where partitions have their names; no partition can be called so.
pub(super) const SHARED: &str = "(shared)";
/// Device identifiers start so, with a number or a zone's name behind.
const SLOT: &str = "__slot";
const ZONE: &str = "__mem_";

/// All there is to see at one time.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// The monitor's answer to `vm.info`.
    pub(super) info: Value,
    /// The VM as a whole.
    pub(super) machine: Machine,
    /// What `vm.partitions` says, in its order.
    pub(super) partitions: Vec<Partition>,
}

impl Look {
    /// Understands the two answers.
    ///
    /// # Errors
    /// [`CallError::Json`] when a field has another type than it should.
    pub(super) fn new(info: Value, list: Value) -> Result<Self, CallError> {
        let (machine, partitions) = (machine(&info)?, partitions(list)?);
        Ok(Self { info, machine, partitions })
    }

    /// The two answers, for programs.
    pub(super) fn json(&self) -> Value {
        let list: Value = self.partitions.iter().map(|partition| partition.json.clone()).collect();
        json!({"info": self.info, "partitions": list})
    }

    /// Shared memory, then the partitions.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Partition> {
        self.machine.shared.iter().chain(&self.partitions)
    }
}

/// One partition, as in `vm.partitions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Partition {
    /// Its name, safe to print.
    pub(super) id: String,
    /// Where it is in its life, safe to print.
    pub(super) state: String,
    /// What it is wanted to have.
    pub(super) size: Bytes,
    /// What the guest has taken of it.
    pub(super) plugged: Bytes,
    /// What the guest says is in use.
    pub(super) used: Option<Bytes>,
    /// The most that the guest said was in use.
    pub(super) used_peak: Option<Bytes>,
    /// What its instance keeps in shared memory for lack of room.
    pub(super) spilled: Bytes,
    /// What the guest could not move out.
    pub(super) stuck: Bytes,
    /// How long the host took for its last release, in microseconds.
    pub(super) last_release_us: Option<u64>,
    /// How long its removal took, in microseconds.
    pub(super) removal_us: Option<u64>,
    /// What the guest calls it: a number, or `node` and the node's.
    pub(super) guest: Option<String>,
    /// Whether it is a NUMA node of the guest's.
    pub(super) is_node: bool,
    /// All that the monitor said.
    pub(super) json: Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPartition {
    id: String,
    state: String,
    size: u64,
    plugged: u64,
    used: Option<u64>,
    used_peak: Option<u64>,
    spilled: u64,
    stuck: u64,
    last_release_us: Option<u64>,
    removal_us: Option<u64>,
    number: Option<u64>,
    node: Option<u64>,
}

impl Partition {
    /// Reads the partition that `call` was answered.
    ///
    /// # Errors
    /// [`CallError::Json`] when it is none.
    pub(super) fn new(call: &'static str, json: Value) -> Result<Self, CallError> {
        let raw = RawPartition::deserialize(&json);
        let raw = raw.map_err(|source| CallError::Json { call, source })?;
        let node = raw.node.map(|node| format!("node {node}"));
        Ok(Self {
            id: plain_name(&raw.id),
            state: plain_name(&raw.state),
            size: Bytes::new(raw.size),
            plugged: Bytes::new(raw.plugged),
            used: raw.used.map(Bytes::new),
            // Zero, and not null, until the guest has said what is in use.
            used_peak: raw.used.and(raw.used_peak).map(Bytes::new),
            spilled: Bytes::new(raw.spilled),
            stuck: Bytes::new(raw.stuck),
            last_release_us: raw.last_release_us,
            removal_us: raw.removal_us,
            is_node: raw.node.is_some(),
            guest: node.or_else(|| raw.number.map(|number| number.to_string())),
            json,
        })
    }

    /// Whether the guest has all that it is to have, and no more, and can use it.
    pub(super) fn is_settled(&self) -> bool {
        let has_it = ["plugged", "bound"].contains(&self.state.as_str());
        has_it && self.plugged == self.size && !self.is_being_prepared()
    }

    /// Whether the guest has it and can't use it yet: it tells the use of what it can. Of a node it
    /// never does.
    fn is_being_prepared(&self) -> bool {
        self.state == "plugged" && self.used.is_none() && !self.is_node
    }

    /// How far the guest is with what it is to have.
    pub(super) fn progress(&self) -> String {
        let Self { state, plugged, size, .. } = self;
        let ready = if self.is_being_prepared() { ", not usable yet" } else { "" };
        format!("{state}, {plugged} of {size} plugged{ready}")
    }
}

/// The VM as a whole, from `vm.info`.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// Where the VM is in its life, safe to print.
    pub(super) state: String,
    /// All the RAM the guest has.
    pub(super) actual: Bytes,
    /// Its memory that is no partition's, told as if it were one: the RAM it booted with, and what
    /// was plugged without an owner. With memory zones, one for each.
    pub(super) shared: Vec<Partition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Info {
    state: String,
    memory_actual_size: u64,
    config: Config,
    device_tree: BTreeMap<String, Device>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    memory: Memory,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Memory {
    size: u64,
    zones: Option<Vec<Zone>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Zone {
    id: String,
    size: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Device {
    memory: Option<Region>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Region {
    shared: Account,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Account {
    requested: u64,
    plugged: u64,
    peak: u64,
}

impl Account {
    /// The monitor's numbers add up; a liar's must not wrap.
    fn and(self, other: &Self) -> Self {
        Self {
            requested: self.requested.saturating_add(other.requested),
            plugged: self.plugged.saturating_add(other.plugged),
            peak: self.peak.saturating_add(other.peak),
        }
    }
}

impl From<Info> for Machine {
    fn from(info: Info) -> Self {
        let state = plain_name(&info.state);
        let devices = info.device_tree.iter();
        let accounts =
            devices.filter_map(|(id, device)| Some((id, device.memory.as_ref()?.shared)));
        // What a slot has is its partition's, also where an older monitor counts it as shared.
        let accounts: BTreeMap<_, _> = accounts.filter(|(id, _)| !id.starts_with(SLOT)).collect();
        let zone = |zone: &Zone| {
            let id = format!("(zone {})", plain_name(&zone.id));
            shared(id, &state, zone.size, accounts.get(&format!("{ZONE}{}", zone.id)))
        };
        let Memory { size, zones } = &info.config.memory;
        let shared = match zones.as_deref().unwrap_or_default() {
            [] => vec![shared(SHARED.into(), &state, *size, accounts.values())],
            zones => zones.iter().map(zone).collect(),
        };
        Self { state, actual: Bytes::new(info.memory_actual_size), shared }
    }
}

/// `booted` bytes of RAM, and what was plugged.
fn shared<'a>(
    id: String,
    state: &str,
    booted: u64,
    plugged: impl IntoIterator<Item = &'a Account>,
) -> Partition {
    let booted = Account { requested: booted, plugged: booted, peak: booted };
    let Account { requested, plugged, peak } = plugged.into_iter().fold(booted, Account::and);
    Partition {
        id,
        state: state.to_owned(),
        size: Bytes::new(requested),
        plugged: Bytes::new(plugged),
        json: json!({"state": state, "requested": requested, "plugged": plugged, "peak": peak}),
        ..Partition::default()
    }
}

fn machine(value: &Value) -> Result<Machine, CallError> {
    Info::deserialize(value)
        .map(Machine::from)
        .map_err(|source| CallError::Json { call: "vm.info", source })
}

/// Reads the answer to `vm.partitions`.
///
/// # Errors
/// [`CallError::Json`] when it is no list of partitions.
pub(super) fn partitions(list: Value) -> Result<Vec<Partition>, CallError> {
    let call = "vm.partitions";
    let list: Vec<Value> =
        Vec::deserialize(list).map_err(|source| CallError::Json { call, source })?;
    list.into_iter().map(|json| Partition::new(call, json)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(plugged: u64) -> Value {
        json!({"memory": {"requested": 1_u64 << 40, "plugged": 1_u64 << 40,
                          "shared": {"requested": 2_u64 << 30, "plugged": plugged, "peak": 9}}})
    }

    /// Name, size and plugged bytes of each row of shared memory.
    fn rows(info: &Value) -> Vec<(String, u64, u64)> {
        let rows = machine(info).unwrap().shared.into_iter();
        rows.map(|row| (row.id, row.size.as_u64(), row.plugged.as_u64())).collect()
    }

    #[test]
    fn shared_memory_is_what_booted_and_what_no_partition_owns() {
        let info = json!({
            "state": "Running", "memory_actual_size": 5, "config": {"memory": {"size": 1 << 20}},
            "device_tree": {"_disk0": {"id": "_disk0"}, "a": region(1), "b": region(2)},
        });
        let machine = machine(&info).unwrap();
        assert_eq!((machine.state.as_str(), machine.actual), ("Running", Bytes::new(5)));
        let size = |extra: u64| (1 << 20) + extra;
        assert_eq!(rows(&info), [(SHARED.into(), size(4 << 30), size(3))]);
        let json = json!({"state": "Running", "requested": size(4 << 30), "plugged": size(3),
                          "peak": size(18)});
        assert_eq!(machine.shared[0].json, json);
    }

    /// An older monitor says that what partitions in slots have is shared.
    #[test]
    fn what_slots_have_is_not_shared() {
        let info = json!({"config": {"memory": {"size": 7}},
                          "device_tree": {"__slot0": region(1), "__mem": region(2)}});
        assert_eq!(rows(&info), [(SHARED.into(), (2 << 30) + 7, 9)]);
    }

    #[test]
    fn zones_are_told_apart_and_those_that_cannot_grow_are_told_too() {
        let zones = json!([{"id": "near", "size": 10}, {"id": "far", "size": 20}]);
        let info = json!({"config": {"memory": {"size": 0, "zones": zones}}, "device_tree": {
            "__mem_far": region(1), "__partitions": region(4), "__slot0": region(8)}});
        let far = ("(zone far)".to_owned(), (2 << 30) + 20, 21);
        assert_eq!(rows(&info), [("(zone near)".into(), 10, 10), far]);
    }

    #[test]
    fn what_is_missing_is_zero_and_what_is_new_is_ignored() {
        let json = json!({"id": "a", "colour": "red"});
        let one = Partition { id: "a".into(), json: json.clone(), ..Partition::default() };
        assert_eq!(partitions(json!([json])).unwrap(), [one]);
        let info = json!({"state": "Created", "config": {"memory": {"zones": null}}});
        assert_eq!(rows(&info), [(SHARED.into(), 0, 0)]);
    }

    #[test]
    fn no_peak_is_known_before_the_guest_has_said_what_is_in_use() {
        let peak = |json| Partition::new("vm.add-partition", json).unwrap().used_peak;
        assert_eq!(peak(json!({"used": null, "used_peak": 0, "peak": 4096})), None);
        assert_eq!(peak(json!({"used": 0, "used_peak": 9, "peak": 4096})), Some(Bytes::new(9)));
        assert_eq!(peak(json!({"used": 0, "peak": 4096})), None, "an older monitor");
    }

    #[test]
    fn the_guest_has_a_number_or_a_node_for_a_partition() {
        let guest = |json| Partition::new("vm.partitions", json).unwrap().guest;
        assert_eq!(guest(json!({"number": 0})).as_deref(), Some("0"));
        assert_eq!(guest(json!({"number": null, "node": 2})).as_deref(), Some("node 2"));
        assert_eq!(guest(json!({})), None, "an older monitor");
    }

    #[test]
    fn a_partition_is_settled_when_the_guest_has_all_of_it_and_no_more() {
        let settled = |state: &str, size: u64| {
            let json = json!({"state": state, "size": size, "plugged": 2, "used": 0});
            Partition::new("vm.partitions", json).unwrap().is_settled()
        };
        assert!(settled("plugged", 2) && settled("bound", 2));
        assert!(!settled("requested", 2) && !settled("draining", 2));
        assert!(!settled("plugged", 1) && !settled("bound", 3));
    }

    #[test]
    fn what_the_guest_can_use_it_has_told_the_use_of_or_is_a_node() {
        let told = |json: Value| {
            let one = Partition::new("vm.partitions", json).unwrap();
            (one.is_settled(), one.progress())
        };
        let all = "plugged, 2 bytes of 2 bytes plugged";
        let fresh = json!({"state": "plugged", "size": 2, "plugged": 2, "used": null, "number": 1});
        assert_eq!(told(fresh), (false, format!("{all}, not usable yet")));
        let node = json!({"state": "plugged", "size": 2, "plugged": 2, "used": null, "node": 1});
        assert_eq!(told(node), (true, all.to_owned()));
    }

    #[test]
    fn lies_are_refused_or_harmless() {
        assert!(partitions(json!({})).is_err());
        assert!(partitions(json!([{"size": -1}])).is_err());
        assert!(machine(&json!(null)).is_err());
        let evil = json!({"id": "\u{1b}[2J\u{202e}é", "state": "a\nb"});
        let evil = Partition::new("vm.add-partition", evil).unwrap();
        assert_eq!((evil.id.as_str(), evil.state.as_str()), ("?[2J??", "a?b"));
        let zones = json!([{"id": "\n", "size": u64::MAX}]);
        let huge = json!({"config": {"memory": {"zones": zones}},
                          "device_tree": {"__mem_\n": region(1)}});
        assert_eq!(rows(&huge), [("(zone ?)".into(), u64::MAX, u64::MAX)]);
    }
}
