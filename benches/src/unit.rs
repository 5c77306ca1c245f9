//! Units of measured values, and how people read them.

use serde::Serialize;

/// What a measured number counts. The number itself is always in the base unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// How often something happened.
    Count,
}

/// A unit that numbers of one size are written in.
struct Scale {
    divisor: f64,
    name: &'static str,
}

impl Unit {
    /// The value with three significant digits and its unit: `2.31 s`, `4.20 MiB`, `12,345`.
    pub fn format(self, value: f64) -> String {
        let scale = self.scale(value);
        let number = value / scale.divisor;
        let digits = match number.abs() {
            _ if self == Unit::Count => 0,
            size if size < 9.995 => 2,
            size if size < 99.95 => 1,
            _ => 0,
        };
        let text = grouped(&format!("{number:.digits$}"));
        if scale.name.is_empty() { text } else { format!("{text} {}", scale.name) }
    }

    /// The values of an axis that ends at `end`, with their texts: about five, round, from zero.
    pub fn ticks(self, end: f64) -> Vec<(f64, String)> {
        let scale = self.scale(end);
        let step = round_step(end / scale.divisor / 5.0);
        let count = (end / scale.divisor / step + 1e-9).floor() as u32;
        let digits = if step < 1.0 { (-step.log10()).ceil() as usize } else { 0 };
        (0..=count)
            .map(|index| {
                let number = f64::from(index) * step;
                (number * scale.divisor, grouped(&format!("{number:.digits$}")))
            })
            .collect()
    }

    /// The name of the unit that an axis ending at `end` is written in; empty for a count.
    pub fn axis_name(self, end: f64) -> &'static str {
        self.scale(end).name
    }

    fn scale(self, value: f64) -> Scale {
        const KIB: f64 = 1024.0;
        let (divisor, name) = match (self, value.abs()) {
            (Unit::Seconds, size) if size >= 1.0 => (1.0, "s"),
            (Unit::Seconds, size) if size >= 1e-3 => (1e-3, "ms"),
            (Unit::Seconds, _) => (1e-6, "µs"),
            (Unit::Bytes, size) if size >= KIB * KIB * KIB => (KIB * KIB * KIB, "GiB"),
            (Unit::Bytes, size) if size >= KIB * KIB => (KIB * KIB, "MiB"),
            (Unit::Bytes, _) => (KIB, "KiB"),
            (Unit::Count, _) => (1.0, ""),
        };
        Scale { divisor, name }
    }
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10_f64.powf(raw.log10().floor());
    [1.0, 2.0, 2.5, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= raw * 0.999)
        .unwrap_or(10.0 * power)
}

/// Puts a comma between groups of three digits of the whole part.
fn grouped(number: &str) -> String {
    let (whole, rest) = number.split_at(number.find('.').unwrap_or(number.len()));
    let (sign, whole) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut text = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_the_unit_of_their_size() {
        assert_eq!(Unit::Seconds.format(2.314), "2.31 s");
        assert_eq!(Unit::Seconds.format(12.34), "12.3 s");
        assert_eq!(Unit::Seconds.format(0.2314), "231 ms");
        assert_eq!(Unit::Seconds.format(0.000_05), "50.0 µs");
        assert_eq!(Unit::Bytes.format(4.2 * 1_048_576.0), "4.20 MiB");
        assert_eq!(Unit::Bytes.format(0.0), "0.00 KiB");
        assert_eq!(Unit::Count.format(1_234_567.0), "1,234,567");
        assert_eq!(Unit::Count.format(-1_234.0), "-1,234");
        assert_eq!(Unit::Count.format(999.0), "999");
    }

    #[test]
    fn ticks_are_round_start_at_zero_and_stay_on_the_axis() {
        let texts = |unit: Unit, end: f64| -> Vec<String> {
            unit.ticks(end).into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(texts(Unit::Seconds, 2.4), ["0.0", "0.5", "1.0", "1.5", "2.0"]);
        assert_eq!(texts(Unit::Seconds, 0.25), ["0", "50", "100", "150", "200", "250"]);
        assert_eq!(texts(Unit::Count, 50_000.0).last().unwrap(), "50,000");
        for end in [0.0013, 0.7, 3.3, 4.9, 61.0] {
            let ticks = Unit::Seconds.ticks(end);
            assert!((3..=6).contains(&ticks.len()), "{end}: {ticks:?}");
            assert!(ticks.iter().all(|(value, _)| *value <= end * 1.001));
        }
    }
}
