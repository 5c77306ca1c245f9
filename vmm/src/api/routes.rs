//! Which call belongs to which method and path.

use log::debug;

use super::bodies;
use super::config::VmConfig;
use super::http::Status;
use super::reply::{ApiError, ErrorKind, Reply};
use super::request::{Control, Request};

/// In front of every path.
const PREFIX: &str = "/api/v1/";

/// How a request comes out of a body.
enum Body {
    /// There must be none.
    None(fn() -> Request),
    /// There must be one.
    Json(fn(&[u8]) -> Result<Request, ApiError>),
}

/// Method, path behind [`PREFIX`], request.
const ROUTES: &[(&str, &str, Body)] = &[
    ("GET", "vmm.ping", Body::None(|| Request::Ping)),
    ("GET", "vm.info", Body::None(|| Request::Info)),
    ("GET", "vm.counters", Body::None(|| Request::Counters)),
    ("PUT", "vm.create", Body::Json(create)),
    ("PUT", "vm.delete", Body::None(|| Request::Delete)),
    ("PUT", "vm.boot", Body::None(|| Request::Boot)),
    ("PUT", "vm.pause", Body::None(|| Request::Pause)),
    ("PUT", "vm.resume", Body::None(|| Request::Resume)),
    ("PUT", "vm.shutdown", Body::None(|| Request::Shutdown)),
    ("PUT", "vm.reboot", Body::None(|| Request::Reboot)),
    ("PUT", "vm.power-button", Body::None(|| Request::PowerButton)),
    ("PUT", "vm.nmi", Body::None(|| Request::Nmi)),
    // What Cloud Hypervisor's API description, and clients made from it, call it.
    ("PUT", "vmm.nmi", Body::None(|| Request::Nmi)),
    ("PUT", "vmm.shutdown", Body::None(|| Request::VmmShutdown)),
    ("PUT", "vm.resize", Body::Json(bodies::resize)),
    ("PUT", "vm.resize-zone", Body::Json(bodies::resize_zone)),
    ("GET", "vm.partitions", Body::None(|| Request::Partitions)),
    ("PUT", "vm.add-partition", Body::Json(bodies::add_partition)),
    ("PUT", "vm.remove-partition", Body::Json(bodies::remove_partition)),
    ("PUT", "vm.resize-partition", Body::Json(bodies::resize_partition)),
];

/// What else is called behind [`PREFIX`] in Cloud Hypervisor's API.
const UNSUPPORTED: &[&str] = &[
    "vm.add-device",
    "vm.add-disk",
    "vm.add-fs",
    "vm.add-generic-vhost-user",
    "vm.add-net",
    "vm.add-pmem",
    "vm.add-user-device",
    "vm.add-vdpa",
    "vm.add-vsock",
    "vm.coredump",
    "vm.receive-migration",
    "vm.remove-device",
    "vm.resize-disk",
    "vm.restore",
    "vm.send-migration",
    "vm.snapshot",
];

fn create(body: &[u8]) -> Result<Request, ApiError> {
    Ok(Request::Create(Box::new(VmConfig::from_json(body)?)))
}

/// Carries out one call, waiting for an answer that comes later unless the client `has_gone`, and
/// returns the status and the JSON to answer with.
pub(super) fn serve(
    control: &dyn Control,
    (method, path): (&str, &str),
    body: &[u8],
    has_gone: &dyn Fn() -> bool,
) -> (Status, Option<Vec<u8>>) {
    let result = request(method, path, body).and_then(|request| match control.call(request)? {
        Reply::Pending(pending) => pending.wait(control, has_gone),
        reply => Ok(reply),
    });
    let (status, body) = match result {
        Ok(reply) => success(&reply),
        Err(error) => failure(&error),
    };
    debug!("{method} {path:?}: {}", status.0);
    (status, body)
}

fn request(method: &str, path: &str, body: &[u8]) -> Result<Request, ApiError> {
    let invalid = |problem| ApiError::new(ErrorKind::Invalid, problem);
    let name = path.strip_prefix(PREFIX).unwrap_or_default();
    let Some((expected, _, make)) = ROUTES.iter().find(|(_, route, _)| *route == name) else {
        return Err(if UNSUPPORTED.contains(&name) {
            ApiError::new(ErrorKind::Unsupported, format!("{name} is not supported yet"))
        } else {
            ApiError::new(ErrorKind::NotFound, "there is no such endpoint")
        });
    };
    if method != *expected {
        return Err(invalid(format!("this endpoint is called with {expected}")));
    }
    match make {
        Body::None(make) if body.is_empty() => Ok(make()),
        Body::None(_) => Err(invalid("this endpoint takes no body".into())),
        Body::Json(_) if body.is_empty() => Err(invalid("this endpoint needs a body".into())),
        Body::Json(parse) => parse(body),
    }
}

