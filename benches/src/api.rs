//! A client of the monitor's API socket, just enough to ask for counters.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// Sends a request without body and gives the answer's body; `Null` when it has none.
///
/// # Errors
/// There is no socket yet, no answer, or one other than 200 and 204.
pub fn request(socket: &Path, method: &str, route: &str) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "{method} /api/v1/{route} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    // The server keeps the connection open: the length in the head says where the answer ends.
    while whole(&answer).is_none() {
        let count = stream.read(&mut chunk)?;
        if count == 0 || answer.len() as u64 > LIMIT {
            return Err(invalid("the answer is cut short or too long"));
        }
        answer.extend_from_slice(&chunk[..count]);
    }
    parse(&answer)
}

/// The head and the body of an answer, once all of it is there.
fn whole(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Some(0), |(_, value)| value.trim().parse().ok())?;
    let body = answer[end + 4..].get(..length)?;
    Some((head, body))
}

fn parse(answer: &[u8]) -> io::Result<Value> {
    let (head, body) = whole(answer).ok_or_else(|| invalid("the answer is not whole"))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let status = status.split_whitespace().next().unwrap_or_default();
    if status != "200" && status != "204" {
        let body = String::from_utf8_lossy(body);
        return Err(invalid(&format!("the API answered {status}: {body}")));
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).map_err(io::Error::from)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_length_says_so() {
        let text = b"HTTP/1.1 200 \r\nServer: x\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(parse(text).unwrap(), serde_json::json!({"a": 1}));
        assert!(whole(&text[..text.len() - 1]).is_none());
        assert_eq!(parse(b"HTTP/1.1 204\r\nServer: x\r\n\r\n").unwrap(), Value::Null);
    }

    #[test]
    fn a_refusal_is_an_error_with_its_text() {
        let error = parse(b"HTTP/1.1 404 \r\nContent-Length: 5\r\n\r\n[\"x\"]").unwrap_err();
        assert_eq!(error.to_string(), "the API answered 404: [\"x\"]");
    }

    #[test]
    fn an_answer_in_two_pieces_is_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            // It may come in pieces.
            while !asked.ends_with(b"\r\n\r\n") {
                let mut buffer = [0; 256];
                let count = stream.read(&mut buffer).unwrap();
                asked.extend_from_slice(&buffer[..count]);
            }
            stream.write_all(b"HTTP/1.1 200 \r\nContent-Le").unwrap();
            stream.write_all(b"ngth: 4\r\n\r\ntrue").unwrap();
            String::from_utf8(asked).unwrap()
        });
        assert_eq!(request(&path, "GET", "vmm.ping").unwrap(), Value::Bool(true));
        assert!(server.join().unwrap().starts_with("GET /api/v1/vmm.ping HTTP/1.1\r\n"));
    }
}
