//! Guest tests: real Linux guests booted through Tessera's public surface.
#![forbid(unsafe_code)]
