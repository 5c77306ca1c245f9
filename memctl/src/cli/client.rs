//! Calls of the monitor's API over its socket. A connection per call: nothing to keep alive, and
//! a restarted monitor is found again.

use std::io::{self, ErrorKind, Read, Write};
use std::iter;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;

use super::http::{self, Answer, HttpError};
use super::text::printable;

/// The most messages of an error that are shown.
const MAX_CAUSES: usize = 16;

/// A monitor, by its socket.
pub(super) struct Client {
    /// Where it listens.
    pub(super) socket: PathBuf,
}

/// What a call was answered; `None` when there was nothing to say.
pub(super) type Reply = Option<Value>;

/// One of the messages with which the monitor explained itself.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Said {
    message: String,
    source: Option<Box<Said>>,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody there, or not for us.
    #[error("cannot connect to the monitor at {socket}", socket = socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection failed after it was made.
    #[error("{call}: cannot ask the monitor at {socket}", socket = socket.display())]
    Ask {
        /// Of what.
        call: &'static str,
        /// Whom.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No answer that can be read.
    #[error("{call}: no usable answer from the monitor at {socket}", socket = socket.display())]
    Answer {
        /// To what.
        call: &'static str,
        /// From whom.
        socket: PathBuf,
        /// Why.
        source: HttpError,
    },
    /// No answer in time.
    #[error("{call}: no answer from the monitor at {socket} in {patience:?}", socket = socket.display())]
    TimedOut {
        /// To what.
        call: &'static str,
        /// From whom.
        socket: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// An answer that is not JSON, or not what it should be.
    #[error("{call}: the monitor's answer makes no sense")]
    Json {
        /// To what.
        call: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// The monitor would not.
    #[error("{call}: refused with status {status}")]
    Refused {
        /// What.
        call: &'static str,
        /// HTTP status.
        status: u16,
        /// Why, in the monitor's words.
        source: Option<Box<Said>>,
    },
}

impl CallError {
    /// What the user can do about it.
    pub(super) fn advice(&self) -> Option<String> {
        match self {
            Self::Connect { socket, source } => connect_advice(socket, source.kind()),
            Self::TimedOut { .. } => {
                Some("the monitor is busy or stopped; see whether it runs, and its log".into())
            }
            Self::Ask { .. } | Self::Answer { .. } | Self::Json { .. } => {
                Some("see that the socket is Tessera's, and that the monitor still runs".into())
            }
            Self::Refused { call, status, source } => {
                refusal_advice(call, *status, &words(source.as_deref())).map(Into::into)
            }
        }
    }

    /// Whether this is a removal that the guest has not carried out yet, and still may.
    pub(super) fn is_not_back_yet(&self) -> bool {
        matches!(self, Self::Refused { call, status, source }
                 if not_back_yet(call, *status, &words(source.as_deref())))
    }
}

fn connect_advice(socket: &Path, kind: ErrorKind) -> Option<String> {
    let socket = socket.display();
    match kind {
        ErrorKind::NotFound => Some(format!(
            "start the monitor with --api-socket {socket}, or name the socket it was started with"
        )),
        ErrorKind::ConnectionRefused => {
            Some("the monitor that made this socket has ended; start it again".into())
        }
        ErrorKind::PermissionDenied => Some("run memctl as the user who started tessera".into()),
        _ => None,
    }
}

/// All messages, a line each.
fn words(said: Option<&Said>) -> String {
    let messages = iter::successors(said, |said| said.source.as_deref());
    messages.map(|said| said.message.as_str()).collect::<Vec<_>>().join("\n")
}

/// The guest says what is in use, and in slots only what it has not given back.
fn not_back_yet(call: &str, status: u16, said: &str) -> bool {
    let reasons = ["in use", "has not given back"];
    (call, status) == ("vm.remove-partition", 409) && reasons.iter().any(|why| said.contains(why))
}

fn refusal_advice(call: &str, status: u16, said: &str) -> Option<&'static str> {
    match (call, status) {
        (_, 404) if said.contains("endpoint") => {
            Some("this monitor knows no partitions; use Tessera, as new as this memctl")
        }
        ("vm.resize-partition" | "vm.remove-partition", 404) => Some(
            "`memctl ls` shows the partitions that there are; one with release auto goes by \
             itself when its function has ended",
        ),
        _ if not_back_yet(call, status, said) => Some(
            "it stays asked for, and is carried out when nothing of it is in use any more; \
             `memctl watch` shows when, and `memctl rm` again waits again",
        ),
        ("vm.resize", 400) if said.contains("memory zones") => {
            Some("name it with --zone ID; `memctl ls` shows the zones")
        }
        (_, 400) if said.contains("desired_ram:") => Some("--memory gives desired_ram"),
        _ => None,
    }
}

impl Client {
    /// Calls `call` with GET.
    ///
    /// # Errors
    /// A [`CallError`]; an answer without a body is one.
    pub(super) fn get(&self, call: &'static str, patience: Duration) -> Result<Value, CallError> {
        Ok(self.call("GET", call, None, patience)?.unwrap_or(Value::Null))
    }

    /// Calls `call` with PUT and `body`.
    ///
    /// # Errors
    /// A [`CallError`].
    pub(super) fn put(
        &self,
        call: &'static str,
        body: &Value,
        patience: Duration,
    ) -> Result<Reply, CallError> {
        self.call("PUT", call, Some(body.to_string().as_bytes()), patience)
    }

    fn call(
        &self,
        method: &str,
        call: &'static str,
        body: Option<&[u8]>,
        patience: Duration,
    ) -> Result<Reply, CallError> {
        let socket = || self.socket.clone();
        let stream = open(&self.socket, patience)
            .map_err(|source| CallError::Connect { socket: socket(), source })?;
        let mut stream = Timed { stream, end: Instant::now() + patience };
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::TimedOut => CallError::TimedOut { call, socket: socket(), patience },
            _ => CallError::Ask { call, socket: socket(), source },
        };
        let asked = stream.write_all(&http::request(method, call, body));
        // A monitor that has no room for more clients answers before it reads; hear it out.
        asked.or_else(|error| match error.kind() {
            ErrorKind::BrokenPipe => Ok(()),
            _ => Err(failed(error)),
        })?;
        let answer = http::answer(&mut stream).map_err(|source| match source {
            HttpError::Read(source) => failed(source),
            source => CallError::Answer { call, socket: socket(), source },
        })?;
        understood(call, &answer)
    }
}

