//! Figures: horizontal bars of medians with their spread, panel below panel.
//!
//! Every axis starts at zero, so the lengths of two bars compare as their values do. A value stands
//! beside its bar: nobody has to read it off the axis.

use crate::samples::Samples;
use crate::svg::{Anchor, Drawing, Font, text_width, wrapped};
use crate::unit::Unit;

/// Colours that stay apart for readers with any colour vision (Okabe and Ito, 2008).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// For the one the figure is about.
    Blue,
    /// For what it is compared with first.
    Orange,
    /// For what it is compared with as well.
    Green,
    /// For what is there for context.
    Grey,
}

impl Colour {
    fn css(self) -> &'static str {
        match self {
            Colour::Blue => "#0072b2",
            Colour::Orange => "#e69f00",
            Colour::Green => "#009e73",
            Colour::Grey => "#8c8c8c",
        }
    }
}

/// One bar.
#[derive(Debug)]
pub struct Row {
    /// What was measured, in a few words.
    pub label: String,
    /// The values.
    pub samples: Samples,
    /// The colour of the bar.
    pub colour: Colour,
    /// What stands behind the median, such as a ratio; may be empty.
    pub note: String,
}

/// A value that a row should stay below.
#[derive(Debug)]
pub struct Goal {
    /// The value, in the base unit.
    pub value: f64,
    /// What it is, in a few words.
    pub label: String,
}

/// Rows on one axis.
#[derive(Debug)]
pub struct Panel {
    /// What the values are.
    pub title: String,
    /// Their unit.
    pub unit: Unit,
    /// The bars, from top to bottom. There is at least one.
    pub rows: Vec<Row>,
    /// The goal, if there is one.
    pub goal: Option<Goal>,
}

/// A whole picture.
#[derive(Debug)]
pub struct Figure {
    /// What the reader should take away, or what is compared.
    pub title: String,
    /// How it was measured: what, how often, where.
    pub subtitle: String,
    /// The panels, from top to bottom.
    pub panels: Vec<Panel>,
    /// The command that made it.
    pub command: String,
}

const WIDTH: f64 = 920.0;
const MARGIN: f64 = 36.0;
const INK: &str = "#1f2328";
const PALE_INK: &str = "#59636e";
const GRID: &str = "#e3e6ea";
const BACKGROUND: &str = "#ffffff";
const GOAL: &str = "#b02a30";

const TITLE: Font = Font { size: 21.0, bold: true, colour: INK };
const SUBTITLE: Font = Font { size: 13.5, bold: false, colour: PALE_INK };
const HEADING: Font = Font { size: 15.0, bold: true, colour: INK };
const LABEL: Font = Font { size: 14.0, bold: false, colour: INK };
const VALUE: Font = Font { size: 14.0, bold: true, colour: INK };
const NOTE: Font = Font { size: 13.0, bold: false, colour: PALE_INK };
const TICK: Font = Font { size: 12.0, bold: false, colour: PALE_INK };
const GOAL_TEXT: Font = Font { size: 12.0, bold: false, colour: GOAL };
const FOOT: Font = Font { size: 12.0, bold: false, colour: PALE_INK };

const ROW: f64 = 36.0;
const BAR: f64 = 20.0;
const LEGEND: &str =
    "Bar: median. Thick line: middle half of the runs. Thin line: all runs. Shorter is better.";

impl Figure {
    /// The figure as an SVG file.
    pub fn to_svg(&self) -> String {
        let mut drawing = Drawing::new();
        let mut y = MARGIN + TITLE.size;
        drawing.text((MARGIN, y), Anchor::Start, TITLE, &self.title);
        y += 6.0;
        y = paragraph(&mut drawing, y, SUBTITLE, &self.subtitle);
        let columns = Columns::of(&self.panels);
        for panel in &self.panels {
            y = panel.draw(&mut drawing, y + 24.0, &columns);
        }
        y += 14.0;
        y = paragraph(&mut drawing, y, FOOT, LEGEND);
        y = paragraph(&mut drawing, y, FOOT, &format!("Made by: {}", self.command));
        drawing.finish((WIDTH, y + MARGIN * 0.7), BACKGROUND, &self.title)
    }
}

