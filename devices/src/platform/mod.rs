//! Platform registers: CMOS RTC, ACPI power control.

pub mod power;
pub mod rtc;
