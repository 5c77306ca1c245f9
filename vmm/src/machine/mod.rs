//! The machine: what it consists of, and what becomes of it.

pub mod chardev;
pub mod spec;
