//! Tables and figures of an outcome.

use anyhow::{Context, Result};
use benches::figure::{Colour, Figure, Goal, Panel, Row};
use benches::samples::Samples;
use benches::table::Table;
use benches::unit::Unit;

use crate::outcome::{Case, Measured, Outcome};

/// The index of what ratios are to: `Contender::ALL` begins with ours and with this.
const BASE: usize = 1;

/// What the project promises of itself.
const BOOT_GOAL: f64 = 0.75;
const MEMORY_GOAL_BYTES: f64 = 5.0 * 1_048_576.0;
const FILE_GOAL_BYTES: f64 = 4.0 * 1_048_576.0;

/// A figure of merit that all contenders have.
struct Metric {
    name: &'static str,
    unit: Unit,
    samples: fn(&Measured) -> &Samples,
}

const TO_INIT: Metric =
    Metric { name: "exec to init", unit: Unit::Seconds, samples: |m| &m.boot.to_init_s };
const TO_EXIT: Metric = Metric {
    name: "exec to init to clean power off",
    unit: Unit::Seconds,
    samples: |m| &m.boot.to_exit_s,
};
const CPU_TO_INIT: Metric =
    Metric { name: "CPU time to init", unit: Unit::Seconds, samples: |m| &m.boot.cpu_to_init_s };
const CPU_TO_EXIT: Metric =
    Metric { name: "CPU time to exit", unit: Unit::Seconds, samples: |m| &m.boot.cpu_to_exit_s };
const OWN_MEMORY: Metric = Metric {
    name: "monitor's own memory (RSS less guest pages)",
    unit: Unit::Bytes,
    samples: |m| &m.idle.own_memory_bytes,
};
const OWN_PRIVATE: Metric =
    Metric { name: "of it private", unit: Unit::Bytes, samples: |m| &m.idle.own_private_bytes };
const GUEST_MEMORY: Metric = Metric {
    name: "resident guest pages",
    unit: Unit::Bytes,
    samples: |m| &m.idle.guest_resident_bytes,
};

const METRICS: [&Metric; 7] =
    [&TO_INIT, &TO_EXIT, &CPU_TO_INIT, &CPU_TO_EXIT, &OWN_MEMORY, &OWN_PRIVATE, &GUEST_MEMORY];

/// KVM's counters that the tables show, where the host has them.
const KVM_COUNTERS: [(&str, &str); 6] = [
    ("exits", "exits, all kinds"),
    ("io_exits", "exits for port access"),
    ("mmio_exits", "exits for memory-mapped access"),
    ("halt_exits", "exits for a halt"),
    ("pf_taken", "page faults on guest memory"),
    ("irq_injections", "interrupts injected"),
];

impl Metric {
    /// How many times the base's median one's own is.
    fn ratio(&self, case: &Case, measured: &Measured) -> Option<f64> {
        let base = (self.samples)(case.contenders.get(BASE)?).median();
        (base > 0.0).then(|| (self.samples)(measured).median() / base)
    }
}

/// The tables as the terminal shows them.
pub(crate) fn text(outcome: &Outcome) -> String {
    let mut text = format!("\n{}\n", conditions(outcome));
    for case in &outcome.cases {
        text += &format!("\n{}\n{}", heading(outcome, case), table(case).to_text());
    }
    text + "\n" + &own_table(outcome).to_text() + "\n"
}

/// The tables as Markdown, with the figures and the command lines.
pub(crate) fn markdown(outcome: &Outcome) -> String {
    let mut text = format!(
        "## Boot\n\nMade by `{}`. {}\n\n![exec to init and to power off](results/{name}.svg)\n\n\
         ![what the monitor costs](results/{name}-cost.svg)\n",
        outcome.command,
        conditions(outcome),
        name = outcome.benchmark,
    );
    for case in &outcome.cases {
        text += &format!("\n### {}\n\n{}", heading(outcome, case), table(case).to_markdown());
    }
    text += &format!("\n### Tessera alone\n\n{}", own_table(outcome).to_markdown());
    text += "\nCommand lines:\n\n```sh\n";
    for measured in outcome.cases.first().into_iter().flat_map(|case| &case.contenders) {
        text += &format!("# {}, {}\n{}\n", measured.name, measured.version, measured.command);
    }
    text + "```\n"
}

