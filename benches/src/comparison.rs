//! What most programs make: figures of merit of several contenders, side by side, as a result file,
//! tables and a picture.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::facts::Machine;
use crate::figure::{Colour, Figure, Goal, Panel, Row};
use crate::output::Output;
use crate::samples::Samples;
use crate::table::Table;
use crate::unit::Unit;

/// One run of a program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The program: the stem of its files.
    pub name: String,
    /// What a reader should take away, or what is compared.
    pub title: String,
    /// How it was measured.
    pub how: String,
    /// The command that makes it again.
    pub command: String,
    /// Where it was measured.
    pub machine: Machine,
    /// The figures of merit, in the order they are shown.
    pub merits: Vec<Merit>,
}

/// One figure of merit; less is better.
#[derive(Debug, Serialize, Deserialize)]
pub struct Merit {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: Unit,
    /// What each contender reached, ours first. There is at least one.
    pub entries: Vec<Entry>,
    /// What the project promises: ours is at most so many times a named contender's median.
    pub goals: Vec<Promise>,
}

/// What one contender reached.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The contender.
    pub name: String,
    /// All values.
    pub samples: Samples,
}

/// A promise about ours, the first entry.
#[derive(Debug, Serialize, Deserialize)]
pub struct Promise {
    /// The contender it is about.
    pub base: String,
    /// At most so many times its median.
    pub ratio: f64,
}

impl Merit {
    /// A figure of merit without a promise.
    pub fn new(name: &str, unit: Unit, entries: Vec<Entry>) -> Self {
        Self { name: name.to_owned(), unit, entries, goals: Vec::new() }
    }

    /// Ours is to be at most `ratio` times the median of `base`.
    #[must_use]
    pub fn promised(mut self, base: &str, ratio: f64) -> Self {
        self.goals.push(Promise { base: base.to_owned(), ratio });
        self
    }

    /// How many times ours is what an entry is.
    fn ratio(&self, entry: &Entry) -> Option<f64> {
        let ours = self.entries.first()?.samples.median();
        (ours > 0.0).then(|| entry.samples.median() / ours)
    }

    /// Whether all promises are kept; `None` without one.
    pub fn kept(&self) -> Option<bool> {
        let kept: Vec<bool> = self.goals.iter().filter_map(|goal| self.keeps(goal)).collect();
        (!kept.is_empty()).then(|| kept.into_iter().all(|kept| kept))
    }

    fn keeps(&self, promise: &Promise) -> Option<bool> {
        Some(self.entries.first()?.samples.median() <= self.limit(promise)?)
    }

    /// The most that ours may be, where the contender was measured.
    fn limit(&self, promise: &Promise) -> Option<f64> {
        let base = self.entries.iter().find(|entry| entry.name == promise.base)?;
        Some(base.samples.median() * promise.ratio)
    }

    fn panel(&self) -> Panel {
        let row = |(index, entry): (usize, &Entry)| Row {
            label: entry.name.clone(),
            samples: entry.samples.clone(),
            colour: colour(index),
            note: self.note(index, entry),
        };
        let goals = self.goals.iter().filter_map(|promise| {
            let label = format!("goal: {} x {}", promise.ratio, promise.base);
            Some(Goal { value: self.limit(promise)?, label })
        });
        // Who keeps the hardest keeps all.
        let goal = goals.min_by(|one, other| one.value.total_cmp(&other.value));
        let rows = self.entries.iter().enumerate().map(row).collect();
        Panel { title: self.name.clone(), unit: self.unit, rows, goal }
    }

    /// Whether a promise is kept, in words.
    fn verdict(&self, promise: &Promise) -> Option<String> {
        let met = if self.keeps(promise)? { "met" } else { "not met" };
        Some(format!("; goal {} x {}: {met}", promise.ratio, promise.base))
    }

    /// How many times ours another contender is.
    fn note(&self, index: usize, entry: &Entry) -> String {
        let ratio = self.ratio(entry).filter(|_| index > 0);
        ratio.map(times).unwrap_or_default()
    }
}

impl Comparison {
    /// The tables as the terminal shows them.
    pub fn text(&self) -> String {
        let tables = self.tables(Table::to_text, "");
        format!("\n{}\n{} {}\n{tables}", self.title, self.how, self.machine.describe())
    }

