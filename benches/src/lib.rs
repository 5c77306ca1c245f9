//! What the benchmark programs share: processes under measurement, samples, tables, figures.
//!
//! **Invariant:** nothing here knows what is measured. A program in `bin` says which processes run
//! and which figures are drawn; it reaches a monitor only as its users do, by command line, console
//! and API socket.
#![forbid(unsafe_code)]

pub mod api;
pub mod comparison;
pub mod cpu;
pub mod elastic;
pub mod facts;
pub mod figure;
pub mod hogs;
pub mod kvm_stats;
pub mod place;
pub mod process;
pub mod qmp;
pub mod samples;
pub mod scrub;
pub mod smaps;
pub mod svg;
pub mod table;
pub mod unit;
