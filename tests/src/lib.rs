//! Guest tests: real Linux guests booted through Tessera's public surface.
//!
//! A test describes a VM, boots it and talks to it as a person would:
//!
//! ```no_run
//! use guest_tests::{Config, Result, Vm};
//!
//! fn four_vcpus() -> Result<()> {
//!     let vm = Vm::from(Config::vmlinux()?.vcpus(4)).boot()?;
//!     assert_eq!(vm.shell("nproc")?, "4");
//!     vm.power_off()
//! }
//! ```
//!
//! The monitor is a process of its own, as it is for its users: [`Tessera`] knows its command
//! line, its console, its API and what `/proc` says about it, and nothing of its inside. What the
//! guest and the monitor said last is printed when the [`Tessera`] is dropped; the test harness
//! shows that for tests that fail.
//!
//! Tests run where KVM runs Linux guests, which `cargo xtask test` finds or makes, and which is up
//! to twenty times slower than hardware: every wait has a limit made for that, and
//! `TESSERA_TEST_TIMEOUT_SCALE` multiplies all of them.
#![forbid(unsafe_code)]

mod artefact;
mod cgroup;
mod config;
mod console;
mod guest;
mod hogs;
mod http;
mod image;
mod output;
mod patience;
mod process;
mod slot_guest;
mod tessera;

/// What a test returns; any error fails it.
pub use anyhow::Result;
pub use artefact::Artefact;
pub use cgroup::{Cgroup, available_memory};
pub use config::{Config, GIB, MIB};
pub use console::Console;
pub use hogs::{Hogs, hog_processes};
pub use http::{Api, Connection, Reply};
pub use image::{Image, random_bytes};
pub use patience::{is_long, until, within};
pub use process::{HugePages, Mapping, Process};
pub use slot_guest::SlotGuest;
pub use tessera::{Ended, Tessera, Vm, run};