/// The figures, by file name.
pub(crate) fn figures(outcome: &Outcome) -> Result<Vec<(String, String)>> {
    let case = outcome.cases.first().context("nothing was measured")?;
    let time = Figure {
        title: "Boot and power off: Tessera against QEMU".to_owned(),
        subtitle: conditions(outcome),
        panels: outcome
            .cases
            .iter()
            .flat_map(|case| [time_panel(case, &TO_INIT, false), time_panel(case, &TO_EXIT, true)])
            .collect(),
        command: outcome.command.clone(),
    };
    let cost = Figure {
        title: "What the monitor costs beside its guest".to_owned(),
        subtitle: format!("{}. {}", heading(outcome, case), conditions(outcome)),
        panels: cost_panels(case)?,
        command: outcome.command.clone(),
    };
    let name = |kind: &str| format!("{}{kind}.svg", outcome.benchmark);
    Ok(vec![(name(""), time.to_svg()), (name("-cost"), cost.to_svg())])
}

/// How it was measured, in one paragraph.
fn conditions(outcome: &Outcome) -> String {
    let first = outcome.cases.first().and_then(|case| case.contenders.first());
    let runs = first.map_or(0, |measured| measured.boot.to_exit_s.n());
    format!(
        "Medians of {runs} runs each, in turn; same kernel (Linux {}), same initial file system, \
         same kernel command line. {}",
        outcome.guest_kernel,
        outcome.machine.describe()
    )
}

fn heading(outcome: &Outcome, case: &Case) -> String {
    format!("{} vCPU, {} MiB", case.vcpus, outcome.guest_memory_bytes >> 20)
}

fn table(case: &Case) -> Table {
    let mut headings = vec!["median (middle half of the runs)".to_owned()];
    headings.extend(case.contenders.iter().map(|measured| measured.name.clone()));
    headings.extend(case.contenders.get(BASE).map(|base| format!("Tessera / {}", base.name)));
    let mut table = Table::new(&headings.iter().map(String::as_str).collect::<Vec<_>>());
    for metric in METRICS {
        let mut cells = vec![metric.name.to_owned()];
        cells.extend(case.contenders.iter().map(|m| spread(metric.unit, (metric.samples)(m))));
        cells.extend(case.contenders.first().and_then(|m| metric.ratio(case, m)).map(times));
        table.row(cells);
    }
    for (counter, name) in KVM_COUNTERS {
        let values: Vec<u64> =
            case.contenders.iter().map(|m| m.idle.kvm.get(counter).copied().unwrap_or(0)).collect();
        if values.iter().all(|value| *value == 0) {
            continue;
        }
        let mut cells = vec![format!("{name}, to a prompt")];
        cells.extend(values.iter().map(|value| Unit::Count.format(*value as f64)));
        let base = values.get(BASE).filter(|base| **base > 0);
        cells.extend(base.map(|base| times(values[0] as f64 / *base as f64)));
        table.row(cells);
    }
    table
}

/// What has no counterpart in QEMU.
fn own_table(outcome: &Outcome) -> Table {
    let mut table = Table::new(&["Tessera", "measured", "goal"]);
    let file = Unit::Bytes.format(outcome.tessera_file_bytes as f64);
    table.row(["binary".into(), file, Unit::Bytes.format(FILE_GOAL_BYTES)]);
    table
}

fn spread(unit: Unit, samples: &Samples) -> String {
    let median = unit.format(samples.median());
    if samples.min() == samples.max() {
        return median;
    }
    format!("{median} ({} .. {})", unit.format(samples.p25()), unit.format(samples.p75()))
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2}x")
}

fn colour(index: usize) -> Colour {
    [Colour::Blue, Colour::Orange, Colour::Grey][index.min(2)]
}

fn panel(case: &Case, metric: &Metric, title: String, goal: Option<Goal>) -> Panel {
    let rows = case.contenders.iter().enumerate().map(|(index, measured)| {
        let ratio = metric.ratio(case, measured).filter(|_| index != BASE);
        Row {
            label: measured.name.clone(),
            samples: (metric.samples)(measured).clone(),
            colour: colour(index),
            note: ratio.map(times).unwrap_or_default(),
        }
    });
    Panel { title, unit: metric.unit, rows: rows.collect(), goal }
}

fn time_panel(case: &Case, metric: &Metric, has_goal: bool) -> Panel {
    let base = case.contenders.get(BASE).filter(|_| has_goal);
    let goal = base.map(|base| Goal {
        value: (metric.samples)(base).median() * BOOT_GOAL,
        label: format!("goal: {BOOT_GOAL} x {}", base.name),
    });
    let mut name = metric.name.to_owned();
    name[..1].make_ascii_uppercase();
    let plural = if case.vcpus == 1 { "" } else { "s" };
    panel(case, metric, format!("{name}, {} vCPU{plural}", case.vcpus), goal)
}

