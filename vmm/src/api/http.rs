//! HTTP/1.1 as far as Cloud Hypervisor's clients speak it: bytes to a request, a response to
//! bytes. No sockets.
//!
//! Header names and the spacing after them are written exactly as below, because some clients
//! search for the literal text. There are no chunks in either direction.

use std::fmt::Write;

/// Longest request line and headers, together.
pub(super) const MAX_HEAD: usize = 8 << 10;
/// Longest body.
pub(super) const MAX_BODY: usize = 4 << 20;
/// Most header lines.
const MAX_HEADERS: usize = 64;

/// A status line's number and words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(pub u16, pub &'static str);

impl Status {
    pub(super) const OK: Self = Self(200, "OK");
    pub(super) const NO_CONTENT: Self = Self(204, "No Content");
    pub(super) const BAD_REQUEST: Self = Self(400, "Bad Request");
    pub(super) const NOT_FOUND: Self = Self(404, "Not Found");
    pub(super) const TIMEOUT: Self = Self(408, "Request Timeout");
    pub(super) const CONFLICT: Self = Self(409, "Conflict");
    pub(super) const LENGTH_REQUIRED: Self = Self(411, "Length Required");
    pub(super) const BODY_TOO_LARGE: Self = Self(413, "Payload Too Large");
    pub(super) const HEAD_TOO_LARGE: Self = Self(431, "Request Header Fields Too Large");
    pub(super) const INTERNAL: Self = Self(500, "Internal Server Error");
    pub(super) const NOT_IMPLEMENTED: Self = Self(501, "Not Implemented");
    pub(super) const UNAVAILABLE: Self = Self(503, "Service Unavailable");
}

/// The request line and the headers that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// As sent: `GET`.
    pub method: String,
    /// As sent: `/api/v1/vm.info`.
    pub path: String,
    /// Bytes of the head itself, with its empty line.
    pub head_len: usize,
    /// Bytes of the body behind it, at most [`MAX_BODY`].
    pub body_len: usize,
    /// Whether the client means to send another request.
    pub keep_alive: bool,
    /// Whether the client waits for a go-ahead before it sends the body.
    pub expects_continue: bool,
}

/// A request that cannot be understood: what to answer before the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub Status, pub &'static str);

impl Head {
    /// Reads the head at the start of `bytes`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// What came can never become a request this server takes.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, Refusal> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let head_len = match request.parse(bytes) {
            Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
            Ok(_) => return Err(Refusal(Status::HEAD_TOO_LARGE, "the head is over 8 KiB")),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Refusal(Status::HEAD_TOO_LARGE, "more than 64 headers"));
            }
            Err(_) => return Err(Refusal(Status::BAD_REQUEST, "not an HTTP request")),
        };
        let mut head = Self {
            method: request.method.unwrap_or_default().to_owned(),
            path: request.path.unwrap_or_default().to_owned(),
            head_len,
            body_len: 0,
            keep_alive: request.version == Some(1),
            expects_continue: false,
        };
        let mut length = None;
        for header in request.headers.iter() {
            head.apply(header, &mut length)?;
        }
        head.body_len = length.unwrap_or(0);
        Ok(Some(head))
    }

    /// Bytes of the whole request.
    pub(super) fn len(&self) -> usize {
        self.head_len + self.body_len
    }

    fn apply(
        &mut self,
        header: &httparse::Header<'_>,
        length: &mut Option<usize>,
    ) -> Result<(), Refusal> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = header.value.trim_ascii();
        if is("Content-Length") {
            let new = content_length(value)?;
            if length.replace(new).is_some_and(|old| old != new) {
                return Err(Refusal(Status::BAD_REQUEST, "two different Content-Length headers"));
            }
        } else if is("Transfer-Encoding") {
            let problem = "Transfer-Encoding is not supported; send Content-Length";
            return Err(Refusal(Status::LENGTH_REQUIRED, problem));
        } else if is("Connection") && value.eq_ignore_ascii_case(b"close") {
            self.keep_alive = false;
        } else if is("Expect") && value.eq_ignore_ascii_case(b"100-continue") {
            self.expects_continue = true;
        }
        Ok(())
    }
}

fn content_length(value: &[u8]) -> Result<usize, Refusal> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    let text = text.ok_or(Refusal(Status::BAD_REQUEST, "Content-Length is not a number"))?;
    let too_large = Refusal(Status::BODY_TOO_LARGE, "the body is over 4 MiB");
    text.parse().ok().filter(|length| *length <= MAX_BODY).ok_or(too_large)
}

