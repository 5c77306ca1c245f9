//! A bar of used, plugged and requested memory.

use memctl::Bytes;

use super::text::{Line, Tone};

/// What the cells of a bar look like; told apart without colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Glyphs {
    used: char,
    plugged: char,
    requested: char,
    over: char,
}

impl Glyphs {
    /// For terminals that show nothing else.
    pub(super) const ASCII: Self = Self { used: '#', plugged: '=', requested: '.', over: '!' };
    /// For terminals that know UTF-8.
    pub(super) const BLOCKS: Self =
        Self { used: '█', plugged: '▒', requested: '·', over: '▚' };

    /// Adds to `line` what the glyphs mean.
    pub(super) fn legend(&self, mut line: Line) -> Line {
        let meanings = [
            (self.used, Tone::Busy, "used"),
            (self.plugged, Tone::Settled, "plugged"),
            (self.requested, Tone::Faint, "still to come"),
            (self.over, Tone::Bad, "to be given back"),
        ];
        for (glyph, tone, meaning) in meanings {
            line.push(glyph, tone);
            line.push(format!(" {meaning}  "), Tone::Plain);
        }
        line
    }
}

/// The sizes of a bar.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Levels {
    /// In use; at most what is plugged.
    pub(super) used: Bytes,
    /// What the guest has.
    pub(super) plugged: Bytes,
    /// What it is wanted to have.
    pub(super) requested: Bytes,
}

impl Levels {
    /// What must fit on the bar.
    pub(super) fn extent(&self) -> Bytes {
        self.plugged.max(self.requested)
    }
}

/// Adds to `line` a bar of `width` characters, whole when a level reaches `scale`.
pub(super) fn bar(
    mut line: Line,
    glyphs: Glyphs,
    levels: Levels,
    scale: Bytes,
    width: usize,
) -> Line {
    let cells = |level| cells(level, scale, width);
    let plugged = cells(levels.plugged);
    let (used, requested) = (cells(levels.used).min(plugged), cells(levels.requested));
    let middle = plugged.min(requested).max(used);
    let runs = [
        (glyphs.used, Tone::Busy, used),
        (glyphs.plugged, Tone::Settled, middle - used),
        (glyphs.over, Tone::Bad, plugged - middle),
        (glyphs.requested, Tone::Faint, requested.saturating_sub(plugged)),
        (' ', Tone::Plain, width - plugged.max(requested)),
    ];
    for (glyph, tone, count) in runs {
        line.push(String::from(glyph).repeat(count), tone);
    }
    line
}

/// How many of `width` cells `level` is, rounded; never none for something.
fn cells(level: Bytes, scale: Bytes, width: usize) -> usize {
    let [level, scale] = [level, scale].map(|size| u128::from(size.as_u64()));
    if level == 0 || scale == 0 {
        return 0;
    }
    let width = width.min(usize::from(u16::MAX));
    let exact = (level * width as u128 + scale / 2) / scale;
    usize::try_from(exact).unwrap_or(width).clamp(width.min(1), width)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drawn(used: u64, plugged: u64, requested: u64, scale: u64) -> String {
        let [used, plugged, requested, scale] = [used, plugged, requested, scale].map(Bytes::new);
        let levels = Levels { used, plugged, requested };
        let line = bar(Line::of("[", Tone::Plain), Glyphs::ASCII, levels, scale, 10);
        line.then("]", Tone::Plain).render(80, false)
    }

    #[test]
    fn bars_show_each_level() {
        assert_eq!(drawn(2, 5, 8, 10), "[##===...  ]");
        assert_eq!(drawn(0, 10, 10, 10), "[==========]");
        assert_eq!(drawn(0, 0, 0, 0), "[          ]");
        assert_eq!(drawn(2, 8, 5, 10), "[##===!!!  ]", "asked back, and not given back yet");
        assert_eq!(drawn(6, 8, 0, 10), "[######!!  ]", "to be removed, and in use");
        assert_eq!(drawn(1, 500, 1000, 1000), "[#====.....]", "little is not nothing");
        assert_eq!(drawn(9, 5, 5, 10), "[#####     ]", "more in use than there is");
    }

    proptest! {
        #[test]
        fn bars_always_have_their_width(
            used: u64, plugged: u64, requested: u64, scale: u64, width in 0_usize..300,
        ) {
            let [used, plugged, requested, scale] =
                [used, plugged, requested, scale].map(Bytes::new);
            let levels = Levels { used, plugged, requested };
            let line = bar(Line::default(), Glyphs::BLOCKS, levels, scale, width);
            let text = line.then("|", Tone::Plain).render(usize::MAX, false);
            prop_assert_eq!(text.chars().count(), width + 1);
        }
    }
}