fn cost_panels(case: &Case) -> Result<Vec<Panel>> {
    let goal = Goal { value: MEMORY_GOAL_BYTES, label: "goal: 5 MiB".to_owned() };
    let mut panels = vec![
        panel(
            case,
            &OWN_MEMORY,
            "Monitor's own memory, idle guest (RSS less guest pages)".to_owned(),
            Some(goal),
        ),
        panel(case, &CPU_TO_INIT, "CPU time from exec to init, guest included".to_owned(), None),
    ];
    let exits = |measured: &Measured| measured.idle.kvm.get("exits").copied().unwrap_or(0);
    if case.contenders.iter().all(|measured| exits(measured) > 0) {
        panels.push(Panel {
            title: "Exits from the guest until its shell prompt (KVM's count)".to_owned(),
            unit: Unit::Count,
            rows: exit_rows(case, exits)?,
            goal: None,
        });
    }
    Ok(panels)
}

fn exit_rows(case: &Case, exits: impl Fn(&Measured) -> u64) -> Result<Vec<Row>> {
    let base = case.contenders.get(BASE).map_or(0, &exits);
    let rows = case.contenders.iter().enumerate().map(|(index, measured)| {
        let count = exits(measured);
        let note = if index == BASE || base == 0 {
            String::new()
        } else {
            times(count as f64 / base as f64)
        };
        let samples = Samples::new(vec![count as f64])?;
        Ok(Row { label: measured.name.clone(), samples, colour: colour(index), note })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use benches::facts::Machine;

    use super::*;
    use crate::outcome::{Boot, Idle};

    fn samples(middle: f64) -> Samples {
        Samples::new(vec![middle * 0.9, middle, middle * 1.2]).unwrap()
    }

    fn measured(name: &str, scale: f64) -> Measured {
        let seconds = || samples(scale);
        let bytes = || samples(scale * 10_000_000.0);
        Measured {
            name: name.into(),
            version: "1".into(),
            command: format!("{name} --kernel vmlinux"),
            boot: Boot {
                to_init_s: seconds(),
                to_exit_s: seconds(),
                cpu_to_init_s: seconds(),
                cpu_to_exit_s: seconds(),
            },
            idle: Idle {
                own_memory_bytes: bytes(),
                own_private_bytes: bytes(),
                guest_resident_bytes: bytes(),
                threads: samples(4.0),
                kvm: [("exits".to_owned(), (scale * 30_000.0) as u64)].into(),
                counters: serde_json::Value::Null,
            },
        }
    }

    fn outcome() -> Outcome {
        let contenders = vec![
            measured("Tessera", 1.5),
            measured("QEMU microvm", 3.0),
            measured("QEMU q35", 6.0),
        ];
        Outcome {
            benchmark: "boot".into(),
            command: "cargo xtask bench boot".into(),
            machine: Machine {
                cpu: "TCG".into(),
                cpus: 1,
                memory_bytes: 1,
                kernel: "6".into(),
                lab: true,
            },
            guest_kernel: "6.12.1".into(),
            guest_memory_bytes: 128 << 20,
            tessera_file_bytes: 3 << 20,
            cases: vec![Case { vcpus: 1, contenders }],
        }
    }

    #[test]
    fn ratios_are_to_microvm() {
        let text = text(&outcome());
        let line = text.lines().find(|line| line.starts_with(TO_EXIT.name)).unwrap();
        assert!(line.ends_with("0.50x"), "{line}");
        let line = text.lines().find(|line| line.starts_with("exits, all kinds")).unwrap();
        assert!(line.contains("45,000") && line.ends_with("0.50x"), "{line}");
    }

    #[test]
    fn the_goal_is_drawn_at_three_quarters_of_microvm() {
        let outcome = outcome();
        let panel = time_panel(&outcome.cases[0], &TO_EXIT, true);
        assert_eq!(panel.goal.unwrap().value, 2.25);
        assert_eq!(panel.rows[0].note, "0.50x");
        assert_eq!(panel.rows[1].note, "");
    }

    #[test]
    fn reports_say_where_and_how_it_was_measured() {
        let outcome = outcome();
        let markdown = markdown(&outcome);
        let figures = figures(&outcome).unwrap();
        assert_eq!(figures.len(), 2);
        for text in figures.iter().map(|(_, svg)| svg).chain([&markdown]) {
            assert!(text.contains("cargo xtask bench boot"));
            assert!(text.contains("lab") && text.contains("Linux 6.12.1"));
        }
        assert!(markdown.contains("QEMU q35 --kernel vmlinux"));
    }

    #[test]
    fn a_run_of_tessera_alone_has_a_table_too() {
        let mut outcome = outcome();
        outcome.cases[0].contenders.truncate(1);
        assert!(text(&outcome).contains("exec to init"));
        assert!(figures(&outcome).is_ok());
    }

    #[test]
    fn a_result_file_reads_back_as_it_was_written() {
        let outcome = outcome();
        let text = serde_json::to_string(&outcome).unwrap();
        let read: Outcome = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }
}
