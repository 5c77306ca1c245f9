//! Text for terminals: pieces with a tone, cut to a width before any colour is put on.

use std::fmt::Write;
use std::time::Duration;

use memctl::Bytes;

/// How a piece of text is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// Headings.
    Strong,
    /// Of little interest now.
    Faint,
    /// In place, and at rest.
    Settled,
    /// At work.
    Busy,
    /// On its way in.
    Coming,
    /// On its way out.
    Going,
    /// Wrong, or too much.
    Bad,
}

impl Tone {
    /// The tone of a partition's state.
    pub(super) fn of_state(state: &str) -> Self {
        match state {
            "requested" => Self::Coming,
            "plugged" => Self::Settled,
            "bound" => Self::Busy,
            "draining" => Self::Going,
            _ => Self::Plain,
        }
    }

    /// Parameters of "select graphic rendition" (ECMA-48, 8.3.117).
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Settled => "32",
            Self::Busy => "36",
            Self::Coming => "33",
            Self::Going => "35",
            Self::Bad => "31",
        }
    }
}

/// One line, piece by piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line(Vec<(String, Tone)>);

impl Line {
    /// A line of one piece.
    pub(super) fn of(text: impl Into<String>, tone: Tone) -> Self {
        Self::default().then(text, tone)
    }

    /// The line with one more piece.
    pub(super) fn then(mut self, text: impl Into<String>, tone: Tone) -> Self {
        self.push(text, tone);
        self
    }

    /// Adds a piece.
    pub(super) fn push(&mut self, text: impl Into<String>, tone: Tone) {
        self.0.push((text.into(), tone));
    }

    /// The text of the line, at most `width` characters, without spaces at its end.
    pub(super) fn render(&self, width: usize, colours: bool) -> String {
        let mut left = width.min(self.length());
        let mut text = String::new();
        for (piece, tone) in &self.0 {
            let piece: String = piece.chars().take(left).collect();
            left -= piece.chars().count();
            let code = tone.code();
            if piece.is_empty() || code.is_empty() || !colours {
                text.push_str(&piece);
            } else {
                // Writing to a string cannot fail.
                let _ = write!(text, "\x1b[{code}m{piece}\x1b[0m");
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text
    }

    /// How many characters there are up to the last that is no space.
    fn length(&self) -> usize {
        let whole: String = self.0.iter().map(|(piece, _)| piece.as_str()).collect();
        whole.trim_end_matches(' ').chars().count()
    }
}

/// `text` without anything that would move a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `text` with one column per character, as the monitor's own names have.
pub(super) fn plain_name(text: &str) -> String {
    text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

/// A size that may be unknown.
pub(super) fn size(bytes: Option<Bytes>) -> String {
    bytes.map_or_else(|| "-".into(), |bytes| bytes.to_string())
}

/// What there is of `parts`, with commas between.
pub(super) fn listed<const N: usize>(parts: [Option<String>; N]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Memory that is not where it should be; empty when all is.
pub(super) fn displaced(spilled: Bytes, stuck: Bytes) -> String {
    let some = |size: Bytes, what| (size != Bytes::ZERO).then(|| format!("{size} {what}"));
    listed([some(spilled, "spilled"), some(stuck, "stuck")])
}

/// A time in microseconds that may not have come yet.
pub(super) fn time(micros: Option<u64>) -> String {
    let Some(micros) = micros else { return "-".into() };
    let time = Duration::from_micros(micros);
    match micros {
        0..1_000_000 => format!("{}.{:03} ms", micros / 1000, micros % 1000),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_by_what_is_seen() {
        let line = Line::of("abc", Tone::Strong).then("défg", Tone::Plain).then("  ", Tone::Bad);
        assert_eq!(line.render(80, false), "abcdéfg");
        assert_eq!(line.render(5, false), "abcdé");
        assert_eq!(line.render(5, true), "\x1b[1mabc\x1b[0mdé");
        assert_eq!(line.render(80, true), "\x1b[1mabc\x1b[0mdéfg");
        assert_eq!(line.render(0, true), "");
    }

    #[test]
    fn memory_in_the_wrong_place_is_told() {
        let mib = Bytes::mib(1);
        assert_eq!(displaced(Bytes::ZERO, Bytes::ZERO), "");
        assert_eq!(displaced(mib, Bytes::ZERO), "1 MiB spilled");
        assert_eq!(displaced(mib, mib), "1 MiB spilled, 1 MiB stuck");
    }

    #[test]
    fn sizes_and_times_may_be_unknown() {
        assert_eq!((size(None), size(Some(Bytes::mib(3)))), ("-".into(), "3 MiB".into()));
        assert_eq!(time(None), "-");
        assert_eq!(time(Some(250)), "0.250 ms");
        assert_eq!(time(Some(999_999)), "999.999 ms");
        assert_eq!(time(Some(1_500_000)), "1.50 s");
        assert!(time(Some(u64::MAX)).ends_with(" s"));
    }
}
