//! `memctl`: see and steer the memory of a running VM.
//!
//! Exit codes: 0 when it was done, 1 when it was not, 2 for wrong usage.
#![forbid(unsafe_code)]

mod cli;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use cli::Cli;

fn main() -> ExitCode {
    match cli::run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has read enough, as in `memctl watch | head`.
        Err(error) if error.reader_left() => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone there is nobody left to tell.
            let _ = report(&error, &mut io::stderr());
            ExitCode::FAILURE
        }
    }
}

/// Writes an error, its causes, and what to do about it, one per line.
fn report(error: &cli::Failure, to: &mut dyn Write) -> io::Result<()> {
    writeln!(to, "memctl: {error}")?;
    let causes = std::iter::successors(error.source(), |cause| (**cause).source());
    for cause in causes {
        writeln!(to, "  caused by: {cause}")?;
    }
    match error.advice() {
        Some(advice) => writeln!(to, "  what to do: {advice}"),
        None => Ok(()),
    }
}
