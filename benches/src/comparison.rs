//! What most programs make: figures of merit of several contenders, side by side, as a result file,
//! tables and a picture.

use anyhow::Result;
use serde::Serialize;

use crate::facts::Machine;
use crate::figure::{Colour, Figure, Goal, Panel, Row};
use crate::output::{Output, command_line};
use crate::samples::{self, Samples};
use crate::table::Table;
use crate::unit::Unit;

/// From so many samples on, tables have the 99th percentile.
const TAILED: usize = 100;

/// One run of a program.
#[derive(Debug, Serialize)]
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
    /// What stands below the tables, as Markdown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub footer: String,
}

/// One figure of merit; less is better.
#[derive(Debug, Serialize)]
pub struct Merit {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: Unit,
    /// What each contender reached, ours first. There is at least one.
    pub entries: Vec<Entry>,
    /// What the project promises: ours is at most so many times a named contender's median.
    pub goals: Vec<Promise>,
    /// What ours is to be at most, whatever others reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
}

/// What one contender reached.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// The contender.
    pub name: String,
    /// All values.
    pub samples: Samples,
}

/// A promise about one contender.
#[derive(Debug, Serialize)]
pub struct Promise {
    /// The contender that keeps it.
    pub of: String,
    /// The contender that it is held against.
    pub base: String,
    /// At most so many times what that one has.
    pub ratio: f64,
    /// How both are compared.
    pub judge: Judge,
}

/// How two contenders are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judge {
    /// By their medians.
    Medians,
    /// By the median of their ratios, round by round: both were measured next to each other in
    /// each, so that what slows the machine down slows both.
    Rounds,
    /// By their 99th percentiles.
    Tails,
}

/// What became of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is kept, whatever the spread.
    Met,
    /// It is not, whatever the spread.
    NotMet,
    /// What was measured spreads too much to say.
    WithinSpread,
}

/// How many times the other's what one contender has is, and between which values that lies 19
/// times in 20.
#[derive(Clone, Copy, Debug)]
struct Held {
    ratio: f64,
    low: f64,
    high: f64,
}

impl Judge {
    fn hold(self, ours: &Samples, base: &Samples) -> Option<Held> {
        let quantiles = |q| {
            let ratio = ours.quantile(q) / base.quantile(q);
            let ((low, high), (least, most)) = (ours.interval(q), base.interval(q));
            Some(Held { ratio, low: low / most, high: high / least })
        };
        match self {
            Self::Medians => quantiles(0.5),
            Self::Rounds => {
                let rounds = ours.values().iter().zip(base.values());
                let ratios = Samples::new(rounds.map(|(ours, base)| ours / base).collect()).ok()?;
                let (low, high) = ratios.interval(0.5);
                Some(Held { ratio: ratios.median(), low, high })
            }
            Self::Tails => quantiles(0.99),
        }
    }
}

impl Verdict {
    /// What becomes of a limit, given between which values lies what it is about.
    fn of((low, high): (f64, f64), limit: f64) -> Self {
        if high <= limit {
            Self::Met
        } else if low > limit {
            Self::NotMet
        } else {
            Self::WithinSpread
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "not met",
            Self::WithinSpread => "within the spread",
        }
    }
}

impl Merit {
    /// A figure of merit without a promise: what each contender reached, ours first. One that has no
    /// values was not measured, and is left out.
    ///
    /// # Errors
    /// A value is not finite.
    pub fn new<N: Into<String>>(
        name: &str,
        unit: Unit,
        measured: impl IntoIterator<Item = (N, Vec<f64>)>,
    ) -> Result<Self, samples::Error> {
        let measured = measured.into_iter().filter(|(_, values)| !values.is_empty());
        let entry = |(name, values): (N, _)| {
            Samples::new(values).map(|samples| Entry { name: name.into(), samples })
        };
        let entries = measured.map(entry).collect::<Result<_, _>>()?;
        Ok(Self { name: name.to_owned(), unit, entries, goals: Vec::new(), most: None })
    }

    /// The median of ours, the first entry, is to be at most `ratio` times that of `base`.
    #[must_use]
    pub fn promised(self, base: &str, ratio: f64) -> Self {
        let of = self.entries.first().map(|entry| entry.name.clone()).unwrap_or_default();
        self.judged(&of, base, ratio, Judge::Medians)
    }

    /// `of` is to be at most `ratio` times `base`, as `judge` compares them.
    #[must_use]
    pub fn judged(mut self, of: &str, base: &str, ratio: f64, judge: Judge) -> Self {
        let (of, base) = (of.to_owned(), base.to_owned());
        self.goals.push(Promise { of, base, ratio, judge });
        self
    }

    /// Ours is to be at most `value`, in the base unit.
    #[must_use]
    pub fn at_most(self, value: f64) -> Self {
        Self { most: Some(value), ..self }
    }