fn success(reply: &Reply) -> (Status, Option<Vec<u8>>) {
    let json = match reply {
        Reply::Done => return (Status::NO_CONTENT, None),
        Reply::Pending(_) => {
            return failure(&ApiError::new(ErrorKind::Internal, "no answer came"));
        }
        Reply::Partition(reply) => serde_json::to_vec(reply),
        Reply::Partitions(reply) => serde_json::to_vec(reply),
        Reply::Ping(reply) => serde_json::to_vec(reply),
        Reply::Info(reply) => serde_json::to_vec(reply),
        Reply::Counters(reply) => serde_json::to_vec(reply),
    };
    match json {
        Ok(json) => (Status::OK, Some(json)),
        // A path that is not UTF-8 has no place in JSON.
        Err(error) => failure(&ApiError::from_error(ErrorKind::Internal, &error)),
    }
}

fn failure(error: &ApiError) -> (Status, Option<Vec<u8>>) {
    let status = match error.kind {
        ErrorKind::Invalid => Status::BAD_REQUEST,
        ErrorKind::NotFound => Status::NOT_FOUND,
        ErrorKind::WrongState => Status::CONFLICT,
        ErrorKind::Internal => Status::INTERNAL,
        ErrorKind::Unsupported => Status::NOT_IMPLEMENTED,
    };
    (status, Some(error_body(&error.chain)))
}

