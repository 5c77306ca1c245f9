//! The server over real sockets, with a control that does nothing.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::time::Instant;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

use super::*;
use crate::api::registry::MAX_CONNECTIONS;
use crate::api::{ApiError, ErrorKind, Reply, Request};

const BOOT: &str = "PUT /api/v1/vm.boot HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
const NMI: &str = "PUT /api/v1/vm.nmi HTTP/1.1\r\n\r\n";
const NOPE: &str = "GET /api/v1/nope HTTP/1.1\r\n\r\n";

/// Notes requests; keeps `vm.pause` waiting while its lock is held elsewhere.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<Request>>,
    pause: Mutex<()>,
}

impl Control for Fake {
    fn call(&self, request: Request) -> Result<Reply, ApiError> {
        self.asked.lock().unwrap().push(request.clone());
        match request {
            Request::Pause => drop(self.pause.lock().unwrap()),
            Request::Boot => return Err(ApiError::new(ErrorKind::WrongState, "running")),
            _ => {}
        }
        Ok(Reply::Done)
    }
}

struct Setup {
    server: Server,
    fake: Arc<Fake>,
    dir: TempDir,
}

impl Setup {
    fn new() -> Self {
        Self::with(Patience::default())
    }

    fn with(patience: Patience) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let endpoint = Endpoint::Path(dir.path().join("api"));
        let control: Arc<dyn Control> = fake.clone();
        let server = Server::start_with(&endpoint, control, patience).unwrap();
        Self { server, fake, dir }
    }

    fn client(&self) -> Client {
        Client::new(UnixStream::connect(self.dir.path().join("api")).unwrap())
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn new(stream: UnixStream) -> Self {
        // So that a bug is a failure and no hang.
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Status and body of the next response.
    fn response(&mut self) -> (u16, String) {
        let mut line = || {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let status = line().split(' ').nth(1).expect("a status line").parse().unwrap();
        let mut length = 0;
        loop {
            let header = line();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("Content-Length: ") {
                length = value.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (status, String::from_utf8(body).unwrap())
    }

    fn is_closed(&mut self) -> bool {
        self.0.fill_buf().unwrap().is_empty()
    }
}

fn create(body: &str) -> String {
    format!("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn quick() -> Patience {
    let moment = Duration::from_millis(50);
    Patience { idle: moment, transfer: moment, linger: moment }
}

#[test]
fn one_connection_serves_many_requests() {
    let setup = Setup::new();
    let mut client = setup.client();
    assert_eq!(client.send(NMI).response(), (204, String::new()));
    let conflict = r#"["Error from API","running"]"#.to_owned();
    assert_eq!(client.send(BOOT).response(), (409, conflict));
    assert_eq!(client.send(NOPE).response().0, 404);
    assert_eq!(client.send(create("{}")).response(), (204, String::new()));
    assert_eq!(setup.fake.asked.lock().unwrap().len(), 3);
}

#[test]
fn requests_may_arrive_byte_by_byte_or_all_at_once() {
    let setup = Setup::new();
    let mut client = setup.client();
    for byte in create("{\"cpus\":{}}").bytes() {
        client.send([byte]);
    }
    assert_eq!(client.response().0, 204);
    client.send(format!("{NMI}{NOPE}{}{BOOT}", create("{}")));
    let statuses: Vec<u16> = (0..4).map(|_| client.response().0).collect();
    assert_eq!(statuses, [204, 404, 204, 409]);
}

#[test]
fn connection_is_closed_when_the_client_says_so() {
    let setup = Setup::new();
    let mut client = setup.client();
    client.send("PUT /api/v1/vm.nmi HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response().0, 204);
    assert!(client.is_closed());
}

#[test]
fn silent_and_half_sent_connections_hold_up_nobody() {
    let setup = Setup::new();
    let mut silent: Vec<Client> = (0..10).map(|_| setup.client()).collect();
    for (index, client) in silent.iter_mut().enumerate() {
        client.send(&BOOT[..index]);
    }
    assert_eq!(setup.client().send(NMI).response().0, 204);
    assert_eq!(silent[7].send(&BOOT[7..]).response().0, 409);
}

#[test]
fn oldest_idle_connection_makes_room_for_a_new_one() {
    let setup = Setup::new();
    let mut clients: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| setup.client()).collect();
    // An answer proves that all before it were accepted too.
    assert_eq!(clients[MAX_CONNECTIONS - 1].send(NMI).response().0, 204);
    assert_eq!(setup.client().send(NMI).response().0, 204);
    assert!(clients[0].is_closed());
    assert_eq!(clients[1].send(NMI).response().0, 204);
}

#[test]
fn client_is_told_when_all_connections_are_busy() {
    let setup = Setup::new();
    let held = setup.fake.pause.lock().unwrap();
    let pause = "PUT /api/v1/vm.pause HTTP/1.1\r\n\r\n";
    let mut clients: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| setup.client()).collect();
    for client in &mut clients {
        client.send(pause);
    }
    while setup.fake.asked.lock().unwrap().len() < MAX_CONNECTIONS {
        thread::yield_now();
    }
    let mut late = setup.client();
    let body = r#"["Error from API","too many calls at a time; try again when one has ended"]"#;
    let body = body.to_owned();
    assert_eq!(late.response(), (503, body));
    assert!(late.is_closed());
    drop(held);
    assert!(clients.iter_mut().all(|client| client.response().0 == 204));
}

#[test]
fn large_bodies_are_taken_and_too_large_ones_refused() {
    let setup = Setup::new();
    let mut client = setup.client();
    let cmdline = "x".repeat(60 << 10);
    let body = format!(r#"{{"payload":{{"cmdline":"{cmdline}"}}}}"#);
    assert_eq!(client.send(create(&body)).response().0, 204);

    client.send("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 4194305\r\n\r\n");
    // The client goes on sending, as it would, and still gets to read why not.
    let _ = client.0.get_mut().write_all(&vec![b' '; 300 << 10]);
    let body = r#"["Error from API","the body is over 4 MiB"]"#.to_owned();
    assert_eq!(client.response(), (413, body));
    assert!(client.is_closed());
}

#[test]
fn deep_json_is_an_error_and_no_overflow() {
    let setup = Setup::new();
    let mut client = setup.client();
    for depth in [100, 127, 128, 100_000] {
        let body = format!(r#"{{"net":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let expected = if depth < 127 { 204 } else { 400 };
        assert_eq!(client.send(create(&body)).response().0, expected, "{depth}");
    }
}

#[test]
fn half_a_request_is_refused_after_a_while() {
    let setup = Setup::with(Patience { idle: Duration::from_secs(60), ..quick() });
    for part in [&BOOT[..20], "PUT / HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"] {
        let mut client = setup.client();
        let (status, body) = client.send(part).response();
        assert_eq!(status, 408);
        assert_eq!(body, r#"["Error from API","the request took too long to arrive"]"#);
        assert!(client.is_closed());
    }
}

#[test]
fn silent_connection_is_closed_after_a_while() {
    assert!(Setup::with(quick()).client().is_closed());
    // Of which a client that gets no CPU may need much before its first word.
    let setup = Setup::with(Patience { idle: Duration::from_secs(2), ..quick() });
    let mut client = setup.client();
    assert_eq!(client.send(NMI).response().0, 204);
    assert!(client.is_closed());
}

#[test]
fn what_is_not_http_is_refused_and_the_connection_closed() {
    let setup = Setup::new();
    let mut client = setup.client();
    assert_eq!(client.send("\0\0\0\0").response().0, 400);
    assert!(client.is_closed());
    assert_eq!(setup.client().send(NMI).response().0, 204);
}

#[test]
fn client_that_waits_for_a_go_ahead_gets_one() {
    let setup = Setup::new();
    let mut client = setup.client();
    client.send("PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n");
    assert_eq!(client.send("\r\n").response().0, 100);
    client.send("{");
    assert_eq!(client.send("}").response().0, 204);
}

#[test]
fn descriptors_that_come_along_are_closed() {
    let setup = Setup::new();
    let mut client = setup.client();
    let (mut reader, writer) = io::pipe().unwrap();
    for part in [&BOOT[..10], &BOOT[10..]] {
        let descriptors = [writer.as_fd(); 3];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let parts = [IoSlice::new(part.as_bytes())];
        sendmsg(client.0.get_ref(), &parts, &mut ancillary, SendFlags::empty()).unwrap();
    }
    assert_eq!(client.response().0, 409);
    drop(writer);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "somebody still has the other end");
}

#[test]
fn call_in_flight_is_answered_before_the_server_is_gone() {
    let setup = Setup::new();
    let mut client = setup.client();
    let mut idle = setup.client();
    let fake = Arc::clone(&setup.fake);
    let held = fake.pause.lock().unwrap();
    client.send("PUT /api/v1/vm.pause HTTP/1.1\r\n\r\n");
    while fake.asked.lock().unwrap().is_empty() {
        thread::yield_now();
    }
    let Setup { server, dir, .. } = setup;
    let start = Instant::now();
    let dropping = thread::spawn(move || drop(server));
    assert!(idle.is_closed());
    assert!(!dropping.is_finished());
    drop(held);
    assert_eq!(client.response().0, 204);
    dropping.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(!dir.path().join("api").exists());
}

#[test]
fn stale_socket_is_replaced_and_other_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    drop(UnixListener::bind(&path).unwrap());
    let endpoint = Endpoint::Path(path.clone());
    let control: Arc<dyn Control> = Arc::new(Fake::default());
    drop(Server::start(&endpoint, Arc::clone(&control)).unwrap());
    assert!(!path.exists());

    fs::write(&path, "precious").unwrap();
    let error = Server::start(&endpoint, control).err().unwrap();
    assert_eq!(error.to_string(), format!("cannot listen on {}", path.display()));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn socket_of_a_successor_is_left_alone() {
    let Setup { server, dir, fake } = Setup::new();
    let path = dir.path().join("api");
    let successor = Server::start(&Endpoint::Path(path.clone()), fake).unwrap();
    drop(server);
    assert!(path.exists());
    drop(successor);
    assert!(!path.exists());
}

#[test]
fn inherited_socket_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let listener = UnixListener::bind(&path).unwrap();
    let endpoint = Endpoint::Fd(listener.as_raw_fd());
    let server = Server::start(&endpoint, Arc::new(Fake::default())).unwrap();
    let mut client = Client::new(UnixStream::connect(&path).unwrap());
    assert_eq!(client.send(NMI).response().0, 204);
    drop(server);
    assert!(path.exists(), "whoever made it removes it");

    let error = Server::start(&Endpoint::Fd(1 << 20), Arc::new(Fake::default())).err().unwrap();
    assert_eq!(error.to_string(), "cannot use descriptor 1048576 as API socket");
}
