//! A writer of the few SVG elements that figures are made of.

use std::fmt::Write;

/// Fonts that are on most machines, sans serif, with figures of equal width.
const FONTS: &str = "Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif";

/// The colour of the outline of text: that of the background.
const HALO: &str = "#ffffff";

/// How text is set.
#[derive(Clone, Copy, Debug)]
pub struct Font {
    /// Height in pixels.
    pub size: f64,
    /// Whether it is bold.
    pub bold: bool,
    /// Its colour, as CSS writes it.
    pub colour: &'static str,
}

/// Where a text is put relative to its point.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    /// It starts there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

/// A drawing, in pixels from its upper left corner. Later elements cover earlier ones.
#[derive(Debug, Default)]
pub struct Drawing {
    elements: String,
}

impl Drawing {
    /// A drawing of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A filled rectangle with rounded corners.
    pub fn rectangle(&mut self, at: (f64, f64), size: (f64, f64), radius: f64, colour: &str) {
        self.element(format_args!(
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"{}\" fill=\"{}\"/>",
            pixel(at.0),
            pixel(at.1),
            pixel(size.0),
            pixel(size.1),
            pixel(radius),
            escape(colour)
        ));
    }

    /// A line; `dash` is the length of its dashes and gaps, zero for an unbroken line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), width: f64, dash: f64, colour: &str) {
        let dashes = if dash > 0.0 {
            format!(" stroke-dasharray=\"{}\"", pixel(dash))
        } else {
            String::new()
        };
        self.element(format_args!(
            "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"{}\" stroke-width=\"{}\"{dashes}/>",
            pixel(from.0),
            pixel(from.1),
            pixel(to.0),
            pixel(to.1),
            escape(colour),
            pixel(width)
        ));
    }

    /// One line of text with its base line at `at`.
    pub fn text(&mut self, at: (f64, f64), anchor: Anchor, font: Font, text: &str) {
        self.texts(at, anchor, &[(font, text)]);
    }

    /// One line in several fonts, a blank apart. Its outline covers what is behind it.
    pub fn texts(&mut self, at: (f64, f64), anchor: Anchor, parts: &[(Font, &str)]) {
        let mut spans = String::new();
        for (index, (font, text)) in parts.iter().filter(|(_, text)| !text.is_empty()).enumerate() {
            let weight = if font.bold { " font-weight=\"600\"" } else { "" };
            let gap = if index > 0 { " dx=\"8\"" } else { "" };
            spans.push_str(&format!(
                "<tspan font-size=\"{}\"{weight}{gap} fill=\"{}\">{}</tspan>",
                pixel(font.size),
                font.colour,
                escape(text)
            ));
        }
        self.element(format_args!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"{}\" stroke=\"{HALO}\" stroke-width=\"4\" \
             paint-order=\"stroke\">{spans}</text>",
            pixel(at.0),
            pixel(at.1),
            anchor.name()
        ));
    }

    /// The whole file, of this size, on a background of this colour. `title` is what a screen
    /// reader says.
    pub fn finish(self, size: (f64, f64), background: &str, title: &str) -> String {
        let (width, height) = (pixel(size.0), pixel(size.1));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"{FONTS}\">\n\
             <title>{}</title>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"{}\"/>\n{}</svg>\n",
            escape(title),
            escape(background),
            self.elements
        )
    }

    fn element(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.elements, "{element}").expect("a String takes every write");
    }
}

/// A guess at the width of a text, in pixels; the reader's font is not known. Rather too wide.
pub fn text_width(text: &str, font: Font) -> f64 {
    let em = if font.bold { 0.69 } else { 0.62 };
    text.chars().count() as f64 * em * font.size
}

/// Splits a text into lines of at most `width` pixels, between words.
pub fn wrapped(text: &str, font: Font, width: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), font) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A length with at most one decimal: files stay small and differences readable.
fn pixel(length: f64) -> String {
    let text = format!("{length:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Text as XML writes it, inside elements and inside quotes (XML 1.0, 2.4).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0 has no way to write the other control characters.
            control if control.is_control() => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const FONT: Font = Font { size: 10.0, bold: false, colour: "#000" };

    #[test]
    fn text_cannot_leave_its_element() {
        let mut drawing = Drawing::new();
        drawing.text((1.0, 2.0), Anchor::Start, FONT, "a</text><b x=\"1\">&\u{0}\n");
        let file = drawing.finish((10.0, 10.0), "#fff", "<t>");
        assert!(file.contains(">a&lt;/text&gt;&lt;b x=&quot;1&quot;&gt;&amp;  </tspan>"), "{file}");
        assert!(file.contains("<title>&lt;t&gt;</title>"));
    }

    #[test]
    fn lengths_have_one_decimal_at_most() {
        assert_eq!(pixel(12.0), "12");
        assert_eq!(pixel(12.34), "12.3");
        assert_eq!(pixel(0.04), "0");
    }

    #[test]
    fn lines_break_between_words_and_a_long_word_stays_whole() {
        let width = text_width("aaaa bbbb", FONT);
        assert_eq!(wrapped("aaaa bbbb cccc", FONT, width), ["aaaa bbbb", "cccc"]);
        assert_eq!(
            wrapped("a bbbbbbbbbbbbbbbbbb c", FONT, width),
            ["a", "bbbbbbbbbbbbbbbbbb", "c"]
        );
        assert!(wrapped("", FONT, width).is_empty());
    }
}
