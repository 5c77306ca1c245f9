//! A client of QEMU's machine protocol (QMP), just enough to steer a guest's memory.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Qmp {
    input: BufReader<UnixStream>,
    output: UnixStream,
}

impl Qmp {
    /// Connects to the socket of `-qmp unix:...`.
    ///
    /// # Errors
    /// Nobody listens there, or it is no QMP server.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(socket)?)
    }

    fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut this = Self { input: BufReader::new(stream.try_clone()?), output: stream };
        this.receive()?;
        this.execute("qmp_capabilities", json!({}))?;
        Ok(this)
    }

    /// Runs a command and returns what it answers. Events that come first are passed over.
    ///
    /// # Errors
    /// QEMU refuses the command, or is gone.
    pub fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        writeln!(self.output, "{}", json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let mut answer = self.receive()?;
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            if answer.get("error").is_some() {
                return Err(io::Error::other(format!("{command}: {}", answer["error"])));
            }
        }
    }

    fn receive(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        match self.input.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => serde_json::from_str(&line).map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_command_is_answered_past_events_and_refusals_are_errors() {
        let (near, far) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let mut lines = BufReader::new(far.try_clone().unwrap()).lines();
            let mut far = far;
            far.write_all(b"{\"QMP\":{}}\n").unwrap();
            for answer in [
                "{\"return\":{}}\n",
                "{\"event\":\"RESUME\"}\n{\"return\":7}\n",
                "{\"error\":{\"desc\":\"no such device\"}}\n",
            ] {
                lines.next().unwrap().unwrap();
                far.write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut qmp = Qmp::over(near).unwrap();
        assert_eq!(qmp.execute("qom-get", json!({ "property": "size" })).unwrap(), json!(7));
        let error = qmp.execute("balloon", json!({ "value": 1 })).unwrap_err();
        assert!(error.to_string().contains("no such device"), "{error}");
        server.join().unwrap();
        assert!(qmp.execute("stop", json!({})).is_err());
    }
}