    /// The section of `RESULTS.md`.
    pub fn markdown(&self) -> String {
        format!(
            "## {}\n\nMade by `{}`. {} {}\n\n![{}](results/{}.svg)\n{}",
            self.title,
            self.command,
            self.how,
            self.machine.describe(),
            self.title,
            self.name,
            self.tables(Table::to_markdown, "### "),
        )
    }

    /// The picture.
    pub fn figure(&self) -> Figure {
        Figure {
            title: self.title.clone(),
            subtitle: format!("{} {}", self.how, self.machine.describe()),
            panels: self.merits.iter().map(Merit::panel).collect(),
            command: self.command.clone(),
        }
    }

    fn tables(&self, format: fn(&Table) -> String, prefix: &str) -> String {
        let mut text = String::new();
        for merit in &self.merits {
            let mut table = Table::new(&["", "median", "middle half", "all", "n", "times ours"]);
            for (index, entry) in merit.entries.iter().enumerate() {
                let value = |value| merit.unit.format(value);
                let samples = &entry.samples;
                table.row([
                    entry.name.clone(),
                    value(samples.median()),
                    format!("{} .. {}", value(samples.p25()), value(samples.p75())),
                    format!("{} .. {}", value(samples.min()), value(samples.max())),
                    samples.n().to_string(),
                    merit.note(index, entry),
                ]);
            }
            let verdicts: String =
                merit.goals.iter().filter_map(|goal| merit.verdict(goal)).collect();
            text += &format!("\n{prefix}{}{verdicts}\n\n{}", merit.name, format(&table));
        }
        text
    }

    /// Writes result file, section and picture, and the tables to standard output.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn publish(&self, output: &Output) -> Result<()> {
        print!("{}", self.text());
        let json = serde_json::to_string_pretty(self)? + "\n";
        output.write(&format!("{}.json", self.name), &json)?;
        output.write(&format!("{}.md", self.name), &self.markdown())?;
        output.write(&format!("{}.svg", self.name), &self.figure().to_svg())
    }
}

fn colour(index: usize) -> Colour {
    [Colour::Blue, Colour::Orange, Colour::Green, Colour::Grey][index.min(3)]
}

fn times(ratio: f64) -> String {
    if ratio < 9.95 { format!("{ratio:.2}x") } else { format!("{ratio:.0}x") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, values: &[f64]) -> Entry {
        Entry { name: name.into(), samples: Samples::new(values.to_vec()).unwrap() }
    }

    fn comparison(ours: f64) -> Comparison {
        let entries = vec![entry("ours", &[ours, ours * 1.5, ours]), entry("theirs", &[2.0; 3])];
        Comparison {
            name: "shrink".into(),
            title: "Shrinking".into(),
            how: "Medians of 3 runs.".into(),
            command: "cargo xtask bench shrink".into(),
            machine: Machine {
                cpu: "TCG".into(),
                cpus: 1,
                memory_bytes: 1,
                kernel: "6".into(),
                lab: true,
            },
            merits: vec![Merit::new("1 GiB", Unit::Seconds, entries).promised("theirs", 0.1)],
        }
    }

    #[test]
    fn a_promise_is_judged_by_the_medians() {
        assert_eq!(comparison(0.1).merits[0].kept(), Some(true));
        assert_eq!(comparison(0.3).merits[0].kept(), Some(false));
        assert!(comparison(0.3).markdown().contains("1 GiB; goal 0.1 x theirs: not met"));
    }

    #[test]
    fn others_are_shown_as_multiples_of_ours() {
        let text = comparison(0.1).text();
        assert!(text.contains("20x") && text.contains("lab"), "{text}");
        assert_eq!(comparison(0.5).merits[0].panel().rows[1].note, "4.00x");
        assert_eq!(comparison(0.0).merits[0].panel().rows[1].note, "");
    }

    #[test]
    fn files_say_how_they_were_made() {
        let comparison = comparison(0.1);
        let json = serde_json::to_string(&comparison).unwrap();
        for text in [json, comparison.markdown(), comparison.figure().to_svg()] {
            assert!(text.contains("cargo xtask bench shrink"), "{text}");
        }
    }
}
