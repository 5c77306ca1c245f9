//! The API over its unix socket, down to the byte.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::patience::{until, within};

/// For the socket to be there, and for an answer.
const PATIENCE: u32 = 60;

/// An answer of the API.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The head as it came, without the empty line.
    pub head: String,
    /// The body; null where there is none.
    pub body: Value,
}

impl Reply {
    /// The answer, if it has this status.
    ///
    /// # Errors
    /// It has another.
    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "status {} instead of {status}: {}", self.status, self.body);
        Ok(self)
    }
}

/// One connection to the API.
pub struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Connection {
    /// Connects, waiting for the socket to be there.
    ///
    /// # Errors
    /// It did not appear.
    pub fn open(socket: &Path) -> Result<Self> {
        let connect = || Ok(UnixStream::connect(socket).ok());
        Self::over(until("the API socket", within(PATIENCE), connect)?)
    }

    /// Over a stream that is connected.
    ///
    /// # Errors
    /// The host refused.
    pub fn over(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(within(PATIENCE)))?;
        stream.set_write_timeout(Some(within(PATIENCE)))?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// Sends these bytes, whatever they are.
    ///
    /// # Errors
    /// The monitor closed the connection.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream.write_all(bytes.as_ref()).context("cannot send")
    }

    /// Sends a whole request.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn request(&mut self, method: &str, route: &str, body: Option<&str>) -> Result<()> {
        self.send(request(method, route, body))
    }

    /// Reads one answer.
    ///
    /// # Errors
    /// None came, or it is no HTTP that clients of this API understand.
    pub fn reply(&mut self) -> Result<Reply> {
        let end = loop {
            match self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(end) => break end,
                None => ensure!(self.receive()? > 0, "the connection was closed without an answer"),
            }
        };
        let head = String::from_utf8(self.received.drain(..end + 4).collect())?;
        let head = head.trim_end().to_owned();
        let length = body_length(&head)?;
        while self.received.len() < length {
            ensure!(self.receive()? > 0, "the connection was closed inside a body");
        }
        let body: Vec<u8> = self.received.drain(..length).collect();
        let body = match body.as_slice() {
            [] => Value::Null,
            body => serde_json::from_slice(body).context("the body is no JSON")?,
        };
        Ok(Reply { status: status(&head)?, head, body })
    }

    /// Sends a whole request and reads its answer.
    ///
    /// # Errors
    /// No answer.
    pub fn call(&mut self, method: &str, route: &str, body: Option<&str>) -> Result<Reply> {
        self.request(method, route, body)?;
        self.reply().with_context(|| format!("{method} {route}"))
    }

    /// Whether the monitor closes the connection without another byte.
    ///
    /// # Errors
    /// Neither bytes nor an end in time.
    pub fn is_closed(&mut self) -> Result<bool> {
        Ok(self.received.is_empty() && self.receive()? == 0)
    }

    fn receive(&mut self) -> Result<usize> {
        let mut buffer = [0; 4096];
        let count = match self.stream.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            result => result.context("no answer")?,
        };
        self.received.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// A request as bytes.
fn request(method: &str, route: &str, body: Option<&str>) -> String {
    let head = format!("{method} /api/v1/{route} HTTP/1.1\r\nHost: localhost\r\n");
    match body {
        None => format!("{head}\r\n"),
        Some(body) => format!(
            "{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    }
}

/// Looks for the literal strings that simple clients look for.
fn status(head: &str) -> Result<u16> {
    let rest = head.strip_prefix("HTTP/1.1 ").context("the answer is no HTTP/1.1")?;
    rest.get(..3).and_then(|digits| digits.parse().ok()).context("the answer has no status")
}

fn body_length(head: &str) -> Result<usize> {
    match head.lines().find_map(|line| line.strip_prefix("Content-Length: ")) {
        Some(length) => length.parse().context("the length of the body is no number"),
        None if head.contains("Transfer-Encoding") => bail!("clients know no chunked bodies"),
        None => Ok(0),
    }
}

/// The API of one monitor; each request on a connection of its own.
pub struct Api(PathBuf);

impl Api {
    /// The API behind this socket.
    pub fn at(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// Sends a GET.
    ///
    /// # Errors
    /// No answer.
    pub fn get(&self, route: &str) -> Result<Reply> {
        self.call("GET", route, None)
    }

    /// Sends a PUT without a body.
    ///
    /// # Errors
    /// No answer.
    pub fn put(&self, route: &str) -> Result<Reply> {
        self.call("PUT", route, None)
    }

    /// Sends a PUT with a body.
    ///
    /// # Errors
    /// No answer.
    pub fn put_json(&self, route: &str, body: &Value) -> Result<Reply> {
        self.call("PUT", route, Some(&body.to_string()))
    }

    fn call(&self, method: &str, route: &str, body: Option<&str>) -> Result<Reply> {
        Connection::open(&self.0)?.call(method, route, body)
    }
}