/// Writes lines below `y` and gives the base line of the last.
fn paragraph(drawing: &mut Drawing, mut y: f64, font: Font, text: &str) -> f64 {
    for line in wrapped(text, font, WIDTH - 2.0 * MARGIN) {
        y += font.size * 1.4;
        drawing.text((MARGIN, y), Anchor::Start, font, &line);
    }
    y
}

/// Where bars start and end: the same in all panels.
struct Columns {
    bars: f64,
    bars_end: f64,
}

impl Columns {
    fn of(panels: &[Panel]) -> Self {
        let rows = || panels.iter().flat_map(|panel| panel.rows.iter().map(move |r| (panel, r)));
        let widest = |widths: &mut dyn Iterator<Item = f64>| widths.fold(0.0, f64::max);
        let labels = widest(&mut rows().map(|(_, row)| text_width(&row.label, LABEL)));
        let values = widest(&mut rows().map(|(panel, row)| {
            text_width(&panel.value(row), VALUE) + text_width(&row.note, NOTE) + 8.0
        }));
        Self {
            bars: MARGIN + labels.min(WIDTH / 3.0) + 14.0,
            bars_end: WIDTH - MARGIN - values.min(WIDTH / 3.0) - 12.0,
        }
    }
}

/// Turns values of one panel into horizontal positions.
struct Axis {
    start: f64,
    width: f64,
    end_value: f64,
}

impl Axis {
    fn x(&self, value: f64) -> f64 {
        self.start + self.width * value / self.end_value
    }
}

impl Panel {
    /// The text beside a bar.
    fn value(&self, row: &Row) -> String {
        self.unit.format(row.samples.median())
    }

    /// The value at the right end of the axis: nothing drawn lies beyond it.
    fn end_value(&self) -> f64 {
        let goal = self.goal.as_ref().map_or(0.0, |goal| goal.value);
        let end = self.rows.iter().map(|row| row.samples.max()).fold(goal, f64::max);
        if end > 0.0 { end } else { 1.0 }
    }

    /// Draws below `y` and gives the lower end.
    fn draw(&self, drawing: &mut Drawing, y: f64, columns: &Columns) -> f64 {
        let axis = Axis {
            start: columns.bars,
            width: columns.bars_end - columns.bars,
            end_value: self.end_value(),
        };
        let y = y + HEADING.size;
        drawing.text((MARGIN, y), Anchor::Start, HEADING, &self.title);
        let top = y + if self.goal.is_some() { 30.0 } else { 14.0 };
        let bottom = top + ROW * self.rows.len() as f64;
        self.draw_axis(drawing, &axis, top, bottom);
        if let Some(goal) = &self.goal {
            let x = axis.x(goal.value);
            drawing.line((x, top - 4.0), (x, bottom), 1.5, 5.0, GOAL);
            let anchor = if x > WIDTH / 2.0 { Anchor::End } else { Anchor::Start };
            drawing.text((x, top - 9.0), anchor, GOAL_TEXT, &goal.label);
        }
        for (index, row) in self.rows.iter().enumerate() {
            self.draw_row(drawing, &axis, top + ROW * (index as f64 + 0.5), row);
        }
        bottom + 18.0
    }

    fn draw_axis(&self, drawing: &mut Drawing, axis: &Axis, top: f64, bottom: f64) {
        let ticks = self.unit.ticks(axis.end_value);
        let last = ticks.len() - 1;
        for (index, (value, text)) in ticks.into_iter().enumerate() {
            let x = axis.x(value);
            drawing.line((x, top), (x, bottom), 1.0, 0.0, GRID);
            let name = self.unit.axis_name(axis.end_value);
            let text = if index == last { format!("{text} {name}") } else { text };
            drawing.text((x, bottom + 16.0), Anchor::Middle, TICK, text.trim_end());
        }
    }

