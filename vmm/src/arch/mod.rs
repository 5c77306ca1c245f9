//! What depends on the processor architecture. x86-64 only.

pub mod x86_64;
