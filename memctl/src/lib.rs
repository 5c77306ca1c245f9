//! Who owns which block of guest memory, and what is allowed next. No I/O.
//!
//! - [`units`]: sizes as types.
#![forbid(unsafe_code)]

pub mod units;

pub use units::{Bytes, ParseBytesError};
