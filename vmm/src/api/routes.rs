//! Which call belongs to which method and path.

use log::debug;

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
];

fn create(body: &[u8]) -> Result<Request, ApiError> {
    Ok(Request::Create(Box::new(VmConfig::from_json(body)?)))
}

/// Carries out one call and returns the status and the JSON to answer with.
pub(super) fn serve(
    control: &dyn Control,
    method: &str,
    path: &str,
    body: &[u8],
) -> (Status, Option<Vec<u8>>) {
    let result = request(method, path, body).and_then(|request| control.call(request));
    let (status, body) = match result {
        Ok(reply) => success(&reply),
        Err(error) => failure(&error),
    };
    debug!("{method} {path:?}: {}", status.0);
    (status, body)
}

fn request(method: &str, path: &str, body: &[u8]) -> Result<Request, ApiError> {
    let invalid = |problem| ApiError::new(ErrorKind::Invalid, problem);
    let route = path.strip_prefix(PREFIX);
    let route = route.and_then(|name| ROUTES.iter().find(|(_, route, _)| *route == name));
    let Some((expected, _, make)) = route else {
        return Err(ApiError::new(ErrorKind::NotFound, "there is no such endpoint"));
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

    use super::*;
    use crate::api::PingReply;

    /// Notes what it was asked and answers what it was told to.
    struct Fake {
        asked: Mutex<Vec<Request>>,
        answer: Result<Reply, ApiError>,
    }

    impl Control for Fake {
        fn call(&self, request: Request) -> Result<Reply, ApiError> {
            self.asked.lock().unwrap().push(request);
            self.answer.clone()
        }
    }

    fn ask(
        answer: Result<Reply, ApiError>,
        (method, path, body): (&str, &str, &str),
    ) -> (u16, String, Vec<Request>) {
        let fake = Fake { asked: Mutex::default(), answer };
        let (status, json) = serve(&fake, method, path, body.as_bytes());
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
