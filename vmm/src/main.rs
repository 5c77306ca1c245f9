//! `tessera`: the command line.

fn main() {}
