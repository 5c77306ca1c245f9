//! The commands that go on: `watch` and `top`.

use std::env;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use memctl::PartitionName;

use super::bars::Glyphs;
use super::changes::changes;
use super::client::{CallError, Client};
use super::commands::{Failure, wants_colours};
use super::screen::{Key, Screen};
use super::text::printable;
use super::top::{Top, first_in_view, render};
use super::view::{Look, Partition, partitions};

/// How long a look may take. Short: somebody sits in front of it, and the next one follows.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two looks at a partition that is waited for.
const POLL: Duration = Duration::from_millis(50);
/// The longest that a resized terminal or a signal goes unnoticed.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// Asks for all there is to see.
///
/// # Errors
/// A [`CallError`].
pub(super) fn look(client: &Client, patience: Duration) -> Result<Look, CallError> {
    Look::new(client.get("vm.info", patience)?, client.get("vm.partitions", patience)?)
}

/// Waits until the guest has all that a partition is to have, and no more.
///
/// # Errors
/// [`Failure::Late`], [`Failure::Gone`], or why the monitor could not be asked.
pub(super) fn settled(
    client: &Client,
    id: &PartitionName,
    patience: Duration,
) -> Result<Partition, Failure> {
    let end = Instant::now() + patience;
    loop {
        // First the time: a look that takes long counts still.
        let left = end.saturating_duration_since(Instant::now());
        let all = partitions(client.get("vm.partitions", PATIENCE)?)?;
        let its = all.into_iter().find(|partition| partition.id == id.as_str());
        let partition = its.ok_or_else(|| Failure::Gone(id.clone()))?;
        if partition.is_settled() {
            return Ok(partition);
        }
        if left.is_zero() {
            let progress = partition.progress();
            return Err(Failure::Late { id: id.clone(), patience, progress });
        }
        thread::sleep(POLL.min(left));
    }
}

/// Prints a line per change until the monitor or the reader goes away.
///
/// # Errors
/// Why it ended.
pub(super) fn watch(client: &Client, interval: Duration, json: bool) -> Result<(), Failure> {
    let (begin, colours) = (Instant::now(), wants_colours());
    let mut output = io::stdout().lock();
    let mut last = None;
    loop {
        let now = look(client, PATIENCE)?;
        let at = begin.elapsed();
        for change in changes(last.as_ref(), &now) {
            let line = if json { change.json(at) } else { change.line(at, colours) };
            writeln!(output, "{line}")?;
        }
        output.flush()?;
        last = Some(now);
        thread::sleep(interval);
    }
}

/// Shows the VM's memory until the user leaves; for programs, a line of JSON per look.
///
/// # Errors
/// [`Failure::NoTerminal`], or why nothing could be shown at the start.
pub(super) fn top(client: &Client, interval: Duration, json: bool) -> Result<(), Failure> {
    if json {
        return stream(client, interval);
    }
    if !Screen::is_there() {
        return Err(Failure::NoTerminal);
    }
    // Before the terminal is taken: a wrong socket is told like in any command.
    let look = look(client, PATIENCE)?;
    let glyphs = if knows_utf8() { Glyphs::BLOCKS } else { Glyphs::ASCII };
    let mut top = Top { look, trouble: None, first: 0, colours: wants_colours(), glyphs };
    let screen = Screen::enter().map_err(Failure::Terminal)?;
    run(client, interval, &mut top, &screen).map_err(Failure::Terminal)
}

fn stream(client: &Client, interval: Duration) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    loop {
        writeln!(output, "{}", look(client, PATIENCE)?.json())?;
        output.flush()?;
        thread::sleep(interval);
    }
}

fn run(client: &Client, interval: Duration, top: &mut Top, screen: &Screen) -> io::Result<()> {
    let mut looked = Instant::now();
    loop {
        let (width, height) = screen.size();
        screen.draw(&render(top, width, height))?;
        let left = interval.saturating_sub(looked.elapsed());
        for key in screen.wait(left.min(MAX_WAIT))? {
            let first = first_in_view(top, height);
            match key {
                Key::Quit => return Ok(()),
                Key::Up => top.first = first.saturating_sub(1),
                Key::Down => top.first = first.saturating_add(1),
            }
        }
        if looked.elapsed() >= interval {
            refresh(client, top);
            looked = Instant::now();
        }
    }
}

/// A monitor that is gone may come back: the last look stays, with the reason.
fn refresh(client: &Client, top: &mut Top) {
    match look(client, PATIENCE) {
        Ok(look) => {
            top.look = look;
            top.trouble = None;
        }
        Err(error) => top.trouble = Some(printable(&error.to_string())),
    }
}

/// Whether the locale's characters are UTF-8, as POSIX says where to look.
fn knows_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(|name| env::var(name).ok());
    set.into_iter().find(|value| !value.is_empty()).is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}