    fn draw_row(&self, drawing: &mut Drawing, axis: &Axis, middle: f64, row: &Row) {
        let samples = &row.samples;
        let base = middle + LABEL.size * 0.35;
        drawing.text((axis.start - 12.0, base), Anchor::End, LABEL, &row.label);
        let width = axis.x(samples.median()) - axis.start;
        let corner = (axis.start, middle - BAR / 2.0);
        drawing.rectangle(corner, (width, BAR), 2.0, row.colour.css());
        if samples.max() > samples.min() {
            let (low, high) = (axis.x(samples.min()), axis.x(samples.max()));
            drawing.line((low, middle), (high, middle), 1.2, 0.0, INK);
            for x in [low, high] {
                drawing.line((x, middle - 4.0), (x, middle + 4.0), 1.2, 0.0, INK);
            }
            let (low, high) = (axis.x(samples.p25()), axis.x(samples.p75()));
            drawing.line((low, middle), (high, middle), 5.0, 0.0, INK);
        }
        let value = self.value(row);
        let x = axis.x(samples.max().max(samples.median())) + 12.0;
        drawing.texts((x, base), Anchor::Start, &[(VALUE, &value), (NOTE, &row.note)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(label: &str, values: &[f64]) -> Row {
        Row {
            label: label.into(),
            samples: Samples::new(values.to_vec()).unwrap(),
            colour: Colour::Blue,
            note: "0.50x".into(),
        }
    }

    fn figure(rows: Vec<Row>, goal: Option<Goal>) -> Figure {
        let panel = Panel { title: "Time".into(), unit: Unit::Seconds, rows, goal };
        Figure {
            title: "A & B".into(),
            subtitle: "measured".into(),
            panels: vec![panel],
            command: "run <it>".into(),
        }
    }

    /// The numbers of one attribute of all elements of one kind.
    fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
        svg.lines()
            .filter(|line| line.starts_with(&format!("<{element} ")))
            .filter_map(|line| {
                let (_, rest) = line.split_once(&format!(" {attribute}=\""))?;
                rest.split('"').next()?.parse().ok()
            })
            .collect()
    }

    #[test]
    fn bars_are_as_long_as_their_medians() {
        let svg = figure(vec![row("a", &[1.0]), row("b", &[2.0, 4.0, 9.0])], None).to_svg();
        let widths = &numbers(&svg, "rect", "width")[..];
        assert!((widths[1] / widths[0] - 4.0).abs() < 0.01, "{widths:?}");
    }

    #[test]
    fn everything_lies_inside_the_picture_whatever_the_labels() {
        let goal = Some(Goal { value: 50.0, label: "goal".into() });
        let long = "a label that is far longer than a third of the whole figure can ever hold";
        let svg = figure(vec![row(long, &[1.0, 3.0]), row("b", &[20.0, 40.0])], goal).to_svg();
        let height = numbers(&svg, "svg", "height")[0];
        for attribute in ["x", "x1", "x2"] {
            for element in ["rect", "line", "text"] {
                let all = numbers(&svg, element, attribute);
                assert!(all.iter().all(|x| (0.0..=WIDTH).contains(x)), "{element} {all:?}");
            }
        }
        assert!(numbers(&svg, "text", "y").iter().all(|y| (0.0..=height).contains(y)));
    }

    #[test]
    fn medians_and_notes_are_written_and_escaped_text_stays_text() {
        let svg = figure(vec![row("x < y", &[1.0, 2.0, 3.0])], None).to_svg();
        for text in [">2.00 s<", ">0.50x<", ">x &lt; y<", ">A &amp; B<", "run &lt;it&gt;"] {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
    }

    #[test]
    fn rows_of_zeros_are_drawn_without_a_division_by_zero() {
        let svg = figure(vec![row("a", &[0.0, 0.0])], None).to_svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
