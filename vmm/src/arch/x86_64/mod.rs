//! x86-64: where things are in guest-physical memory, how a kernel is entered, what ACPI says.

pub mod acpi;
pub mod boot;
pub mod layout;
pub mod registers;
pub mod reset_vector;
