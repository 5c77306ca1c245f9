//! The CMOS real-time clock: an MC146818 that tells the host's time, and the bytes of memory
//! around it.
//!
//! The clock is the host's, in UTC: writes to it are dropped, alarms never ring, and no update is
//! ever in progress.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::Registers;

/// I/O ports from the base on: index at 0x70, data at 0x71.
pub const PORTS: u64 = 2;

/// The index register's upper bit masks NMI and is no part of the index.
const INDEX_MASK: u8 = 0x7f;

/// The 32768 Hz time base runs, periodic rate 1024 Hz; bit 7, update in progress, is clear.
const STATUS_A: u8 = 0x26;
/// 24-hour mode, binary-coded decimal, all interrupts off.
const STATUS_B: u8 = 0x02;
/// Memory and time are valid.
const STATUS_D: u8 = 0x80;

const SECONDS_PER_DAY: u64 = 86_400;

/// The clock and its memory, all zeros at first. In a [`Mutex`](std::sync::Mutex) it is a device
/// for ports 0x70 and 0x71.
pub struct Rtc {
    index: u8,
    memory: [u8; 128],
    clock: fn() -> u64,
}

impl Rtc {
    /// A clock that follows the host's.
    pub fn new() -> Self {
        Self::with_clock(host_seconds)
    }

    /// `clock` returns seconds since 1970, UTC.
    fn with_clock(clock: fn() -> u64) -> Self {
        Self { index: 0, memory: [0; 128], clock }
    }

    fn data(&self) -> u8 {
        match self.index {
            0x0a => STATUS_A,
            0x0b => STATUS_B,
            0x0c => 0,
            0x0d => STATUS_D,
            index => {
                time_register(index, self.clock).unwrap_or_else(|| self.memory[usize::from(index)])
            }
        }
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

/// A wider access is one to each byte in turn. The index register reads back as nothing.
impl Registers for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..PORTS).zip(data) {
            if register == 1 {
                *byte = self.data();
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, &byte) in (offset..PORTS).zip(data) {
            match register {
                0 => self.index = byte & INDEX_MASK,
                // What is written under a clock register is never read.
                _ => self.memory[usize::from(self.index)] = byte,
            }
        }
    }
}

fn host_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The clock register at `index`; `None` where there is none.
fn time_register(index: u8, clock: impl FnOnce() -> u64) -> Option<u8> {
    let field: fn(&DateTime) -> u64 = match index {
        0x00 => |time| time.second,
        0x02 => |time| time.minute,
        0x04 => |time| time.hour,
        0x06 => |time| time.weekday,
        0x07 => |time| time.day,
        0x08 => |time| time.month,
        0x09 => |time| time.year % 100,
        0x32 => |time| time.year / 100,
        _ => return None,
    };
    Some(bcd(field(&DateTime::from_unix(clock()))))
}

/// Two decimal digits, one per nibble.
fn bcd(value: u64) -> u8 {
    (value / 10 % 10 * 16 + value % 10) as u8
}

/// A moment in the Gregorian calendar, UTC.
#[derive(Debug, PartialEq, Eq)]
struct DateTime {
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
    /// 1 for Sunday to 7.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl DateTime {
    /// From seconds since 1970, without leap seconds.
    ///
    /// Years are counted from March, so that the leap day is a year's last and a month's first day
    /// is a linear function of its number.
    fn from_unix(seconds: u64) -> Self {
        const DAYS_PER_ERA: u64 = 146_097; // 400 years
        const MARCH_0000_TO_1970: u64 = 719_468;
        let (days, second_of_day) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
        let era_days = days + MARCH_0000_TO_1970;
        let (era, day_of_era) = (era_days / DAYS_PER_ERA, era_days % DAYS_PER_ERA);
        let leap_days = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / (DAYS_PER_ERA - 1);
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const LEAP_DAY: u64 = 1_709_251_198;

    fn leap_day() -> u64 {
        LEAP_DAY
    }

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut data = [0xff];
        rtc.read(1, &mut data);
        data[0]
    }

    fn date(seconds: u64) -> (u64, u64, u64) {
        let time = DateTime::from_unix(seconds);
        (time.year, time.month, time.day)
    }

    #[test]
    fn time_reads_as_binary_coded_decimal() {
        let mut rtc = Rtc::with_clock(leap_day);
        let registers = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32];
        let time = registers.map(|index| read(&mut rtc, index));
        assert_eq!(time, [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
    }

    #[test]
    fn status_says_valid_24_hours_and_no_update() {
        let mut rtc = Rtc::new();
        for value in [0, 0xff] {
            (0x0a..=0x0d).for_each(|index| rtc.write(0, &[index, value]));
            let status = [0x0a, 0x0b, 0x0c, 0x0d].map(|index| read(&mut rtc, index));
            assert_eq!(status, [0x26, 0x02, 0x00, 0x80]);
        }
    }

    #[test]
    fn calendar_knows_its_leap_years() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(DateTime::from_unix(0).weekday, 5);
        assert_eq!(date(LEAP_DAY), (2024, 2, 29));
        assert_eq!(date(LEAP_DAY + 2), (2024, 3, 1));
        assert_eq!(date(951_782_400), (2000, 2, 29));
        assert_eq!(date(1_677_542_400), (2023, 2, 28));
        assert_eq!(date(1_677_628_800), (2023, 3, 1));
        assert_eq!(date(4_107_456_000), (2100, 2, 28));
        assert_eq!(date(4_107_542_400), (2100, 3, 1));
        assert_eq!(date(1_735_689_599), (2024, 12, 31));
        assert_eq!(date(1_735_689_600), (2025, 1, 1));
    }

    #[test]
    fn each_day_follows_the_one_before() {
        let mut last = DateTime::from_unix(0);
        for day in 1..150_000 {
            let next = DateTime::from_unix(day * SECONDS_PER_DAY);
            let century_leap = !last.year.is_multiple_of(100) || last.year.is_multiple_of(400);
            let leap = last.year.is_multiple_of(4) && century_leap;
            let length = match last.month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = match (last.day == length, last.month) {
                (false, month) => (last.year, month, last.day + 1),
                (true, 12) => (last.year + 1, 1, 1),
                (true, month) => (last.year, month + 1, 1),
            };
            assert_eq!((next.year, next.month, next.day), expected);
            assert_eq!(next.weekday, last.weekday % 7 + 1);
            last = next;
        }
    }

    #[test]
    fn memory_keeps_what_is_written_and_the_clock_does_not() {
        let mut rtc = Rtc::with_clock(leap_day);
        rtc.write(0, &[0x40]);
        rtc.write(1, &[0xa5]);
        rtc.write(0, &[0x00, 0x11]);
        assert_eq!(read(&mut rtc, 0x40 | 0x80), 0xa5);
        assert_eq!(read(&mut rtc, 0x00), 0x58);
    }

    proptest! {
        #[test]
        fn any_access_is_served(
            steps in proptest::collection::vec(
                (any::<bool>(), 0u64..3, proptest::collection::vec(any::<u8>(), 0..9)),
                1..100,
            ),
            far in any::<u64>(),
        ) {
            let mut rtc = Rtc::with_clock(leap_day);
            for (write, offset, mut data) in steps {
                match write {
                    true => rtc.write(offset, &data),
                    false => rtc.read(offset, &mut data),
                }
            }
            DateTime::from_unix(far);
        }
    }
}
