//! `cargo xtask`: the one tool of this repository.
#![forbid(unsafe_code)]

fn main() {}
