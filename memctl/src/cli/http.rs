//! As much of HTTP/1.1 as the monitor speaks, over any stream: one request, one answer, the
//! connection closed. Bodies have a `Content-Length` and no other framing (RFC 9112, 6.3).

use std::io::{self, Read};

/// The longest head of an answer.
const MAX_HEAD: usize = 16 << 10;
/// The most header lines in it.
const MAX_HEADERS: usize = 64;
/// The longest body: thousands of partitions in thousands of extents.
const MAX_BODY: u64 = 16 << 20;

/// An answer; what its status means is the caller's affair.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Status code.
    pub(super) status: u16,
    /// What follows the head; empty when nothing does.
    pub(super) body: Vec<u8>,
}

/// Why there is no answer to read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The stream failed, or its time is up.
    #[error("cannot read the answer")]
    Read(#[source] io::Error),
    /// The other side closed too early.
    #[error("the connection was closed in the middle of the answer")]
    Cut,
    /// Not HTTP.
    #[error("the answer is not HTTP")]
    Head(#[source] httparse::Error),
    /// No end of the head in sight.
    #[error("the answer's head is over {MAX_HEAD} bytes long")]
    LongHead,
    /// Missing digits, or two lengths.
    #[error("the answer has no valid Content-Length")]
    Length,
    /// A framing that is not ours.
    #[error("the answer has a Transfer-Encoding, which the monitor never uses")]
    Encoding,
    /// More than anybody should read.
    #[error("the answer is {0} bytes long, over the {MAX_BODY} that memctl reads")]
    LongBody(u64),
}

/// The bytes of a request.
pub(super) fn request(method: &str, call: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = format!(
        "{method} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Connection: close\r\n"
    )
    .into_bytes();
    if let Some(body) = body {
        let length = body.len();
        let about = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        bytes.extend_from_slice(about.as_bytes());
        bytes.extend_from_slice(body);
    } else {
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Reads one answer from `stream`, in however many pieces it comes.
///
/// # Errors
/// An [`HttpError`]. Never reads or keeps more than the limits above.
pub(super) fn answer(stream: &mut dyn Read) -> Result<Answer, HttpError> {
    let mut buffer = Vec::new();
    let (status, length, start) = loop {
        match head(&buffer)? {
            Some(head) => break head,
            None if buffer.len() > MAX_HEAD => return Err(HttpError::LongHead),
            None => read_more(stream, &mut buffer)?,
        }
    };
    let mut body = buffer.split_off(start);
    let length = usize::try_from(length).map_err(|_| HttpError::LongBody(length))?;
    while body.len() < length {
        read_more(stream, &mut body)?;
    }
    // Nothing was asked after this; what follows the answer is nobody's.
    body.truncate(length);
    Ok(Answer { status, body })
}

fn read_more(stream: &mut dyn Read, buffer: &mut Vec<u8>) -> Result<(), HttpError> {
    let mut chunk = [0; 8 << 10];
    let count = loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Err(HttpError::Cut),
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(HttpError::Read(error)),
        }
    };
    buffer.extend_from_slice(&chunk[..count]);
    Ok(())
}

/// Status, length of the body and length of the head; `None` while its end is missing.
fn head(bytes: &[u8]) -> Result<Option<(u16, u64, usize)>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(end) = response.parse(bytes).map_err(HttpError::Head)? else {
        return Ok(None);
    };
    let status = response.code.expect("a complete head has a status");
    Ok(Some((status, body_length(response.headers)?, end)))
}

/// How long the body is. None is said to be there when there is none.
fn body_length(headers: &[httparse::Header<'_>]) -> Result<u64, HttpError> {
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("Transfer-Encoding") {
            return Err(HttpError::Encoding);
        }
        if header.name.eq_ignore_ascii_case("Content-Length") {
            let this = digits(header.value).ok_or(HttpError::Length)?;
            if length.replace(this).is_some_and(|before| before != this) {
                return Err(HttpError::Length);
            }
        }
    }
    match length.unwrap_or(0) {
        long if long > MAX_BODY => Err(HttpError::LongBody(long)),
        length => Ok(length),
    }
}

fn digits(value: &[u8]) -> Option<u64> {
    let plain = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| plain)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives its bytes in pieces of one size, then ends.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(to.len());
            let (now, later) = self.0.split_at(count);
            to[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    fn read(text: &str) -> Result<Answer, HttpError> {
        answer(&mut text.as_bytes())
    }

    #[test]
    fn requests_have_a_length_only_with_a_body() {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let get = text(request("GET", "vm.info", None));
        assert!(get.starts_with("GET /api/v1/vm.info HTTP/1.1\r\n"), "{get}");
        assert!(get.ends_with("\r\n\r\n") && !get.contains("Content"), "{get}");
        let put = text(request("PUT", "vm.resize", Some(b"{}")));
        assert!(put.ends_with("Content-Length: 2\r\n\r\n{}"), "{put}");
    }

    #[test]
    fn answers_are_read_in_pieces_of_any_size() {
        let text = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 5\r\n\r\nhellorest";
        for size in 1..=text.len() {
            let read = answer(&mut Pieces(text, size)).unwrap();
            assert_eq!(read, Answer { status: 200, body: b"hello".to_vec() }, "{size}");
        }
    }

    #[test]
    fn answers_without_a_body_or_a_reason_are_answers() {
        let none = |status| Answer { status, body: Vec::new() };
        assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n").unwrap(), none(204));
        assert_eq!(read("HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n").unwrap(), none(500));
        let twice = "HTTP/1.1 200\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(read(twice).unwrap().body, b"{}");
    }

    #[test]
    fn broken_answers_are_refused() {
        let length =
            |value: &str| read(&format!("HTTP/1.1 200\r\nContent-Length: {value}\r\n\r\n"));
        for value in ["", "x", "-1", "+1", "1,1", "99999999999999999999999"] {
            assert!(matches!(length(value), Err(HttpError::Length)), "{value:?}");
        }
        let two = read("HTTP/1.1 200\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab");
        assert!(matches!(two, Err(HttpError::Length)));
        let chunked = read("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
        assert!(matches!(chunked, Err(HttpError::Encoding)));
        assert!(matches!(read("SSH-2.0-x\r\n\r\n"), Err(HttpError::Head(_))));
        for cut in ["", "HTTP/1.1 200\r\n", "HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nab"] {
            assert!(matches!(read(cut), Err(HttpError::Cut)), "{cut:?}");
        }
        let many = format!("HTTP/1.1 200\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert!(matches!(read(&many), Err(HttpError::Head(_))));
    }

    #[test]
    fn big_answers_are_refused_before_they_are_read() {
        let long = format!("HTTP/1.1 200\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
        assert!(matches!(read(&long), Err(HttpError::LongBody(_))));
        let mut endless = b"HTTP/1.1 200\r\nA: ".chain(io::repeat(b'a'));
        assert!(matches!(answer(&mut endless), Err(HttpError::LongHead)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_refused(bytes: Vec<u8>) {
            let _ = answer(&mut &bytes[..]);
        }
    }
}