    /// How many times ours is what an entry is.
    fn ratio(&self, entry: &Entry) -> Option<f64> {
        let ours = self.entries.first()?.samples.median();
        (ours > 0.0).then(|| entry.samples.median() / ours)
    }

    /// What became of the promises whose contenders were measured.
    pub fn verdicts(&self) -> Vec<Verdict> {
        self.goals
            .iter()
            .filter_map(|goal| {
                let Held { low, high, .. } = self.held(goal)?;
                Some(Verdict::of((low, high), goal.ratio))
            })
            .collect()
    }

    fn samples(&self, name: &str) -> Option<&Samples> {
        self.entries.iter().find(|entry| entry.name == name).map(|entry| &entry.samples)
    }

    fn held(&self, promise: &Promise) -> Option<Held> {
        promise.judge.hold(self.samples(&promise.of)?, self.samples(&promise.base)?)
    }

    /// Where the bar of ours may end, if the promise is about its length.
    fn limit(&self, promise: &Promise) -> Option<f64> {
        let ours = self.entries.first()?;
        let about_bars = promise.judge != Judge::Tails && promise.of == ours.name;
        about_bars.then_some(self.samples(&promise.base)?.median() * promise.ratio)
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
        let most = self.most.map(|value| Goal { value, label: self.goal(value) });
        // Who keeps the hardest keeps all.
        let goal = goals.chain(most).min_by(|one, other| one.value.total_cmp(&other.value));
        let rows = self.entries.iter().enumerate().map(row).collect();
        Panel { title: self.name.clone(), unit: self.unit, rows, goal }
    }

    fn goal(&self, most: f64) -> String {
        format!("goal: {}", self.unit.format(most))
    }

    /// Whether ours is at most `most` in the median. All its values have to be where they are too
    /// few to say more.
    fn keeps(&self, most: f64) -> Option<Verdict> {
        let ours = &self.entries.first()?.samples;
        let (low, high) = ours.interval(0.5);
        Some(Verdict::of((low.max(ours.min()), high.min(ours.max())), most))
    }

    fn table(&self) -> Table {
        let tails = self.entries.iter().any(|entry| entry.samples.n() >= TAILED);
        let mut headings = vec!["", "median", "middle half", "all", "n", "times ours"];
        headings.extend(tails.then_some("99th percentile"));
        let mut table = Table::new(&headings);
        for (index, entry) in self.entries.iter().enumerate() {
            let value = |value| self.unit.format(value);
            let samples = &entry.samples;
            table.row([
                entry.name.clone(),
                value(samples.median()),
                format!("{} .. {}", value(samples.p25()), value(samples.p75())),
                format!("{} .. {}", value(samples.min()), value(samples.max())),
                samples.n().to_string(),
                self.note(index, entry),
                value(samples.quantile(0.99)),
            ]);
        }
        table
    }

    /// What became of a promise, in words.
    fn outcome(&self, promise: &Promise) -> Option<String> {
        let Promise { of, base, ratio, judge } = promise;
        let Held { ratio: found, low, high } = self.held(promise)?;
        let ours = self.entries.first().is_some_and(|entry| entry.name == *of);
        let who = if ours { "goal".to_owned() } else { format!("goal for {of}:") };
        let part = if *judge == Judge::Tails { " in the 99th percentile" } else { "" };
        let verdict = Verdict::of((low, high), *ratio).name();
        Some(format!(
            "; {who} {ratio} x {base}{part}: {found:.3} x ({low:.3} .. {high:.3}), {verdict}"
        ))
    }

    /// How many times ours another contender is.
    fn note(&self, index: usize, entry: &Entry) -> String {
        let ratio = self.ratio(entry).filter(|_| index > 0);
        ratio.map(times).unwrap_or_default()
    }
}

impl Comparison {
    /// What a program whose results usually go to files `name` has measured now, on this machine.
    pub fn new(output: &Output, name: &str, title: &str, how: String, merits: Vec<Merit>) -> Self {
        Self {
            name: output.stem(name),
            title: title.to_owned(),
            how,
            command: command_line(),
            machine: Machine::read(),
            merits,
            footer: String::new(),
        }
    }

    /// The tables as the terminal shows them.
    pub fn text(&self) -> String {
        let tables = self.tables(Table::to_text, "");
        format!("\n{}\n{} {}\n{tables}", self.title, self.how, self.machine.describe())
    }

