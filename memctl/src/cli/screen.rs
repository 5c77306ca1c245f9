//! The terminal as a screen: entered, drawn on, and always left as it was found.

use std::io::{self, IsTerminal, Write};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::flag;

/// Alternate screen, no cursor, no wrapping at the right edge (xterm's private modes).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// No terminal is larger; what claims to be would only cost memory.
const MAX_SIDE: u16 = 1000;

/// Something the user did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Leave.
    Quit,
    /// One line up.
    Up,
    /// One line down.
    Down,
}

/// The terminal, in raw mode, until dropped. A panic gives it back too, even one that aborts.
pub(super) struct Screen {
    saved: Termios,
    /// A signal asked for the end.
    ended: Arc<AtomicBool>,
}

impl Screen {
    /// Whether there is a terminal to take: both to draw on and to read keys from.
    pub(super) fn is_there() -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal()
    }

    /// Takes the terminal.
    ///
    /// # Errors
    /// Of the host, which then has the terminal as it was.
    pub(super) fn enter() -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            flag::register(signal, Arc::clone(&ended))?;
        }
        // Nobody reads this flag: a signal that is caught ends `poll`, and the next picture has
        // the new size.
        flag::register(SIGWINCH, Arc::default())?;
        let saved = tcgetattr(stdin())?;
        give_back_on_panic(saved.clone());
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Flush, &raw)?;
        let screen = Self { saved, ended };
        show(ENTER)?;
        Ok(screen)
    }

    /// Columns and lines.
    pub(super) fn size(&self) -> (usize, usize) {
        let side = |length: u16, usual| if length == 0 { usual } else { length.min(MAX_SIDE) };
        let (columns, lines) =
            tcgetwinsize(stdout()).map_or((0, 0), |size| (size.ws_col, size.ws_row));
        (usize::from(side(columns, 80)), usize::from(side(lines, 24)))
    }

    /// Replaces the picture by one of as many lines as the terminal has.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        // Erased before it is written: behind a full line, that would take its last character.
        show(&format!("\x1b[H\x1b[K{}", lines.join("\r\n\x1b[K")))
    }

    /// Waits for keys, a change of size, or the end of `patience`.
    ///
    /// # Errors
    /// Of the host.
    pub(super) fn wait(&self, patience: Duration) -> io::Result<Vec<Key>> {
        let input = stdin();
        let mut waited = [PollFd::new(&input, PollFlags::IN)];
        let patience = Timespec::try_from(patience).map_err(|_| Errno::INVAL)?;
        let ready = match poll(&mut waited, Some(&patience)) {
            Ok(ready) => ready > 0,
            Err(Errno::INTR) => false,
            Err(error) => return Err(error.into()),
        };
        if self.ended.load(Ordering::Relaxed) {
            return Ok(vec![Key::Quit]);
        }
        if !ready {
            return Ok(Vec::new());
        }
        let mut bytes = [0; 64];
        match rustix::io::read(input, &mut bytes) {
            Ok(0) => Ok(vec![Key::Quit]),
            Ok(count) => Ok(keys(&bytes[..count])),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back(&self.saved);
    }
}

/// Best effort: a terminal that is gone needs nothing back.
fn give_back(saved: &Termios) {
    let _ = show(LEAVE);
    let _ = tcsetattr(stdin(), OptionalActions::Flush, saved);
}

fn give_back_on_panic(saved: Termios) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        give_back(&saved);
        usual(info);
    }));
}

fn show(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// The keys in what a terminal sent: letters, control characters, and arrows (ECMA-48, 5.4).
fn keys(bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'q' | b'Q' | 0x03 => keys.push(Key::Quit),
            b'k' => keys.push(Key::Up),
            b'j' => keys.push(Key::Down),
            0x1b => rest = sequence(after, &mut keys),
            _ => {}
        }
    }
    keys
}

/// Takes the rest of an escape sequence, so that its letters are not taken for keys.
fn sequence<'a>(bytes: &'a [u8], keys: &mut Vec<Key>) -> &'a [u8] {
    let [b'[' | b'O', rest @ ..] = bytes else { return bytes };
    let Some(at) = rest.iter().position(|byte| (0x40..=0x7e).contains(byte)) else { return &[] };
    match rest[at] {
        b'A' => keys.push(Key::Up),
        b'B' => keys.push(Key::Down),
        _ => {}
    }
    &rest[at + 1..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_among_escape_sequences() {
        assert_eq!(keys(b"q"), [Key::Quit]);
        assert_eq!(keys(b"\x03"), [Key::Quit]);
        assert_eq!(keys(b"xj\x1b[A\x1bOBk"), [Key::Down, Key::Up, Key::Down, Key::Up]);
        // A function key, a mouse report's end, an escape alone, a cut sequence.
        for nothing in [&b"\x1b[15~"[..], b"\x1b[1;5D", b"\x1b", b"\x1b[", b"\x1b[1"] {
            assert_eq!(keys(nothing), [], "{nothing:?}");
        }
    }
}
