//! The command, by what each part may know.
//!
//! ```text
//! args --> commands --> client --> http          the socket and its bytes
//!              |           `----> view           what the monitor's JSON says
//!              +--> table, changes, bars, top    pure: what is known becomes text
//!              `--> live --> screen              the terminal
//! ```

mod args;
mod bars;
mod changes;
mod client;
mod commands;
mod http;
mod live;
mod screen;
mod table;
mod text;
mod top;
mod view;

pub(crate) use args::Cli;
pub(crate) use commands::{Failure, run};
