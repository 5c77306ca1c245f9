//! What can be written on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use memctl::{Bytes, PartitionName};
use serde::Serialize;

/// The shortest time between two looks at the VM: a shorter one would only load the monitor.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// The longest, in milliseconds: an hour.
const MAX_TIME: u64 = 3_600_000;
/// The longest that the monitor waits for a removal.
const MAX_PATIENCE: Duration = Duration::from_secs(60);

/// What all commands have in common, below the list of them.
const SIZES: &str =
    "Sizes are a number of bytes, or one followed by K, M, G or T, also as KiB, MiB, GiB, TiB.";

/// See and steer the memory of a running VM
#[derive(Debug, Parser)]
#[command(name = "memctl", version, max_term_width = 100, after_help = SIZES)]
pub(crate) struct Cli {
    /// The socket that `tessera --api-socket PATH` made
    #[arg(long, global = true, value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// Print the monitor's JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Where the monitor listens. Ends the process with a usage error when that was not said.
    pub(crate) fn socket(&self) -> PathBuf {
        self.api_socket.clone().unwrap_or_else(|| {
            let problem = "which VM? Name its socket with --api-socket PATH";
            Self::command().error(ErrorKind::MissingRequiredArgument, problem).exit()
        })
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the VM's shared memory and its partitions
    Ls,
    /// Add a partition
    Add(Add),
    /// Remove a partition and wait until the host has its memory back
    Rm(Remove),
    /// Give a partition another size
    Resize(Resize),
    /// Print a line for each change
    Watch(Interval),
    /// Show the VM's memory live; q or Ctrl-C leaves
    Top(Interval),
    /// Give the VM another amount of shared memory
    ResizeVm(ResizeVm),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// A name for it: letters, digits, dots, dashes, underscores
    pub(crate) id: PartitionName,
    /// How much memory it has, such as 512M
    #[arg(long)]
    pub(crate) size: Bytes,
    /// A number that the guest shows to its userspace
    #[arg(long, default_value_t = 0)]
    pub(crate) cookie: u64,
    /// Back it with memory before the guest gets it
    #[arg(long)]
    pub(crate) prefault: bool,
    /// Whether it goes by itself when it is empty, or the guest keeps it, warm, until it is removed
    #[arg(long, value_enum, default_value_t)]
    pub(crate) release: Release,
    /// Wait until the guest has it, but no longer than this, such as 5s
    #[arg(long, value_parser = time, value_name = "TIME")]
    pub(crate) wait: Option<Duration>,
}

/// What becomes of a partition that is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Release {
    /// It goes by itself.
    #[default]
    Auto,
    /// It stays until it is removed.
    Manual,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Its name
    pub(crate) id: PartitionName,
    /// How long to wait for the guest, such as 500ms, 5s or 1m, at most a minute; 0s only asks
    #[arg(long, default_value = "5s", value_parser = patience, value_name = "TIME")]
    pub(crate) timeout: Duration,
    /// Have the guest move what is in use elsewhere, and not wait for its users
    #[arg(long)]
    pub(crate) evacuate: bool,
}

/// Arguments of `resize`.
#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// Its name
    pub(crate) id: PartitionName,
    /// How much memory it is to have, such as 1G
    #[arg(long)]
    pub(crate) size: Bytes,
    /// Wait until the guest has done it, but no longer than this, such as 5s
    #[arg(long, value_parser = time, value_name = "TIME")]
    pub(crate) wait: Option<Duration>,
}

/// Arguments of `watch` and `top`.
#[derive(Debug, Args)]
pub(crate) struct Interval {
    /// Time between two looks at the VM
    #[arg(long, default_value = "200ms", value_parser = interval, value_name = "TIME")]
    pub(crate) interval: Duration,
}

