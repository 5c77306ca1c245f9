//! The table of `memctl ls`.

use super::text::{Line, Tone, size, time};
use super::view::{Machine, Partition};

/// What shared memory is called where partitions have their names; no partition can be called so.
pub(super) const SHARED: &str = "(shared)";

const HEADINGS: [&str; 7] = ["ID", "STATE", "SIZE", "PLUGGED", "USED", "PEAK", "LAST RELEASE"];
/// Columns of text, to the left; numbers go to the right.
const TEXTS: usize = 2;

type Row = [String; HEADINGS.len()];

/// The VM's shared memory and its partitions, a line each.
pub(super) fn table(machine: &Machine, partitions: &[Partition], colours: bool) -> String {
    let rows: Vec<Row> =
        std::iter::once(shared_row(machine)).chain(partitions.iter().map(row)).collect();
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.max().unwrap_or(0).max(HEADINGS[at].len())
    };
    let widths: [usize; HEADINGS.len()] = std::array::from_fn(width);
    let heading = line(&HEADINGS.map(Into::into), &widths, |_| Tone::Strong);
    let rest = rows.iter().map(|row| {
        let state = Tone::of_state(&row[1]);
        line(row, &widths, |at| if at == 1 { state } else { Tone::Plain })
    });
    let lines = std::iter::once(heading).chain(rest);
    lines.map(|line| line.render(usize::MAX, colours) + "\n").collect()
}

fn line(row: &Row, widths: &[usize], tone: impl Fn(usize) -> Tone) -> Line {
    let mut line = Line::default();
    for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
        let gap = " ".repeat(width - cell.chars().count());
        let (before, after) = if at < TEXTS { ("", &*gap) } else { (&*gap, "") };
        line.push(before, Tone::Plain);
        line.push(cell, tone(at));
        line.push(format!("{after}  "), Tone::Plain);
    }
    line
}

fn shared_row(machine: &Machine) -> Row {
    let shared = &machine.shared;
    let unknown = || "-".to_owned();
    [
        SHARED.into(),
        machine.state.clone(),
        shared.requested.to_string(),
        shared.plugged.to_string(),
        unknown(),
        unknown(),
        unknown(),
    ]
}

fn row(partition: &Partition) -> Row {
    [
        partition.id.clone(),
        partition.state.clone(),
        partition.size.to_string(),
        partition.plugged.to_string(),
        size(partition.used),
        size(partition.used_peak),
        time(partition.last_release_us),
    ]
}

#[cfg(test)]
mod tests {
    use memctl::Bytes;

    use super::*;
    use crate::cli::view::Shared;

    fn machine() -> Machine {
        let gib = Bytes::gib(1);
        let shared = Shared { requested: Bytes::gib(2), plugged: gib, peak: gib };
        Machine { state: "Running".into(), actual: gib, shared }
    }

    #[test]
    fn columns_line_up() {
        let partition = Partition {
            id: "a-long-name".into(),
            state: "bound".into(),
            size: Bytes::mib(512),
            plugged: Bytes::mib(512),
            used: Some(Bytes::kib(700)),
            used_peak: Some(Bytes::mib(300)),
            last_release_us: Some(1500),
            ..Partition::default()
        };
        let expected = "\
ID           STATE       SIZE  PLUGGED     USED     PEAK  LAST RELEASE
(shared)     Running    2 GiB    1 GiB        -        -             -
a-long-name  bound    512 MiB  512 MiB  700 KiB  300 MiB      1.500 ms
";
        assert_eq!(table(&machine(), &[partition], false), expected);
    }

    #[test]
    fn colours_change_no_column() {
        let partition =
            Partition { id: "a".into(), state: "draining".into(), ..Partition::default() };
        let partitions = [partition];
        let coloured = table(&machine(), &partitions, true);
        assert!(coloured.contains("\x1b[35mdraining\x1b[0m"), "{coloured}");
        let stripped = coloured.replace("\x1b[35m", "").replace("\x1b[1m", "");
        let stripped = stripped.replace("\x1b[0m", "");
        assert_eq!(stripped, table(&machine(), &partitions, false));
    }
}
