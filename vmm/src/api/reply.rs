//! What a client is answered.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Display;

use serde::Serialize;

use super::config::{ConfigError, VmConfig};
use super::pending::Pending;
use super::regions::{PartitionReply, RegionReply};
use crate::machine::spec::InvalidConfig;

/// The answer to a request that was carried out.
#[derive(Debug)]
pub enum Reply {
    /// Done; nothing to say.
    Done,
    /// The answer comes later, and is waited for by the thread that called.
    Pending(Pending),
    /// To calls that change one partition: as it is now, or as it was last.
    Partition(Box<PartitionReply>),
    /// To [`super::Request::Partitions`].
    Partitions(Vec<PartitionReply>),
    /// To [`super::Request::Ping`].
    Ping(PingReply),
    /// To [`super::Request::Info`].
    Info(Box<InfoReply>),
    /// To [`super::Request::Counters`].
    Counters(Counters),
}

/// Which program answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PingReply {
    /// Version with a leading `v`, as `-V` prints it.
    pub build_version: String,
    /// Version alone.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// What the program was built with.
    pub features: Vec<String>,
}

impl PingReply {
    /// What this process answers.
    pub fn of_this_process() -> Self {
        Self {
            build_version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            features: vec!["kvm".to_owned()],
        }
    }
}

/// Everything about the VM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InfoReply {
    /// As the client gave it, with what was changed at run time.
    pub config: VmConfig,
    /// Where in its life the VM is.
    pub state: VmState,
    /// RAM the guest has now, in bytes: what it booted with, and what is plugged.
    pub memory_actual_size: u64,
    /// Devices by id.
    pub device_tree: BTreeMap<String, DeviceNode>,
}

/// Where in its life a VM is, in Cloud Hypervisor's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum VmState {
    /// Configured, not started; also after `vm.shutdown`.
    Created,
    /// vCPUs run.
    Running,
    /// The guest has ended.
    Shutdown,
    /// vCPUs are stopped.
    Paused,
}

/// A device, as the device tree shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceNode {
    /// Identifier, equal to its key in the tree.
    pub id: String,
    /// Always empty; Cloud Hypervisor's clients expect the field.
    pub resources: [(); 0],
    /// The device it hangs on.
    pub parent: Option<String>,
    /// The devices that hang on it.
    pub children: Vec<String>,
    /// PCI address, as in `0000:00:04.0`.
    pub pci_bdf: Option<String>,
    /// The memory that comes and goes through it. Cloud Hypervisor shows nothing of the kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<RegionReply>,
}

/// Counters by device id, then by name.
pub type Counters = BTreeMap<String, BTreeMap<&'static str, u64>>;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", chain.join(": "))]
pub struct ApiError {
    /// Whose fault it is.
    pub kind: ErrorKind,
    /// What happened, outermost first; at least one.
    pub chain: Vec<String>,
}

/// Kinds of errors, by the HTTP status they become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// 400: the request makes no sense.
    Invalid,
    /// 404: there is no such thing, or no VM.
    NotFound,
    /// 409: not in the state the VM is in.
    WrongState,
    /// 500: the monitor or its host failed.
    Internal,
    /// 501: Cloud Hypervisor does that.
    Unsupported,
}

impl ApiError {
    /// An error that is its own cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, chain: vec![message.into()] }
    }

    /// The client's mistake in the field at the JSON path `path`.
    pub fn field(path: &str, problem: impl Display) -> Self {
        Self::new(ErrorKind::Invalid, format!("{path}: {problem}"))
    }

    /// `error` and what it was caused by.
    pub fn from_error(kind: ErrorKind, error: &dyn Error) -> Self {
        let causes = std::iter::successors(Some(error), |error| (**error).source());
        Self { kind, chain: causes.map(ToString::to_string).collect() }
    }

    /// Puts what was being done in front.
    #[must_use]
    pub fn context(mut self, what: impl Display) -> Self {
        self.chain.insert(0, what.to_string());
        self
    }
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        Self::from_error(ErrorKind::Invalid, &error)
    }
}

/// Each problem becomes a message of its own.
impl From<InvalidConfig> for ApiError {
    fn from(error: InvalidConfig) -> Self {
        Self { kind: ErrorKind::Invalid, chain: error.problems }
            .context("the configuration is invalid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_lists_causes_outermost_first() {
        let error = VmConfig::from_json(b"{").unwrap_err();
        let error = ApiError::from(error).context("creating the VM");
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(
            error.chain,
            ["creating the VM", "not valid JSON", "EOF while parsing an object at line 1 column 1"]
        );
    }

    #[test]
    fn each_problem_of_a_configuration_is_a_message() {
        let problems = vec!["a: b".to_owned(), "c: d".to_owned()];
        let error = ApiError::from(InvalidConfig { problems });
        assert_eq!(error.chain, ["the configuration is invalid", "a: b", "c: d"]);
    }

    #[test]
    fn info_has_the_shape_clients_parse() {
        let node = DeviceNode {
            id: "_disk0".into(),
            pci_bdf: Some("0000:00:01.0".into()),
            ..DeviceNode::default()
        };
        let info = InfoReply {
            config: VmConfig::default(),
            state: VmState::Created,
            memory_actual_size: 1 << 29,
            device_tree: BTreeMap::from([("_disk0".into(), node)]),
        };
        let json = serde_json::to_value(&info).unwrap();
        assert_eq!(json["state"], "Created");
        assert_eq!(json["memory_actual_size"], 536_870_912);
        assert_eq!(json["config"]["serial"]["mode"], "Null");
        assert_eq!(
            json["device_tree"]["_disk0"],
            serde_json::json!({
                "id": "_disk0",
                "resources": [],
                "parent": null,
                "children": [],
                "pci_bdf": "0000:00:01.0",
            })
        );
    }
}
