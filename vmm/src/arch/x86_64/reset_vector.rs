//! What stands where a BIOS begins after a reset, F000:FFF0.
//!
//! Linux with EFI support prefers EFI's reset on a hardware-reduced machine. Where there is no EFI it
//! goes on to a BIOS's: it enters real mode and jumps to the reset vector, and the reset register of
//! the ACPI tables is never tried. So the code there writes that register.

use devices::guest_memory::GuestMemory;
use devices::platform::power;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

use super::layout;

const PORT: [u8; 2] = ((layout::POWER_PORTS.start + power::RESET) as u16).to_le_bytes();

#[rustfmt::skip]
const CODE: [u8; 9] = [
    0xba, PORT[0], PORT[1],     // mov dx, port
    0xb0, power::RESET_VALUE,   // mov al, value
    0xee,                       // out dx, al
    0xf4,                       // hlt
    0xeb, 0xfd,                 // jmp to hlt
];

/// Writes the code.
///
/// # Errors
/// RAM ends below it.
pub fn write(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    memory.write_slice(&CODE, GuestAddress(layout::RESET_VECTOR))
}

const _: () = assert!(CODE.len() <= 16, "the first MiB ends there");