/// What an answer says.
fn understood(call: &'static str, answer: &Answer) -> Result<Reply, CallError> {
    let Answer { status, body } = answer;
    if !(200..300).contains(status) {
        return Err(CallError::Refused { call, status: *status, source: said(body) });
    }
    if body.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(body).map(Some).map_err(|source| CallError::Json { call, source })
}

/// The messages of an error's body as a chain: a JSON array of texts, or any text at all.
fn said(body: &[u8]) -> Option<Box<Said>> {
    let messages: Vec<String> = serde_json::from_slice(body)
        .unwrap_or_else(|_| vec![String::from_utf8_lossy(body).chars().take(400).collect()]);
    // These words of Cloud Hypervisor's stand before every error and tell nothing.
    let told = messages.iter().filter(|text| !text.is_empty() && *text != "Error from API");
    let told: Vec<&String> = told.take(MAX_CAUSES).collect();
    told.into_iter()
        .rev()
        .fold(None, |source, text| Some(Box::new(Said { message: printable(text), source })))
}

/// A connection. The time limit also bounds the wait for a monitor that accepts nobody.
fn open(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

/// A stream whose every wait ends at one time, however slowly bytes trickle.
struct Timed {
    stream: UnixStream,
    end: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// The kernel's word for an expired time limit, as what it is.
fn expired(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for Timed {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(to).map_err(expired)
    }
}

impl Write for Timed {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(from).map_err(expired)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    fn chain(error: &dyn Error) -> Vec<String> {
        std::iter::successors(Some(error), |error| (**error).source())
            .map(ToString::to_string)
            .collect()
    }

    fn refused(call: &'static str, status: u16, body: &str) -> CallError {
        understood(call, &Answer { status, body: body.into() }).unwrap_err()
    }

    #[test]
    fn refusals_are_a_chain_in_the_monitors_words() {
        let body = r#"["Error from API","creating","size: 3 is no multiple of 2 MiB"]"#;
        assert_eq!(
            chain(&refused("vm.add-partition", 400, body)),
            [
                "vm.add-partition: refused with status 400",
                "creating",
                "size: 3 is no multiple of 2 MiB"
            ]
        );
        let odd = chain(&refused("vm.info", 500, "<html>\u{1b}[2J"));
        assert_eq!(odd, ["vm.info: refused with status 500", "<html>?[2J"]);
        assert_eq!(chain(&refused("vm.info", 500, "")).len(), 1);
        let flood = serde_json::to_string(&vec!["x"; 10_000]).unwrap();
        assert_eq!(chain(&refused("vm.info", 500, &flood)).len(), 1 + MAX_CAUSES);
    }

    #[test]
    fn refusals_come_with_advice_where_there_is_some() {
        let advice = |call, status, said: &str| refused(call, status, said).advice();
        let unknown = r#"["Error from API","there is no such endpoint"]"#;
        assert!(advice("vm.partitions", 404, unknown).unwrap().contains("use Tessera"));
        let gone = advice("vm.remove-partition", 404, "x").unwrap();
        assert!(gone.contains("memctl ls") && gone.contains("goes by itself"), "{gone}");
        let zones = "the VM has memory zones; use vm.resize-zone for one of them";
        assert!(advice("vm.resize", 400, zones).unwrap().contains("--zone ID"));
        assert!(advice("vm.resize", 400, "desired_ram: x").unwrap().contains("--memory"));
        assert_eq!(advice("vm.add-partition", 409, "x"), None);
    }

    #[test]
    fn a_removal_stays_asked_for_where_the_guest_still_may_carry_it_out() {
        let stays = |said: &str| {
            let error = refused("vm.remove-partition", 409, said);
            let told = error.advice().is_some_and(|advice| advice.contains("stays asked for"));
            assert_eq!(told, error.is_not_back_yet(), "{said}");
            told
        };
        assert!(stays(r#"["Error from API","fn-7","1 MiB of its 4 MiB are in use"]"#));
        assert!(stays("partition fn-7: the guest has not given back 2 MiB of node 1 yet; what"));
        assert!(!stays("the VM has not booted"));
        assert!(!stays("partition fn-7 was given another size meanwhile, and stays"));
        assert!(!refused("vm.resize-partition", 409, "in use").is_not_back_yet());
    }

    #[test]
    fn answers_are_json_or_nothing() {
        let understand = |body: &str| understood("x", &Answer { status: 200, body: body.into() });
        assert_eq!(understand("").unwrap(), None);
        assert_eq!(understand("[1]").unwrap(), Some(serde_json::json!([1])));
        assert!(matches!(understand("{").unwrap_err(), CallError::Json { .. }));
    }

    #[test]
    fn silence_ends_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let _deaf = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let client = Client { socket };
        let error = client.get("vm.info", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, CallError::TimedOut { .. }), "{error}");
        assert!(error.advice().is_some());
    }
}
