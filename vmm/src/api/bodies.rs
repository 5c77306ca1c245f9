//! The bodies of calls other than `vm.create`, and the requests they become.

use std::time::Duration;

use memctl::{Bytes, Cookie, PartitionName, Policy};
use serde::{Deserialize, Serialize};

use super::config::body_from_json;
use super::reply::ApiError;
use super::request::Request;

/// How long `vm.remove-partition` waits unless told otherwise, in milliseconds.
const DEFAULT_TIMEOUT: u64 = 1000;
/// The longest it can be told to: a waiting call occupies one of few connections.
const MAX_TIMEOUT: u64 = 60_000;

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Resize {
    desired_vcpus: Option<u64>,
    desired_ram: Option<u64>,
    desired_balloon: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct ResizeZone {
    id: String,
    desired_ram: u64,
}

#[derive(Serialize, Deserialize)]
struct AddPartition {
    id: String,
    size: u64,
    #[serde(default)]
    prefault: bool,
    #[serde(default)]
    cookie: u64,
    #[serde(default)]
    release: Release,
}

/// What becomes of a partition that is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Release {
    /// The guest gives it back by itself.
    #[default]
    Auto,
    /// The guest keeps it until it is removed.
    Manual,
}

impl From<Policy> for Release {
    fn from(policy: Policy) -> Self {
        if policy.keep { Self::Manual } else { Self::Auto }
    }
}

#[derive(Serialize, Deserialize)]
struct RemovePartition {
    id: String,
    #[serde(default = "default_timeout")]
    timeout_ms: u64,
    #[serde(default)]
    evacuate: bool,
}

#[derive(Serialize, Deserialize)]
struct ResizePartition {
    id: String,
    size: u64,
}

const fn default_timeout() -> u64 {
    DEFAULT_TIMEOUT
}

/// `vm.resize`. Memory alone can be resized.
pub(super) fn resize(body: &[u8]) -> Result<Request, ApiError> {
    let body: Resize = body_from_json("vm.resize", body)?;
    for (field, size) in
        [("desired_vcpus", body.desired_vcpus), ("desired_balloon", body.desired_balloon)]
    {
        if size.is_some() {
            return Err(ApiError::field(field, "not supported yet; leave it out"));
        }
    }
    let size = body.desired_ram;
    let size = size.ok_or_else(|| ApiError::field("desired_ram", "missing; say how many bytes"))?;
    Ok(Request::Resize { desired_ram: Bytes::new(size) })
}

/// `vm.resize-zone`.
pub(super) fn resize_zone(body: &[u8]) -> Result<Request, ApiError> {
    let ResizeZone { id, desired_ram } = body_from_json("vm.resize-zone", body)?;
    Ok(Request::ResizeZone { id, desired_ram: Bytes::new(desired_ram) })
}

/// `vm.add-partition`.
pub(super) fn add_partition(body: &[u8]) -> Result<Request, ApiError> {
    let body: AddPartition = body_from_json("vm.add-partition", body)?;
    let keep = body.release == Release::Manual;
    Ok(Request::AddPartition {
        id: name(&body.id)?,
        size: Bytes::new(body.size),
        policy: Policy { keep, prefault: body.prefault },
        cookie: Cookie(body.cookie),
    })
}

/// `vm.remove-partition`.
pub(super) fn remove_partition(body: &[u8]) -> Result<Request, ApiError> {
    let body: RemovePartition = body_from_json("vm.remove-partition", body)?;
    let RemovePartition { id, timeout_ms, evacuate } = body;
    if timeout_ms > MAX_TIMEOUT {
        let problem = format!("{timeout_ms} is out of range; use 0 to {MAX_TIMEOUT}");
        return Err(ApiError::field("timeout_ms", problem));
    }
    let timeout = Duration::from_millis(timeout_ms);
    Ok(Request::RemovePartition { id: name(&id)?, timeout, evacuate })
}

/// `vm.resize-partition`.
pub(super) fn resize_partition(body: &[u8]) -> Result<Request, ApiError> {
    let ResizePartition { id, size } = body_from_json("vm.resize-partition", body)?;
    Ok(Request::ResizePartition { id: name(&id)?, size: Bytes::new(size) })
}

