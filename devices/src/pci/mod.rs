//! PCI: configuration space, MSI-X, the root bus (PCI local bus 3.0, PCI Express 5.0 for ECAM).
//!
//! A function is a [`Configuration`] (registers as data: bytes, and a mask of the bits a guest may
//! change) plus what lies behind its BARs. The [`PciRoot`] finds a function by slot for
//! configuration accesses and by address for memory accesses.
//!
//! ```text
//!  vCPU -- 0xcf8/0xcfc, ECAM --> PciRoot -- slot ----> PciFunction::config_{read,write}
//!  vCPU -- memory window ------> PciRoot -- address -> PciFunction::bar_{read,write}
//!                                   |
//!                                   +-- after a write that moved a BAR --> PciFunction::bar_moved
//! ```
//!
//! **Invariant:** the memory map is a pure function of all configuration spaces: a BAR is mapped
//! exactly while its function decodes memory, it lies inside a window, and no BAR of a lower slot
//! overlaps it. There is no INTx line: functions interrupt through [`Msix`].
//!
//! **Invariant:** no function holds a reference to the root, so no callback takes a lock of it.

pub mod bar;
pub mod config;
pub mod function;
#[cfg(test)]
pub(crate) mod mock;
pub mod msix;
pub mod root;

pub use bar::{Bar, BarKind};
pub use config::{Class, Configuration, Identity};
pub use function::PciFunction;
pub use msix::Msix;
pub use root::{Apertures, AttachError, Bdf, PciRoot};