    /// The section of `RESULTS.md`.
    pub fn markdown(&self) -> String {
        format!(
            "## {}\n\nMade by `{}`. {} {}\n\n![{}](results/{}.svg)\n{}{}",
            self.title,
            self.command,
            self.how,
            self.machine.describe(),
            self.title,
            self.name,
            self.tables(Table::to_markdown, "### "),
            self.footer,
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
            let most = merit.most.and_then(|most| {
                Some(format!("; {}, {}", merit.goal(most), merit.keeps(most)?.name()))
            });
            let outcomes = merit.goals.iter().filter_map(|goal| merit.outcome(goal));
            let outcomes: String = outcomes.chain(most).collect();
            text += &format!("\n{prefix}{}{outcomes}\n\n{}", merit.name, format(&merit.table()));
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

    fn merit<const N: usize>(measured: [(&str, &[f64]); N]) -> Merit {
        let measured = measured.map(|(name, values)| (name, values.to_vec()));
        Merit::new("1 GiB", Unit::Seconds, measured).unwrap()
    }

    fn comparison(ours: f64) -> Comparison {
        let ours = [ours, ours * 1.5, ours, ours, ours, ours, ours, ours];
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
            merits: vec![merit([("ours", &ours), ("theirs", &[2.0; 8])]).promised("theirs", 0.1)],
            footer: "\nThat is all.\n".into(),
        }
    }

    #[test]
    fn a_promise_is_judged_by_the_medians_and_where_they_may_lie() {
        assert_eq!(comparison(0.1).merits[0].verdicts(), [Verdict::Met]);
        assert_eq!(comparison(0.3).merits[0].verdicts(), [Verdict::NotMet]);
        assert_eq!(comparison(0.15).merits[0].verdicts(), [Verdict::WithinSpread]);
        let said = "1 GiB; goal 0.1 x theirs: 0.075 x (0.075 .. 0.11";
        assert!(comparison(0.15).markdown().contains(said));
        let few = merit([("ours", &[0.1; 5]), ("theirs", &[2.0; 5])]).promised("theirs", 0.1);
        assert_eq!(few.verdicts(), [Verdict::WithinSpread]);
    }

    #[test]
    fn the_hardest_goal_is_drawn_and_all_are_told() {
        let mut comparison = comparison(0.1);
        comparison.merits = vec![comparison.merits.remove(0).at_most(0.15)];
        let goal = comparison.merits[0].panel().goal.unwrap();
        assert_eq!((goal.value, goal.label.as_str()), (0.15, "goal: 150 ms"));
        let text = comparison.text();
        assert!(
            text.contains("goal 0.1 x theirs") && text.contains("; goal: 150 ms, within"),
            "{text}"
        );
    }

    #[test]
    fn a_limit_is_kept_by_the_median_or_by_all_where_they_are_few() {
        let keeps = |values: &[f64]| merit([("ours", values)]).keeps(1.0).unwrap();
        assert_eq!(keeps(&[0.0; 3]), Verdict::Met);
        assert_eq!(keeps(&[0.9, 1.0, 1.1]), Verdict::WithinSpread);
        assert_eq!(keeps(&[1.1; 12]), Verdict::NotMet);
        let mut late = [0.9; 12];
        late[0] = 9.0;
        assert_eq!(keeps(&late), Verdict::Met);
    }

    #[test]
    fn rounds_are_judged_pair_by_pair_and_only_beyond_their_spread() {
        // The machine is three times as slow in the second half.
        let base: Vec<f64> = (0..20).map(|round| if round < 10 { 1.0 } else { 3.0 }).collect();
        let judged = |ratios: &[f64]| {
            let pairs = base.iter().zip(ratios.iter().cycle());
            let ours: Vec<f64> = pairs.map(|(base, ratio)| base * ratio).collect();
            let merit = merit([("ours", &ours), ("theirs", &base)]);
            merit.judged("ours", "theirs", 1.02, Judge::Rounds)
        };
        assert_eq!(judged(&[1.0, 1.01]).verdicts(), [Verdict::Met]);
        assert_eq!(judged(&[1.03, 1.05]).verdicts(), [Verdict::NotMet]);
        let noisy = judged(&[0.9, 1.1]);
        assert_eq!(noisy.verdicts(), [Verdict::WithinSpread]);
        let text = noisy.outcome(&noisy.goals[0]).unwrap();
        assert_eq!(text, "; goal 1.02 x theirs: 1.000 x (0.900 .. 1.100), within the spread");
    }

    #[test]
    fn few_requests_do_not_tell_of_a_tail() {
        let judged = |n: usize| {
            let values = vec![1.0; n];
            let merit = merit([("ours", &values), ("theirs", &values)]);
            merit.judged("ours", "theirs", 1.05, Judge::Tails)
        };
        assert_eq!(judged(99).verdicts(), [Verdict::WithinSpread]);
        assert_eq!(judged(400).verdicts(), [Verdict::Met]);
        assert!(judged(400).table().to_text().contains("99th percentile"));
        assert!(judged(400).panel().goal.is_none());
    }

    #[test]
    fn who_was_not_measured_is_left_out() {
        let merit = merit([("ours", &[1.0]), ("theirs", &[])]).promised("theirs", 0.1);
        assert_eq!(merit.entries.len(), 1);
        assert!(merit.verdicts().is_empty());
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
        assert!(comparison.markdown().ends_with("|\n\nThat is all.\n"));
    }
}