/// Arguments of `resize-vm`.
#[derive(Debug, Args)]
pub(crate) struct ResizeVm {
    /// RAM it booted with and shared memory plugged since, without partitions, such as 4G
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Bytes,
    /// Of one memory zone, where the VM has zones
    #[arg(long, value_name = "ID")]
    pub(crate) zone: Option<String>,
}

/// Reads `500ms`, `5s` or `1m`.
fn time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err("not a time; write a whole number followed by ms, s or m".into()),
    };
    // `u64::from_str` alone would take a leading plus sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: Option<u64> = digits.parse().ok().filter(|_| plain);
    let millis = count.and_then(|count| count.checked_mul(unit)).filter(|ms| *ms <= MAX_TIME);
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| "not a time; write a whole number up to an hour, as in 500ms, 5s, 1m".into())
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = time(text)?;
    if interval < MIN_INTERVAL {
        return Err(format!("too short; use {}ms or more", MIN_INTERVAL.as_millis()));
    }
    Ok(interval)
}

fn patience(text: &str) -> Result<Duration, String> {
    let patience = time(text)?;
    if patience > MAX_PATIENCE {
        return Err(format!("too long; use {}s or less", MAX_PATIENCE.as_secs()));
    }
    Ok(patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_become_values() {
        let cli = parsed("memctl --api-socket s add fn-7 --size 512M --cookie 9 --prefault");
        let cli = cli.unwrap();
        assert_eq!(cli.socket(), PathBuf::from("s"));
        let Command::Add(add) = cli.command else { panic!("{cli:?}") };
        assert_eq!((add.id.as_str(), add.size, add.cookie), ("fn-7", Bytes::mib(512), 9));
        assert!(add.prefault && add.release == Release::Auto && !cli.json);
        let cli = parsed("memctl rm fn-7 --evacuate --json --api-socket s").unwrap();
        let Command::Rm(remove) = cli.command else { panic!("{cli:?}") };
        assert_eq!((remove.timeout, remove.evacuate), (Duration::from_secs(5), true));
        assert!(cli.json, "options may follow the command");
        let cli = parsed("memctl resize fn-7 --size 1GiB --wait 1m").unwrap();
        let Command::Resize(resize) = cli.command else { panic!("{cli:?}") };
        let minute = Duration::from_secs(60);
        assert_eq!((resize.size, resize.wait), (Bytes::gib(1), Some(minute)));
        assert_eq!(patience("1m"), Ok(minute), "as much as the monitor takes");
    }

    #[test]
    fn help_says_what_a_size_is() {
        let help = Cli::command().render_help().to_string();
        assert!(help.ends_with(&format!("{SIZES}\n")), "{help}");
    }

    #[test]
    fn nonsense_is_a_usage_error_that_names_the_argument() {
        let cases = [
            ("memctl add fn-7", "--size"),
            ("memctl add fn/7 --size 1M", "1 to 64 ASCII letters"),
            ("memctl add fn-7 --size 1X", "'--size <SIZE>': not a size"),
            ("memctl add fn-7 --size 1M --wait 2h", "'--wait <TIME>': not a time"),
            ("memctl rm fn-7 --timeout 5", "'--timeout <TIME>': not a time"),
            ("memctl rm fn-7 --timeout 2m", "'--timeout <TIME>': too long; use 60s or less"),
            ("memctl watch --interval 1ms", "'--interval <TIME>': too short; use 10ms or more"),
            ("memctl resize-vm", "--memory"),
            ("memctl completions tcsh", "tcsh"),
        ];
        for (line, part) in cases {
            let error = parsed(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn times_have_units_and_an_end() {
        assert_eq!(time("0s"), Ok(Duration::ZERO));
        assert_eq!(time("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("60m"), Ok(Duration::from_secs(3600)));
        let nonsense = ["", "s", "5", "-5s", "+5s", "1.5s", "5h", "61m", "99999999999999999999s"];
        for text in nonsense.into_iter().chain(["é", "5é", "5 s"]) {
            assert!(time(text).is_err(), "{text:?}");
        }
    }
}
