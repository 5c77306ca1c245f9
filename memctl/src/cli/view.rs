//! What the monitor's JSON says about memory. Unknown fields are ignored, missing ones are zero:
//! monitors older and newer than this command are read as well as they can be.

use std::collections::BTreeMap;

use memctl::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::client::CallError;
use super::text::plain_name;

/// All there is to see at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// The monitor's answer to `vm.info`.
    pub(super) info: Value,
    /// Its answer to `vm.partitions`.
    pub(super) list: Value,
    /// What the first says.
    pub(super) machine: Machine,
    /// What the second says, in its order.
    pub(super) partitions: Vec<Partition>,
}

impl Look {
    /// Understands the two answers.
    ///
    /// # Errors
    /// [`CallError::Json`] when a field has another type than it should.
    pub(super) fn new(info: Value, list: Value) -> Result<Self, CallError> {
        let (machine, partitions) = (machine(&info)?, partitions(&list)?);
        Ok(Self { info, list, machine, partitions })
    }
}

/// One partition, as in `vm.partitions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "RawPartition")]
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
}

impl From<RawPartition> for Partition {
    fn from(raw: RawPartition) -> Self {
        Self {
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
        }
    }
}

/// The VM as a whole, from `vm.info`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// Where the VM is in its life, safe to print.
    pub(super) state: String,
    /// All the RAM the guest has.
    pub(super) actual: Bytes,
    /// Its memory that is no partition's.
    pub(super) shared: Shared,
}

/// The VM's shared memory: the RAM it booted with, and what was plugged without an owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shared {
    /// What it is wanted to be.
    pub(super) requested: Bytes,
    /// What it is.
    pub(super) plugged: Bytes,
    /// The most it ever was.
    pub(super) peak: Bytes,
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

#[derive(Default, Deserialize)]
#[serde(default)]
struct Account {
    requested: u64,
    plugged: u64,
    peak: u64,
}

impl From<Info> for Machine {
    fn from(info: Info) -> Self {
        let memory = &info.config.memory;
        let zones = memory.zones.iter().flatten().map(|zone| zone.size);
        let booted = zones.fold(memory.size, u64::saturating_add);
        let regions = || info.device_tree.values().filter_map(|device| device.memory.as_ref());
        // The monitor's numbers add up; a liar's must not wrap.
        let with_booted = |part: fn(&Account) -> u64| {
            Bytes::new(regions().map(|r| part(&r.shared)).fold(booted, u64::saturating_add))
        };
        let shared = Shared {
            requested: with_booted(|shared| shared.requested),
            plugged: with_booted(|shared| shared.plugged),
            peak: with_booted(|shared| shared.peak),
        };
        let actual = Bytes::new(info.memory_actual_size);
        Self { state: plain_name(&info.state), actual, shared }
    }
}

fn machine(value: &Value) -> Result<Machine, CallError> {
    Info::deserialize(value)
        .map(Machine::from)
        .map_err(|source| CallError::Json { call: "vm.info", source })
}

fn partitions(value: &Value) -> Result<Vec<Partition>, CallError> {
    Vec::deserialize(value).map_err(|source| CallError::Json { call: "vm.partitions", source })
}

/// Reads the partition that `call` was answered.
///
/// # Errors
/// [`CallError::Json`] when it is none.
pub(super) fn partition(call: &'static str, value: &Value) -> Result<Partition, CallError> {
    Partition::deserialize(value).map_err(|source| CallError::Json { call, source })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shared_memory_is_what_booted_and_what_no_partition_owns() {
        let region = |plugged: u64| {
            json!({"memory": {"requested": 1_u64 << 40, "plugged": 1_u64 << 40,
                              "shared": {"requested": 2_u64 << 30, "plugged": plugged, "peak": 9}}})
        };
        let info = json!({
            "state": "Running", "memory_actual_size": 5,
            "config": {"memory": {"size": 1 << 20, "zones": [{"id": "a", "size": 1 << 20}]}},
            "device_tree": {"_disk0": {"id": "_disk0"}, "a": region(1), "b": region(2)},
        });
        let machine = machine(&info).unwrap();
        assert_eq!((machine.state.as_str(), machine.actual), ("Running", Bytes::new(5)));
        let size = |extra: u64| Bytes::new((2 << 20) + extra);
        let shared = Shared { requested: size(4 << 30), plugged: size(3), peak: size(18) };
        assert_eq!(machine.shared, shared);
    }

    #[test]
    fn what_is_missing_is_zero_and_what_is_new_is_ignored() {
        let partitions = partitions(&json!([{"id": "a", "colour": "red"}])).unwrap();
        assert_eq!(partitions, [Partition { id: "a".into(), ..Partition::default() }]);
        let info = json!({"state": "Created", "config": {"memory": {"zones": null}}});
        assert_eq!(machine(&info).unwrap().shared, Shared::default());
    }

    #[test]
    fn no_peak_is_known_before_the_guest_has_said_what_is_in_use() {
        let peak = |json| partition("vm.add-partition", &json).unwrap().used_peak;
        assert_eq!(peak(json!({"used": null, "used_peak": 0, "peak": 4096})), None);
        assert_eq!(peak(json!({"used": 0, "used_peak": 9, "peak": 4096})), Some(Bytes::new(9)));
        assert_eq!(peak(json!({"used": 0, "peak": 4096})), None, "an older monitor");
    }

    #[test]
    fn lies_are_refused_or_harmless() {
        assert!(partitions(&json!({})).is_err());
        assert!(partitions(&json!([{"size": -1}])).is_err());
        assert!(machine(&json!(null)).is_err());
        let evil = json!({"id": "\u{1b}[2J\u{202e}é", "state": "a\nb"});
        let evil = partition("vm.add-partition", &evil).unwrap();
        assert_eq!((evil.id.as_str(), evil.state.as_str()), ("?[2J??", "a?b"));
        let huge = json!({"config": {"memory": {"size": u64::MAX, "zones": [{"size": 1}]}}});
        assert_eq!(machine(&huge).unwrap().shared.plugged, Bytes::new(u64::MAX));
    }
}
