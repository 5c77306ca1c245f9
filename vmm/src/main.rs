//! `tessera`: the command line.
//!
//! Exit codes: 0 when the guest powered off or the monitor was asked to end, 1 for a run-time
//! error, 2 for wrong usage.
#![forbid(unsafe_code)]

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use env_logger::fmt::Formatter;
use log::{LevelFilter, Record};
use rustix::fs::Mode;
use rustix::process::umask;
use vmm::api::Cli;

fn main() -> ExitCode {
    let start = Instant::now();
    // Sockets and files made from here on are this user's alone.
    umask(Mode::RWXG | Mode::RWXO);
    let cli = Cli::read(env::args_os()).unwrap_or_else(|error| error.exit());
    match run(&cli, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone there is nobody left to tell.
            let _ = report(&error, &mut io::stderr());
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli, start: Instant) -> anyhow::Result<()> {
    set_up_log(cli, start)?;
    Ok(vmm::monitor::run(cli.launch()?)?)
}

/// Writes an error and its causes, one per line. A cause of several lines is several problems.
fn report(error: &anyhow::Error, to: &mut dyn Write) -> io::Result<()> {
    writeln!(to, "tessera: {error}")?;
    for cause in error.chain().skip(1).map(ToString::to_string) {
        cause.lines().try_for_each(|line| writeln!(to, "  caused by: {line}"))?;
    }
    Ok(())
}

fn set_up_log(cli: &Cli, start: Instant) -> anyhow::Result<()> {
    let level = match cli.verbosity() {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let mut log = env_logger::Builder::new();
    log.filter_level(level).format(move |to, record| write_record(to, record, start));
    if let Some(path) = cli.log_file() {
        let file = File::create(path).with_context(|| format!("--log-file {}", path.display()))?;
        log.target(env_logger::Target::Pipe(Box::new(file)));
    }
    log.init();
    Ok(())
}

/// Seconds since the start, thread, level, module, text.
fn write_record(to: &mut Formatter, record: &Record<'_>, start: Instant) -> io::Result<()> {
    let elapsed = start.elapsed().as_secs_f64();
    let thread = thread::current();
    let name = thread.name().unwrap_or("?");
    let (level, module) = (record.level(), record.target());
    writeln!(to, "tessera: {elapsed:.6}s: <{name}> {level}:{module} -- {}", record.args())
}

#[cfg(test)]
mod tests {
    use vmm::machine::spec::InvalidConfig;
    use vmm::monitor::Error;

    use super::*;

    #[test]
    fn each_problem_is_a_line_that_says_it_is_a_cause() {
        let problems = vec!["a: b".to_owned(), "c: d".to_owned()];
        let error = Error::Config(InvalidConfig { problems });
        let mut text = Vec::new();
        report(&error.into(), &mut text).unwrap();
        let expected =
            "tessera: the configuration is invalid\n  caused by: a: b\n  caused by: c: d\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