/// The JSON of an error: its messages, outermost first, behind the words Cloud Hypervisor puts
/// there.
pub(super) fn error_body<S: AsRef<str>>(chain: &[S]) -> Vec<u8> {
    let messages = std::iter::once("Error from API").chain(chain.iter().map(AsRef::as_ref));
    let messages: Vec<&str> = messages.collect();
    serde_json::to_vec(&messages).expect("a list of texts is always JSON")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use memctl::{Bytes, Cookie, PartitionName, PartitionState, Policy};

    use super::*;
    use crate::api::{PartitionReply, Pending, PingReply, Release};

    /// Notes what it was asked and answers what it was told to, the last answer first.
    struct Fake {
        asked: Mutex<Vec<Request>>,
        answers: Mutex<Vec<Result<Reply, ApiError>>>,
    }

    impl Control for Fake {
        fn call(&self, request: Request) -> Result<Reply, ApiError> {
            self.asked.lock().unwrap().push(request);
            self.answers.lock().unwrap().pop().expect("asked more often than expected")
        }
    }

    fn ask(
        answer: Result<Reply, ApiError>,
        call: (&str, &str, &str),
    ) -> (u16, String, Vec<Request>) {
        ask_for(vec![answer], call)
    }

    fn ask_for(
        answers: Vec<Result<Reply, ApiError>>,
        (method, path, body): (&str, &str, &str),
    ) -> (u16, String, Vec<Request>) {
        let fake = Fake { asked: Mutex::default(), answers: answers.into() };
        let (status, json) = serve(&fake, (method, path), body.as_bytes(), &|| false);
        let json = String::from_utf8(json.unwrap_or_default()).unwrap();
        (status.0, json, fake.asked.into_inner().unwrap())
    }

    #[test]
    fn every_route_reaches_its_request() {
        let routes = [
            ("GET", "vmm.ping", Request::Ping),
            ("GET", "vm.info", Request::Info),
            ("GET", "vm.counters", Request::Counters),
            ("PUT", "vm.delete", Request::Delete),
            ("PUT", "vm.boot", Request::Boot),
            ("PUT", "vm.pause", Request::Pause),
            ("PUT", "vm.resume", Request::Resume),
            ("PUT", "vm.shutdown", Request::Shutdown),
            ("PUT", "vm.reboot", Request::Reboot),
            ("PUT", "vm.power-button", Request::PowerButton),
            ("PUT", "vm.nmi", Request::Nmi),
            ("PUT", "vmm.nmi", Request::Nmi),
            ("PUT", "vmm.shutdown", Request::VmmShutdown),
            ("GET", "vm.partitions", Request::Partitions),
        ];
        for (method, path, request) in routes {
            let call = (method, &*format!("/api/v1/{path}"), "");
            assert_eq!(ask(Ok(Reply::Done), call), (204, String::new(), vec![request]));
        }
        let body = r#"{"payload":{"kernel":"vmlinux"}}"#;
        let (status, _, asked) = ask(Ok(Reply::Done), ("PUT", "/api/v1/vm.create", body));
        assert_eq!(status, 204);
        let config = VmConfig::from_json(body.as_bytes()).unwrap();
        assert_eq!(asked, [Request::Create(Box::new(config))]);
    }

    fn partition() -> PartitionReply {
        PartitionReply {
            id: "fn-7".into(),
            number: Some(7),
            state: PartitionState::Absent,
            release: Release::Auto,
            size: 0,
            plugged: 0,
            used: None,
            used_peak: 0,
            peak: 4096,
            spilled: 0,
            stuck: 0,
            plugs: 1,
            unplugs: 1,
            last_release_us: Some(250),
            removal_us: None,
            node: None,
            extents: Vec::new(),
            cookie: 0,
        }
    }

    #[test]
    fn calls_about_memory_reach_their_requests() {
        let id: PartitionName = "fn-7".parse().unwrap();
        let (size, timeout) = (Bytes::mib(2), Duration::from_millis(5));
        let add = Request::AddPartition {
            id: id.clone(),
            size,
            policy: Policy::default(),
            cookie: Cookie::default(),
        };
        let calls = [
            ("vm.resize", r#"{"desired_ram":2097152}"#, Request::Resize { desired_ram: size }),
            (
                "vm.resize-zone",
                r#"{"id":"a","desired_ram":2097152}"#,
                Request::ResizeZone { id: "a".into(), desired_ram: size },
            ),
            ("vm.add-partition", r#"{"id":"fn-7","size":2097152}"#, add),
            (
                "vm.remove-partition",
                r#"{"id":"fn-7","timeout_ms":5}"#,
                Request::RemovePartition { id: id.clone(), timeout, evacuate: false },
            ),
            (
                "vm.resize-partition",
                r#"{"id":"fn-7","size":2097152}"#,
                Request::ResizePartition { id, size },
            ),
        ];
        for (path, body, request) in calls {
            let path = format!("/api/v1/{path}");
            let json = serde_json::to_string(&partition()).unwrap();
            let answer = ask(Ok(Reply::Partition(partition().into())), ("PUT", &path, body));
            assert_eq!(answer, (200, json, vec![request.clone()]));
            assert_eq!(ask(Ok(Reply::Done), ("PUT", &path, body)).0, 204);
        }
    }

    #[test]
    fn partitions_are_a_list() {
        let list = |partitions| {
            let reply = Ok(Reply::Partitions(partitions));
            ask(reply, ("GET", "/api/v1/vm.partitions", ""))
        };
        assert_eq!(list(vec![]), (200, "[]".into(), vec![Request::Partitions]));
        let json = list(vec![partition(), partition()]).1;
        let json: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
        assert_eq!(json.len(), 2);
        assert_eq!(json[1]["state"], "absent");
    }

    #[test]
    fn answers_that_come_later_are_waited_for() {
        let id: PartitionName = "fn-7".parse().unwrap();
        let call = ("PUT", "/api/v1/vm.remove-partition", r#"{"id":"fn-7","timeout_ms":5}"#);
        let timeout = Duration::from_millis(5);
        let (evacuate, none) = (false, Duration::ZERO);
        let first = Request::RemovePartition { id: id.clone(), timeout, evacuate };
        let again = Request::RemovePartition { id, timeout: none, evacuate };

        let (promise, pending) = Pending::new(timeout, again.clone());
        promise.keep(Ok(Reply::Partition(partition().into())));
        let (status, json, asked) = ask(Ok(Reply::Pending(pending)), call);
        assert_eq!((status, asked), (200, vec![first.clone()]));
        assert!(json.contains(r#""last_release_us":250"#), "{json}");

        let (_promise, pending) = Pending::new(timeout, again.clone());
        let in_use = ApiError::new(ErrorKind::WrongState, "4 MiB are in use");
        let answers = vec![Err(in_use), Ok(Reply::Pending(pending))];
        let json = r#"["Error from API","4 MiB are in use"]"#;
        assert_eq!(ask_for(answers, call), (409, json.into(), vec![first, again.clone()]));

        let pending = || Pending::new(Duration::ZERO, again.clone());
        let ((_first, first), (_second, second)) = (pending(), pending());
        let answers = vec![Ok(Reply::Pending(second)), Ok(Reply::Pending(first))];
        assert_eq!(ask_for(answers, call).0, 500, "waited for one answer only");
    }

    #[test]
    fn calls_that_make_no_sense_reach_nobody() {
        let wrong =
            |method| format!(r#"["Error from API","this endpoint is called with {method}"]"#);
        let unknown = r#"["Error from API","there is no such endpoint"]"#;
        let cases = [
            ("POST", "/api/v1/vm.boot", "", 400, &*wrong("PUT")),
            ("PUT", "/api/v1/vm.info", "", 400, &*wrong("GET")),
            (
                "PUT",
                "/api/v1/vm.boot",
                "{}",
                400,
                r#"["Error from API","this endpoint takes no body"]"#,
            ),
            (
                "PUT",
                "/api/v1/vm.create",
                "",
                400,
                r#"["Error from API","this endpoint needs a body"]"#,
            ),
            ("GET", "/api/v1/vm.nope", "", 404, unknown),
            ("GET", "/api/v1/", "", 404, unknown),
            ("GET", "/", "", 404, unknown),
            ("GET", "/api/v2/vmm.ping", "", 404, unknown),
            ("GET", "*", "", 404, unknown),
        ];
        for (method, path, body, status, json) in cases {
            let answer = ask(Ok(Reply::Done), (method, path, body));
            assert_eq!(answer, (status, json.to_owned(), Vec::new()), "{method} {path}");
        }
    }

    /// A client that knows only of statuses can tell them from words that mean nothing.
    #[test]
    fn calls_that_only_cloud_hypervisor_has_are_not_supported_yet() {
        for (method, name, body) in [
            ("PUT", "vm.add-net", "{}"),
            ("PUT", "vm.snapshot", r#"{"destination_url":"file:///d"}"#),
            ("PUT", "vm.remove-device", ""),
            ("GET", "vm.restore", ""),
        ] {
            let answer = ask(Ok(Reply::Done), (method, &format!("/api/v1/{name}"), body));
            let json = format!(r#"["Error from API","{name} is not supported yet"]"#);
            assert_eq!(answer, (501, json, Vec::new()));
        }
        let both = |name: &&&str| ROUTES.iter().any(|(_, route, _)| *route == **name);
        assert_eq!(UNSUPPORTED.iter().find(both), None);
    }

    #[test]
    fn bad_configurations_are_explained() {
        let create = |body| ask(Ok(Reply::Done), ("PUT", "/api/v1/vm.create", body));
        let (status, json, asked) = create("{\"cpus\":");
        assert_eq!((status, asked.len()), (400, 0));
        assert_eq!(
            json,
            r#"["Error from API","not valid JSON","EOF while parsing a value at line 1 column 8"]"#
        );
        let (status, json, _) = create(r#"{"disks":[{"path":"a"},{"path":1}]}"#);
        assert_eq!(status, 400);
        let problem = "disks[1].path: invalid type: integer `1`, expected path string";
        assert_eq!(json, format!(r#"["Error from API","{problem}"]"#));
    }

    #[test]
    fn kinds_of_errors_become_statuses() {
        let kinds = [
            (ErrorKind::Invalid, 400),
            (ErrorKind::NotFound, 404),
            (ErrorKind::WrongState, 409),
            (ErrorKind::Internal, 500),
            (ErrorKind::Unsupported, 501),
        ];
        for (kind, expected) in kinds {
            let error = ApiError::new(kind, "inner \"cause\"").context("outer");
            let (status, json, _) = ask(Err(error), ("PUT", "/api/v1/vm.boot", ""));
            assert_eq!(status, expected);
            assert_eq!(json, r#"["Error from API","outer","inner \"cause\""]"#);
        }
    }

    #[test]
    fn ping_has_the_shape_clients_parse() {
        let ping = PingReply::of_this_process();
        let (status, json, _) = ask(Ok(Reply::Ping(ping)), ("GET", "/api/v1/vmm.ping", ""));
        let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
        assert_eq!(status, 200);
        assert_eq!(
            json,
            format!(
                r#"{{"build_version":"v{version}","version":"{version}","pid":{pid},"features":["kvm"]}}"#
            )
        );
    }
}
