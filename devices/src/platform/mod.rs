//! Platform registers: CMOS RTC, ACPI power control.
