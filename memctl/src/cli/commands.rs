//! What each command does.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::CommandFactory;
use memctl::PartitionName;
use serde_json::{Value, json};

use super::args::{Add, Cli, Command, Remove, Resize, ResizeVm};
use super::client::{CallError, Client, Reply};
use super::live;
use super::table::table;
use super::text::time;
use super::view::Partition;

/// How long the monitor may take to answer, besides what it is told to wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The monitor could not be asked, or would not.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The guest has not done its part in time.
    #[error("{id}: after {patience:?} it is still {progress}")]
    Late {
        /// The partition's name.
        id: PartitionName,
        /// How long it was waited for.
        patience: Duration,
        /// The state that the partition is in, and its sizes.
        progress: String,
    },
    /// The partition that was waited for is not there any more.
    #[error("{0}: it has gone while it was waited for")]
    Gone(PartitionName),
    /// Standard output is closed or full.
    #[error("cannot print")]
    Print(#[from] io::Error),
    /// `top` has nothing to draw on.
    #[error("top needs a terminal, on its input and on its output")]
    NoTerminal,
    /// The terminal does not do as told.
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
}

impl Failure {
    /// Whether nothing failed but the reader of the output has gone.
    pub(crate) fn reader_left(&self) -> bool {
        matches!(self, Self::Print(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What the user can do about it.
    pub(crate) fn advice(&self) -> Option<String> {
        match self {
            Self::Call(error) => error.advice(),
            Self::Late { .. } => {
                Some("it stays asked for; `memctl watch` shows when it is done".into())
            }
            Self::Gone(_) => Some(
                "somebody removed it, or its function has ended already: what is added without \
                 `--release manual` goes by itself then"
                    .into(),
            ),
            Self::NoTerminal => Some("use `memctl ls`, or `memctl --json top`".into()),
            Self::Print(_) | Self::Terminal(_) => None,
        }
    }
}

/// Carries out what the command line says.
///
/// # Errors
/// A [`Failure`]. Wrong usage ends the process.
pub(crate) fn run(cli: &Cli) -> Result<(), Failure> {
    let client = || Client { socket: cli.socket() };
    match &cli.command {
        Command::Ls => list(&client(), cli.json),
        Command::Add(args) => add(&client(), args, cli.json),
        Command::Rm(args) => remove(&client(), args, cli.json),
        Command::Resize(args) => resize(&client(), args, cli.json),
        Command::Watch(args) => live::watch(&client(), args.interval, cli.json),
        Command::Top(args) => live::top(&client(), args.interval, cli.json),
        Command::ResizeVm(args) => resize_vm(&client(), args, cli.json),
        Command::Completions { shell } => {
            // Into memory first: the generator panics when it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "memctl", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let look = live::look(client, PATIENCE)?;
    if json {
        return print_json(&look.json());
    }
    print(&table(&look, wants_colours()))
}

fn add(client: &Client, args: &Add, json: bool) -> Result<(), Failure> {
    let &Add { ref id, size, cookie, prefault, release, wait } = args;
    let body = json!({
        "id": id.as_str(), "size": size.as_u64(), "prefault": prefault, "cookie": cookie,
        "release": release,
    });
    let reply = client.put("vm.add-partition", &body, PATIENCE)?;
    let reply = waited(client, id, reply, wait)?;
    tell("vm.add-partition", reply, json, |partition| {
        let Some(partition) = partition else { return format!("{id}: added") };
        let guest = partition.guest.as_ref().map(|name| format!("; the guest calls it {name}"));
        format!("{id}: added, {}{}", partition.progress(), guest.unwrap_or_default())
    })
}

fn remove(client: &Client, args: &Remove, json: bool) -> Result<(), Failure> {
    let Remove { id, timeout, evacuate } = args;
    let millis = u64::try_from(timeout.as_millis()).expect("arguments are at most a minute");
    let body = json!({"id": id.as_str(), "timeout_ms": millis, "evacuate": evacuate});
    let reply = match client.put("vm.remove-partition", &body, *timeout + PATIENCE) {
        // Who does not wait has only asked, and that went well.
        Err(error) if timeout.is_zero() && error.is_not_back_yet() => None,
        reply => reply?,
    };
    tell("vm.remove-partition", reply, json, |partition| {
        let took = |micros: Option<u64>| micros.map(|micros| time(Some(micros)));
        let Some(partition) = partition else {
            return format!("{id}: asked back; `memctl watch` shows when it has gone");
        };
        match (took(partition.removal_us), took(partition.last_release_us)) {
            (Some(all), Some(host)) => format!("{id}: removed in {all}, of it {host} on the host"),
            (Some(all), None) => format!("{id}: removed in {all}"),
            (None, _) => format!("{id}: removed"),
        }
    })
}

fn resize(client: &Client, args: &Resize, json: bool) -> Result<(), Failure> {
    let &Resize { ref id, size, wait } = args;
    let body = json!({"id": id.as_str(), "size": size.as_u64()});
    let reply = client.put("vm.resize-partition", &body, PATIENCE)?;
    let reply = waited(client, id, reply, wait)?;
    tell("vm.resize-partition", reply, json, |partition| match partition {
        Some(partition) => format!("{id}: {}", partition.progress()),
        None => format!("{id}: is to have {size} already"),
    })
}

fn resize_vm(client: &Client, args: &ResizeVm, json: bool) -> Result<(), Failure> {
    let ResizeVm { memory, zone } = args;
    let mut body = json!({"desired_ram": memory.as_u64()});
    let (call, what) = match zone {
        None => ("vm.resize", "shared memory".into()),
        Some(id) => {
            body["id"] = json!(id);
            ("vm.resize-zone", format!("zone {id}"))
        }
    };
    let reply = client.put(call, &body, PATIENCE)?;
    if json {
        return print_json(&reply.unwrap_or_default());
    }
    print(&format!("{what}: {memory} asked for; `memctl ls` shows what the guest has\n"))
}

/// What a call about a partition was answered; where it is to be waited for, what the monitor says
/// of it when the guest has done its part.
fn waited(
    client: &Client,
    id: &PartitionName,
    reply: Reply,
    wait: Option<Duration>,
) -> Result<Reply, Failure> {
    match wait {
        Some(patience) => Ok(Some(live::settled(client, id, patience)?.json)),
        None => Ok(reply),
    }
}

/// Prints what a call about one partition was answered: its JSON (`null` when there was none), or
/// the words for it.
fn tell(
    call: &'static str,
    reply: Reply,
    json: bool,
    words: impl FnOnce(Option<Partition>) -> String,
) -> Result<(), Failure> {
    if json {
        return print_json(&reply.unwrap_or_default());
    }
    let partition = reply.map(|value| Partition::new(call, value)).transpose()?;
    print(&(words(partition) + "\n"))
}

fn print_json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value}\n"))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    Ok(output.flush()?)
}

/// Whether to print colours: on a terminal that has them, unless the user wants none.
pub(super) fn wants_colours() -> bool {
    let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
    io::stdout().is_terminal() && !unwanted && !dumb
}