/// What goes out to a client that waits for a go-ahead.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A response as bytes. `body` is JSON; without one there are no headers about it.
pub(super) fn response(status: Status, body: Option<&[u8]>, keep_alive: bool) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let Status(number, words) = status;
    let mut head =
        format!("HTTP/1.1 {number} {words}\r\nServer: Tessera API\r\nConnection: {connection}\r\n");
    if let Some(body) = body {
        let about = "Content-Type: application/json\r\nContent-Length";
        write!(head, "{about}: {}\r\n", body.len()).expect("writing to a String never fails");
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUEST: &[u8] = b"PUT /api/v1/vm.create HTTP/1.1\r\nHost: localhost\r\n\
        Accept: */*\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

    fn parsed(text: &str) -> Result<Option<Head>, Refusal> {
        Head::parse(text.as_bytes())
    }

    #[test]
    fn head_is_read_whole_whatever_the_pieces() {
        let end = REQUEST.len() - 2;
        for cut in 0..end {
            assert_eq!(Head::parse(&REQUEST[..cut]), Ok(None), "at {cut}");
        }
        let head = Head::parse(REQUEST).unwrap().unwrap();
        let expected = Head {
            method: "PUT".into(),
            path: "/api/v1/vm.create".into(),
            head_len: end,
            body_len: 2,
            keep_alive: true,
            expects_continue: false,
        };
        assert_eq!(head, expected);
        assert_eq!(Head::parse(&REQUEST[..end]), Ok(Some(expected)));
    }

    #[test]
    fn header_names_and_values_have_no_case() {
        let head = parsed("GET / HTTP/1.1\r\ncontent-length:  7 \r\nCONNECTION: Close\r\n\r\n");
        let head = head.unwrap().unwrap();
        assert_eq!(head.body_len, 7);
        assert!(!head.keep_alive);
        let head = parsed("PUT / HTTP/1.1\r\nExpect: 100-Continue\r\n\r\n").unwrap().unwrap();
        assert!(head.expects_continue && head.keep_alive);
        assert!(!parsed("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().keep_alive);
    }

    #[test]
    fn limits_are_exact() {
        let with_length =
            |length: &str| parsed(&format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"));
        assert_eq!(with_length("4194304").unwrap().unwrap().body_len, MAX_BODY);
        let too_large = Refusal(Status::BODY_TOO_LARGE, "the body is over 4 MiB");
        assert_eq!(with_length("4194305"), Err(too_large));
        assert_eq!(with_length("99999999999999999999999999"), Err(too_large));

        let head_of = |len: usize| {
            let start = "GET / HTTP/1.1\r\nX: ";
            parsed(&format!("{start}{}\r\n\r\n", "x".repeat(len - start.len() - 4)))
        };
        assert_eq!(head_of(MAX_HEAD).unwrap().unwrap().head_len, MAX_HEAD);
        let too_large = Refusal(Status::HEAD_TOO_LARGE, "the head is over 8 KiB");
        assert_eq!(head_of(MAX_HEAD + 1), Err(too_large));
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        assert_eq!(parsed(&endless[..MAX_HEAD - 1]), Ok(None));
        assert_eq!(parsed(&endless[..MAX_HEAD]), Err(too_large));

        let headers = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert!(parsed(&headers(MAX_HEADERS)).unwrap().is_some());
        let too_many = Refusal(Status::HEAD_TOO_LARGE, "more than 64 headers");
        assert_eq!(parsed(&headers(MAX_HEADERS + 1)), Err(too_many));
    }

    #[test]
    fn ambiguous_bodies_are_refused() {
        let refusal =
            |headers: &str| parsed(&format!("PUT / HTTP/1.1\r\n{headers}\r\n\r\n")).unwrap_err().0;
        for length in ["", "-1", "+1", "1a", "0x1", "1,1", "\u{661}"] {
            let header = format!("Content-Length: {length}");
            assert_eq!(refusal(&header), Status::BAD_REQUEST, "{length:?}");
        }
        let twice = "Content-Length: 1\r\nContent-Length: 2";
        assert_eq!(refusal(twice), Status::BAD_REQUEST);
        assert_eq!(refusal("Transfer-Encoding: chunked"), Status::LENGTH_REQUIRED);
    }

    #[test]
    fn what_is_not_http_is_refused_at_once() {
        for text in ["\0", "{\"a\":1}\r\n", "GET / SPDY/3\r\n\r\n", "GET / HTTP/1.1\r\n:\r\n\r\n"] {
            let not_http = Refusal(Status::BAD_REQUEST, "not an HTTP request");
            assert_eq!(parsed(text), Err(not_http), "{text:?}");
        }
    }

    #[test]
    fn responses_carry_the_literal_headers_clients_search_for() {
        assert_eq!(
            response(Status::OK, Some(b"{}"), true),
            b"HTTP/1.1 200 OK\r\nServer: Tessera API\r\nConnection: keep-alive\r\n\
              Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        );
        assert_eq!(
            response(Status::NO_CONTENT, None, true),
            b"HTTP/1.1 204 No Content\r\nServer: Tessera API\r\nConnection: keep-alive\r\n\r\n"
        );
        let closing = response(Status::BAD_REQUEST, None, false);
        assert!(closing.windows(17).any(|text| text == b"Connection: close"));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            let _ = Head::parse(&bytes);
        }

        #[test]
        fn any_change_to_a_request_parses_or_is_refused(
            at in 0..REQUEST.len(), byte: u8, cut in 0..REQUEST.len()
        ) {
            let mut bytes = REQUEST.to_vec();
            bytes[at] = byte;
            if let Ok(Some(head)) = Head::parse(&bytes[..cut]) {
                prop_assert!(head.head_len <= cut && head.body_len <= MAX_BODY);
            }
        }
    }
}
