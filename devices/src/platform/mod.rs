//! Platform registers: CMOS RTC, ACPI power control.

pub mod rtc;