fn name(id: &str) -> Result<PartitionName, ApiError> {
    id.parse().map_err(|error| ApiError::field("id", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ErrorKind;

    type Parse = fn(&[u8]) -> Result<Request, ApiError>;

    fn problem(parse: Parse, body: &str) -> (ErrorKind, String) {
        let error = parse(body.as_bytes()).unwrap_err();
        (error.kind, error.chain.join(": "))
    }

    fn name(id: &str) -> PartitionName {
        id.parse().unwrap()
    }

    fn remove_request(timeout: Duration, evacuate: bool) -> Request {
        Request::RemovePartition { id: name("fn-7"), timeout, evacuate }
    }

    #[test]
    fn bodies_become_requests() {
        let zone = Request::ResizeZone { id: "a b".into(), desired_ram: Bytes::gib(1) };
        let cases: [(Parse, &str, Request); 8] = [
            (resize_zone, r#"{"id":"a b","desired_ram":1073741824}"#, zone),
            (
                resize,
                r#"{"desired_ram":4294967296,"desired_vcpus":null}"#,
                Request::Resize { desired_ram: Bytes::gib(4) },
            ),
            (
                add_partition,
                r#"{"id":"fn-7","size":536870912}"#,
                Request::AddPartition {
                    id: name("fn-7"),
                    size: Bytes::mib(512),
                    policy: Policy::default(),
                    cookie: Cookie(0),
                },
            ),
            (
                add_partition,
                r#"{"id":"a","size":0,"prefault":true,"release":"manual",
                    "cookie":18446744073709551615,"x":1}"#,
                Request::AddPartition {
                    id: name("a"),
                    size: Bytes::ZERO,
                    policy: Policy { keep: true, prefault: true },
                    cookie: Cookie(u64::MAX),
                },
            ),
            (remove_partition, r#"{"id":"fn-7"}"#, remove_request(Duration::from_secs(1), false)),
            (
                remove_partition,
                r#"{"id":"fn-7","timeout_ms":60000,"evacuate":true}"#,
                remove_request(Duration::from_secs(60), true),
            ),
            (
                remove_partition,
                r#"{"id":"fn-7","timeout_ms":0}"#,
                remove_request(Duration::ZERO, false),
            ),
            (
                resize_partition,
                r#"{"id":"fn-7","size":2097152}"#,
                Request::ResizePartition { id: name("fn-7"), size: Bytes::mib(2) },
            ),
        ];
        for (parse, body, request) in cases {
            assert_eq!(parse(body.as_bytes()), Ok(request), "{body}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_named_by_field() {
        let name = "id: not a name; use 1 to 64 ASCII letters, digits, dots, dashes, underscores";
        let cases: [(Parse, &str, &str); 13] = [
            (resize_zone, r#"{"id":"mem0"}"#, "the body: missing field `desired_ram`"),
            (resize, r#"{"desired_vcpus":2}"#, "desired_vcpus: not supported yet; leave it out"),
            (
                resize,
                r#"{"desired_ram":1,"desired_balloon":0}"#,
                "desired_balloon: not supported yet; leave it out",
            ),
            (resize, r#"{"ram":1}"#, "desired_ram: missing; say how many bytes"),
            (
                resize,
                r#"{"desired_ram":-1}"#,
                "desired_ram: invalid value: integer `-1`, expected u64",
            ),
            (add_partition, r#"{"id":"a b","size":1}"#, name),
            (add_partition, r#"{"id":"a"}"#, "the body: missing field `size`"),
            (
                add_partition,
                r#"{"id":"a","size":"1G"}"#,
                "size: invalid type: string \"1G\", expected u64",
            ),
            (
                add_partition,
                r#"{"id":"a","size":1,"release":"never"}"#,
                "release: unknown variant `never`, expected `auto` or `manual`",
            ),
            (remove_partition, r#"{"id":""}"#, name),
            (
                remove_partition,
                r#"{"id":"a","timeout_ms":60001}"#,
                "timeout_ms: 60001 is out of range; use 0 to 60000",
            ),
            (
                remove_partition,
                "[]",
                "not valid JSON: invalid type: sequence, expected a map at line 1 column 0",
            ),
            (
                resize_partition,
                r#"{"id":7,"size":1}"#,
                "id: invalid type: integer `7`, expected a string",
            ),
        ];
        for (parse, body, expected) in cases {
            assert_eq!(problem(parse, body), (ErrorKind::Invalid, expected.to_owned()), "{body}");
        }
    }
}
