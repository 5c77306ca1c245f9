//! What clients see of a virtio-mem region, and its partitioner's refusals as errors of the API.

use std::time::Duration;

use devices::virtio::mem::PartitionView;
use memctl::partitioner::HostError;
use memctl::{Account, Bytes, Geometry, Partition, PartitionState, Partitioner};
use serde::Serialize;

use super::bodies::Release;
use super::reply::{ApiError, ErrorKind};

/// A partition; sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionReply {
    /// Its name, as the client gave it.
    pub id: String,
    /// The guest's number for it, which `memory.partition` takes and which names its folder in the
    /// driver's `partitions`. It is of this partition alone, until the guest's kernel ends; `None`
    /// of one that is a NUMA node.
    pub number: Option<u32>,
    /// Where it is in its life; `absent` when it was removed.
    pub state: PartitionState,
    /// What becomes of it when it is empty. One that is a NUMA node is kept, whatever was wished.
    pub release: Release,
    /// What it is wanted to have.
    pub size: u64,
    /// What the guest has taken of it.
    pub plugged: u64,
    /// What the guest says is in use; `None` until it has said so.
    pub used: Option<u64>,
    /// The most that the guest said was in use.
    pub used_peak: u64,
    /// The most that was ever plugged.
    pub peak: u64,
    /// What the guest says its instance keeps in shared memory for lack of room.
    pub spilled: u64,
    /// What the guest says it could not move out; of one that is a NUMA node, what was not back when
    /// the patience of a removal was over.
    pub stuck: u64,
    /// Runs of blocks plugged since it was added.
    pub plugs: u64,
    /// Runs of blocks unplugged since it was added.
    pub unplugs: u64,
    /// Microseconds that the host took to close and free what was last given back of it.
    pub last_release_us: Option<u64>,
    /// To `vm.remove-partition`: microseconds from that call until the host had all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removal_us: Option<u64>,
    /// The guest's NUMA node that it is, where its guest has no partitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<u16>,
    /// Where it lies, ascending.
    pub extents: Vec<ExtentReply>,
    /// What the guest shows its userspace.
    pub cookie: u64,
}

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExtentReply {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
}

impl PartitionReply {
    /// What there is to say about `partition` of the region at `geometry`.
    pub fn new(partition: &Partition, geometry: &Geometry) -> Self {
        let extents = partition.extents().iter().map(|extent| ExtentReply {
            addr: geometry.address_of(extent.first()),
            size: geometry.bytes(extent.count()).as_u64(),
        });
        let view = PartitionView::new(geometry, partition);
        Self { extents: extents.collect(), ..Self::from(&view) }
    }
}

/// Without the extents, which a view does not have.
impl From<&PartitionView> for PartitionReply {
    fn from(view: &PartitionView) -> Self {
        Self {
            id: view.name.to_string(),
            number: view.node.is_none().then_some(view.id.0),
            state: view.state,
            release: view.policy.into(),
            size: view.requested.as_u64(),
            plugged: view.plugged.as_u64(),
            used: view.hints.used.map(Bytes::as_u64),
            used_peak: view.hints.used_peak.as_u64(),
            peak: view.peak.as_u64(),
            spilled: view.hints.spilled.as_u64(),
            stuck: view.hints.stuck.as_u64(),
            plugs: view.counters.plugs,
            unplugs: view.counters.unplugs,
            last_release_us: view.last_release.map(micros),
            removal_us: None,
            node: view.node,
            extents: Vec::new(),
            cookie: view.cookie.0,
        }
    }
}

/// Whole microseconds, as far as they fit.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What one virtio-mem device holds; sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RegionReply {
    /// Guest-physical address of the region.
    pub addr: u64,
    /// Length of the region.
    pub size: u64,
    /// Size of a block: what comes and goes is a whole number of them.
    pub block_size: u64,
    /// Length of what the guest may use of the region now.
    pub usable: u64,
    /// What all owners together are wanted to have.
    pub requested: u64,
    /// What all owners together have.
    pub plugged: u64,
    /// The share that is no partition's. Nothing of a slot is.
    pub shared: SharedReply,
}

/// Plugged memory of the VM as a whole; sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SharedReply {
    /// What it is wanted to be.
    pub requested: u64,
    /// What it is.
    pub plugged: u64,
    /// The most it ever was.
    pub peak: u64,
}

impl From<&Partitioner> for RegionReply {
    fn from(partitioner: &Partitioner) -> Self {
        let geometry = partitioner.geometry();
        let bytes = |count| geometry.bytes(count).as_u64();
        let &Account { requested, plugged, peak, .. } = partitioner.shared();
        Self {
            addr: geometry.addr(),
            size: geometry.size().as_u64(),
            block_size: geometry.block_size().as_u64(),
            usable: partitioner.usable_size().as_u64(),
            requested: partitioner.requested_size().as_u64(),
            plugged: partitioner.plugged_size().as_u64(),
            shared: SharedReply {
                requested: bytes(requested),
                plugged: bytes(plugged),
                peak: bytes(peak),
            },
        }
    }
}

