//! Units as types, so that no size is ever in doubt.

use std::fmt;
use std::str::FromStr;

/// An amount of memory or storage in bytes. The only unit for sizes anywhere in the project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

impl Bytes {
    /// Nothing at all.
    pub const ZERO: Self = Self(0);

    /// Exactly `count` bytes.
    pub const fn new(count: u64) -> Self {
        Self(count)
    }

    /// `count` times 1024 bytes; for constants.
    ///
    /// # Panics
    /// At compile time, when used in a constant that overflows.
    pub const fn kib(count: u64) -> Self {
        Self::scaled(count, 10)
    }

    /// `count` times 1024 KiB; for constants.
    ///
    /// # Panics
    /// At compile time, when used in a constant that overflows.
    pub const fn mib(count: u64) -> Self {
        Self::scaled(count, 20)
    }

    /// `count` times 1024 MiB; for constants.
    ///
    /// # Panics
    /// At compile time, when used in a constant that overflows.
    pub const fn gib(count: u64) -> Self {
        Self::scaled(count, 30)
    }

    const fn scaled(count: u64, shift: u32) -> Self {
        match count.checked_mul(1 << shift) {
            Some(bytes) => Self(bytes),
            None => panic!("a constant size over 2^64 bytes"),
        }
    }

    /// The number of bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The number of bytes as an index into memory; `None` where the host's addresses are shorter.
    pub fn as_usize(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }

    /// The sum, or `None` on overflow.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// The difference, or `None` when `other` is larger.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// This size `count` times, or `None` on overflow.
    pub const fn checked_mul(self, count: u64) -> Option<Self> {
        match self.0.checked_mul(count) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// Whether this is a whole number of `unit`s. Only zero is a multiple of zero.
    pub const fn is_multiple_of(self, unit: Self) -> bool {
        self.0.is_multiple_of(unit.0)
    }

    /// Whether exactly one bit is set, as for every page size.
    pub const fn is_power_of_two(self) -> bool {
        self.0.is_power_of_two()
    }
}

/// For people: the largest binary unit that leaves no fraction, as in `512 MiB`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")].iter().find(|u| whole(u.0)) {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None if self.0 == 1 => f.write_str("1 byte"),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseBytesError {
    /// Something else than digits and one of the suffixes.
    #[error("not a size; write a number, alone or followed by K, M, G or T, as in 512M or 512MiB")]
    NotASize,
    /// More than 2^64 - 1 bytes.
    #[error("a size over 2^64 bytes")]
    Overflow,
}

/// Reads `4096`, `1024K`, `512M`, `4G` or `1T`, also with `iB` behind; suffixes are powers of 1024.
impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, ParseBytesError> {
        // `u64::from_str` alone would take a leading plus sign.
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, unit) = text.split_at(digits);
        let shift = match unit {
            _ if digits.is_empty() => return Err(ParseBytesError::NotASize),
            "" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err(ParseBytesError::NotASize),
        };
        let count: u64 = digits.parse().map_err(|_| ParseBytesError::Overflow)?;
        count.checked_mul(1 << shift).map(Self).ok_or(ParseBytesError::Overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!("0".parse(), Ok(Bytes::ZERO));
        assert_eq!("4097".parse(), Ok(Bytes::new(4097)));
        assert_eq!("1024K".parse(), Ok(Bytes::mib(1)));
        assert_eq!("512M".parse(), Ok(Bytes::mib(512)));
        assert_eq!("4G".parse(), Ok(Bytes::gib(4)));
        assert_eq!("2T".parse(), Ok(Bytes::gib(2048)));
        assert_eq!("18446744073709551615".parse(), Ok(Bytes::new(u64::MAX)));
    }

    #[test]
    fn suffixes_may_be_written_out() {
        for unit in ["K", "M", "G", "T"] {
            let [short, long] = ["", "iB"].map(|end| format!("3{unit}{end}").parse::<Bytes>());
            assert!(short.is_ok() && short == long, "{unit}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        let numbers = ["", "K", "iB", "MiB", "+1", "-1", " 1", "1.5G", "0x10", "é"];
        let units = ["1 M", "1k", "1MM", "1iB", "1B", "1MB", "1Mi", "1mib", "1MiBM", "1P", "1é"];
        for text in numbers.into_iter().chain(units) {
            assert_eq!(text.parse::<Bytes>(), Err(ParseBytesError::NotASize), "{text:?}");
        }
    }

    #[test]
    fn overflow_is_refused() {
        for text in ["18446744073709551616", "16777216T", "99999999999999999999999KiB"] {
            assert_eq!(text.parse::<Bytes>(), Err(ParseBytesError::Overflow), "{text}");
        }
    }

    #[test]
    fn people_read_the_largest_whole_unit() {
        let shown = |bytes: Bytes| bytes.to_string();
        assert_eq!(shown(Bytes::ZERO), "0 bytes");
        assert_eq!(shown(Bytes::new(1)), "1 byte");
        assert_eq!(shown(Bytes::new(1500)), "1500 bytes");
        assert_eq!(shown(Bytes::kib(4)), "4 KiB");
        assert_eq!(shown(Bytes::mib(1536)), "1536 MiB");
        assert_eq!(shown(Bytes::gib(2048)), "2 TiB");
    }

    #[test]
    fn arithmetic_never_wraps() {
        let (one, max) = (Bytes::new(1), Bytes::new(u64::MAX));
        assert_eq!(max.checked_add(one), None);
        assert_eq!(one.checked_add(one), Some(Bytes::new(2)));
        assert_eq!(one.checked_sub(max), None);
        assert_eq!(max.checked_sub(max), Some(Bytes::ZERO));
        assert_eq!(max.checked_mul(2), None);
        assert_eq!(Bytes::mib(2).checked_mul(512), Some(Bytes::gib(1)));
    }

    #[test]
    fn alignment_is_exact() {
        assert!(Bytes::gib(1).is_multiple_of(Bytes::mib(2)));
        assert!(!Bytes::mib(3).is_multiple_of(Bytes::mib(2)));
        assert!(!Bytes::mib(3).is_multiple_of(Bytes::ZERO));
        assert!(Bytes::mib(2).is_power_of_two());
        assert!(!Bytes::mib(3).is_power_of_two());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".*") {
            let _ = text.parse::<Bytes>();
        }

        #[test]
        fn plain_numbers_come_back(count: u64) {
            prop_assert_eq!(count.to_string().parse(), Ok(Bytes::new(count)));
        }
    }
}
