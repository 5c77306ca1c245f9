//! Who owns which block of guest memory, and what is allowed next. No I/O.
#![forbid(unsafe_code)]