/// What can never be is the client's mistake; what cannot be now is a conflict.
impl From<HostError> for ApiError {
    fn from(error: HostError) -> Self {
        let kind = match error {
            HostError::Zero(_) | HostError::OverPartitionArea(_) | HostError::OverSharedArea(_) => {
                ErrorKind::Invalid
            }
            HostError::Unknown(_) => ErrorKind::NotFound,
            HostError::NameTaken(_)
            | HostError::TooManyPartitions(_)
            | HostError::NoRoom { .. }
            | HostError::HostFull { .. } => ErrorKind::WrongState,
        };
        Self::from_error(kind, &error)
    }
}

#[cfg(test)]
mod tests {
    use memctl::{BlockRange, Blocks, Cookie, Layout, PartitionId, Policy};
    use serde_json::json;

    use super::*;

    const ADDR: u64 = 1 << 32;

    /// A region of 1 GiB, a quarter of it shared, with partition `fn-7` of 4 blocks, 3 plugged.
    fn partitioner() -> (Partitioner, PartitionId) {
        let geometry = Geometry::new(ADDR, Bytes::mib(2), Bytes::gib(1)).unwrap();
        let layout = Layout { geometry, shared_area: Blocks::new(128), max_partitions: 1 };
        let mut made = Partitioner::new(layout);
        made.resize_shared(Blocks::new(2), None).unwrap();
        let name = "fn-7".parse().unwrap();
        let id = made
            .add(name, Cookie(9), Blocks::new(4), Policy::default(), None, &mut |_| {})
            .unwrap();
        let range = BlockRange::checked(&geometry, ADDR + (256 << 20), 3).unwrap();
        made.plan_plug(range).unwrap().commit(&mut |_| {});
        (made, id)
    }

    #[test]
    fn partition_has_the_shape_clients_parse() {
        let (partitioner, id) = partitioner();
        let partition = partitioner.partition(id).unwrap();
        let reply = PartitionReply::new(partition, partitioner.geometry());
        let mut expected = json!({
            "id": "fn-7", "number": 1, "state": "requested", "release": "auto",
            "size": 8 << 20, "plugged": 6 << 20, "used": null, "used_peak": 0, "peak": 6 << 20,
            "spilled": 0, "stuck": 0, "plugs": 1, "unplugs": 0, "last_release_us": null,
            "cookie": 9,
            "extents": [{"addr": ADDR + (256 << 20), "size": 8 << 20}],
        });
        assert_eq!(serde_json::to_value(&reply).unwrap(), expected);

        let removed = PartitionReply { removal_us: Some(micros(Duration::MAX)), ..reply };
        expected["removal_us"] = json!(u64::MAX);
        assert_eq!(serde_json::to_value(&removed).unwrap(), expected);

        let view = PartitionView::new(partitioner.geometry(), partition);
        let node = PartitionReply::from(&PartitionView { node: Some(2), ..view });
        let json = serde_json::to_value(&node).unwrap();
        assert_eq!((&json["number"], &json["node"]), (&json!(null), &json!(2)));
    }

    #[test]
    fn region_has_the_shape_clients_parse() {
        let (partitioner, _) = partitioner();
        let reply = RegionReply::from(&partitioner);
        assert_eq!(
            serde_json::to_value(reply).unwrap(),
            json!({
                "addr": ADDR, "size": 1 << 30, "block_size": 2 << 20, "usable": (256 + 8) << 20,
                "requested": 12 << 20, "plugged": 6 << 20,
                "shared": {"requested": 4 << 20, "plugged": 0, "peak": 0},
            })
        );
    }

    #[test]
    fn refusals_of_the_partitioner_have_kinds() {
        let (mut partitioner, id) = partitioner();
        let mut add = |name: &str, size| {
            let (name, size, policy) =
                (name.parse().unwrap(), Blocks::new(size), Policy::default());
            let added = partitioner.add(name, Cookie(0), size, policy, None, &mut |_| {});
            ApiError::from(added.unwrap_err())
        };
        let conflict = ErrorKind::WrongState;
        assert_eq!(add("fn-7", 1), ApiError::new(conflict, "there is a partition fn-7 already"));
        assert_eq!(add("a", 0).kind, ErrorKind::Invalid);
        assert_eq!(add("a", 385).kind, ErrorKind::Invalid);
        assert_eq!(add("a", 384).kind, conflict);
        let mut resize =
            |id, size, free| partitioner.resize(id, Blocks::new(size), free, &mut |_| {});
        let kind = |result: Result<_, HostError>| ApiError::from(result.unwrap_err()).kind;
        assert_eq!(kind(resize(PartitionId(99), 1, None)), ErrorKind::NotFound);
        assert_eq!(kind(resize(id, 385, None)), ErrorKind::Invalid);
        assert_eq!(kind(resize(id, 5, Some(Bytes::ZERO))), conflict);
        assert_eq!(kind(partitioner.resize_shared(Blocks::new(129), None)), ErrorKind::Invalid);
    }
}
