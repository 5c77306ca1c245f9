//! What the benchmark programs share: guests with functions in them, processes under measurement,
//! samples, tables, figures.
//!
//! **Invariant:** a monitor is reached only as its users reach it: by command line, console and API
//! socket. A program in `bin` says what is measured, how often, and which figures are drawn.
#![forbid(unsafe_code)]

use std::process::ExitCode;

pub mod clock;
pub mod comparison;
pub mod cpu;
pub mod elastic;
pub mod events;
pub mod facts;
pub mod figure;
pub mod hogs;
pub mod kvm_stats;
pub mod output;
pub mod place;
pub mod process;
pub mod qmp;
pub mod samples;
pub mod scene;
pub mod scrub;
pub mod smaps;
pub mod svg;
pub mod table;
pub mod unit;
pub mod way;

/// How a program of this name ends: what went wrong is said on standard error.
pub fn exit(program: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
