//! `demo`: the program of that name in `benches`, run where guests run.

use anyhow::Result;
use clap::{Args, Command, FromArgMatches};

use crate::bench::{self, Options};
use crate::cache::Cache;

/// Installs and builds what is missing, then runs the show.
pub(crate) fn run(cache: &Cache) -> Result<()> {
    let words = Options::augment_args(Command::new("bench")).get_matches_from(["bench", "demo"]);
    bench::run(cache, &Options::from_arg_matches(&words)?)
}
