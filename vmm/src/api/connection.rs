//! One client's connection: requests in, responses out, one after the other.
//!
//! Runs on a thread of its own. Every wait has an end: a client that says nothing is disconnected
//! after a minute, one that stops in the middle of a request or does not read its answer after ten
//! seconds.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::debug;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

use super::http::{self, Head, Refusal, Status};
use super::registry::Slot;
use super::request::Control;
use super::routes;

/// Bytes read at a time.
const CHUNK: usize = 8 << 10;
/// The most descriptors the kernel lets one message carry.
const MAX_DESCRIPTORS: usize = 253;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Silence between two requests.
    pub idle: Duration,
    /// A request to arrive, from its first byte, and an answer to leave.
    pub transfer: Duration,
    /// For a client that was refused, to read why.
    pub linger: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            transfer: Duration::from_secs(10),
            linger: Duration::from_secs(1),
        }
    }
}

/// Serves requests until the client goes away, errs, or is disconnected.
///
/// # Errors
/// The host refused a time limit, or the client does not read its answer.
pub(super) fn serve(slot: &Slot, control: &dyn Control, patience: Patience) -> io::Result<()> {
    let mut stream = slot.stream();
    let mut connection = Connection { stream, patience, buffer: Vec::new() };
    stream.set_write_timeout(Some(patience.transfer))?;
    loop {
        match connection.receive_request()? {
            Received::Request(head, body) => {
                let _busy = slot.busy();
                let (call, has_gone) = ((&*head.method, &*head.path), || has_gone(stream));
                let (status, json) = routes::serve(control, call, &body, &has_gone);
                stream.write_all(&http::response(status, json.as_deref(), head.keep_alive))?;
                if !head.keep_alive {
                    return Ok(());
                }
            }
            Received::Refused(refusal) => {
                refuse(stream, refusal)?;
                return connection.linger();
            }
            Received::Nothing => return Ok(()),
        }
    }
}

/// Tells a client why it is disconnected.
///
/// # Errors
/// It does not read the answer.
pub(super) fn refuse(mut stream: &UnixStream, refusal: Refusal) -> io::Result<()> {
    let Refusal(status, problem) = refusal;
    let body = routes::error_body(&[problem]);
    stream.write_all(&http::response(status, Some(&body), false))
}

/// Whether a client has closed its end. One that only has no more to say still wants its answer.
fn has_gone(stream: &UnixStream) -> bool {
    // A hang-up is told without being asked for.
    let mut ends = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ends, Some(&now)).is_ok() && ends[0].revents().contains(PollFlags::HUP)
}

/// What came out of waiting for a request.
enum Received {
    Request(Head, Vec<u8>),
    Refused(Refusal),
    /// The client has gone or was silent for too long.
    Nothing,
}

/// What came out of waiting for bytes.
#[derive(PartialEq, Eq)]
enum Arrival {
    Bytes,
    Closed,
    Late,
}

struct Connection<'a> {
    stream: &'a UnixStream,
    patience: Patience,
    /// What has arrived and was not used: at most a request and a chunk.
    buffer: Vec<u8>,
}

impl Connection<'_> {
    /// Waits for one whole request. What arrives behind it stays for the next call.
    fn receive_request(&mut self) -> io::Result<Received> {
        let idle = Instant::now() + self.patience.idle;
        if self.buffer.is_empty() && self.receive(idle)? != Arrival::Bytes {
            return Ok(Received::Nothing);
        }
        let deadline = Instant::now() + self.patience.transfer;
        let mut head = None;
        loop {
            if head.is_none() {
                head = match Head::parse(&self.buffer) {
                    Ok(head) => head,
                    Err(refusal) => return Ok(Received::Refused(refusal)),
                };
                self.go_ahead(head.as_ref())?;
            }
            if let Some(head) = head.take_if(|head| self.buffer.len() >= head.len()) {
                let body = self.take_body(&head);
                return Ok(Received::Request(head, body));
            }
            match self.receive(deadline)? {
                Arrival::Bytes => {}
                Arrival::Closed => return Ok(Received::Nothing),
                Arrival::Late => {
                    let problem = "the request took too long to arrive";
                    return Ok(Received::Refused(Refusal(Status::TIMEOUT, problem)));
                }
            }
        }
    }

    /// Answers a client that waits before it sends the body.
    fn go_ahead(&mut self, head: Option<&Head>) -> io::Result<()> {
        let waits = |head: &&Head| head.expects_continue && self.buffer.len() < head.len();
        match head.filter(waits) {
            Some(_) => self.stream.write_all(http::CONTINUE),
            None => Ok(()),
        }
    }

    /// Takes a request out of the buffer, which holds all of it.
    fn take_body(&mut self, head: &Head) -> Vec<u8> {
        let rest = self.buffer.split_off(head.len());
        let mut body = std::mem::replace(&mut self.buffer, rest);
        body.drain(..head.head_len);
        body
    }

    /// Adds what arrives before `deadline` to the buffer. Descriptors that come along are closed:
    /// no call takes any.
    fn receive(&mut self, deadline: Instant) -> io::Result<Arrival> {
        let left = deadline.saturating_duration_since(Instant::now());
        // A time-out of zero would mean none at all.
        self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut chunk = [0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let chunks = &mut [IoSliceMut::new(&mut chunk)];
            recvmsg(self.stream, chunks, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        if ancillary.drain().map(drop).count() != 0 {
            debug!("closed descriptors that no call takes");
        }
        match received {
            Ok(message) if message.bytes == 0 => Ok(Arrival::Closed),
            Ok(message) => {
                self.buffer.extend_from_slice(&chunk[..message.bytes]);
                Ok(Arrival::Bytes)
            }
            Err(rustix::io::Errno::AGAIN) => Ok(Arrival::Late),
            Err(error) => Err(error.into()),
        }
    }

    /// Listens on to a client that was refused: closing while it is still sending would take the
    /// answer back.
    fn linger(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + self.patience.linger;
        self.stream.shutdown(Shutdown::Write)?;
        self.stream.set_read_timeout(Some(self.patience.linger))?;
        let mut chunk = [0; CHUNK];
        while Instant::now() < deadline && self.stream.read(&mut chunk)? != 0 {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_has_said_all_is_there_until_it_hangs_up() {
        let (server, client) = UnixStream::pair().unwrap();
        assert!(!has_gone(&server));
        client.shutdown(Shutdown::Write).unwrap();
        server.shutdown(Shutdown::Read).unwrap();
        assert!(!has_gone(&server));
        drop(client);
        assert!(has_gone(&server));
    }
}
