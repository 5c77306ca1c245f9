//! The table of `memctl ls`.

use super::text::{Line, Tone, size, time};
use super::view::{Look, Partition};

const HEADINGS: [&str; 7] = ["ID", "STATE", "SIZE", "PLUGGED", "USED", "PEAK", "LAST RELEASE"];
/// Columns of text, to the left; numbers go to the right.
const TEXTS: usize = 2;

type Row = [String; HEADINGS.len()];

/// The VM's shared memory and its partitions, a line each.
pub(super) fn table(look: &Look, colours: bool) -> String {
    let rows: Vec<Row> = look.rows().map(row).collect();
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
    use serde_json::{Value, json};

    use super::*;

    fn shown(list: Value, colours: bool) -> String {
        let info = json!({
            "state": "Running", "config": {"memory": {"size": 1 << 30}},
            "device_tree": {"__mem": {"memory": {"shared": {"requested": 1 << 30}}}},
        });
        table(&Look::new(info, list).unwrap(), colours)
    }

    #[test]
    fn columns_line_up() {
        let list = json!([
            {"id": "a-long-name", "state": "bound", "size": 512 << 20, "plugged": 512 << 20,
             "used": 700 << 10, "used_peak": 300 << 20, "last_release_us": 1500},
        ]);
        let expected = "\
ID           STATE       SIZE  PLUGGED     USED     PEAK  LAST RELEASE
(shared)     Running    2 GiB    1 GiB        -        -             -
a-long-name  bound    512 MiB  512 MiB  700 KiB  300 MiB      1.500 ms
";
        assert_eq!(shown(list, false), expected);
    }

    #[test]
    fn colours_change_no_column() {
        let list = json!([{"id": "a", "state": "draining"}]);
        let coloured = shown(list.clone(), true);
        assert!(coloured.contains("\x1b[35mdraining\x1b[0m"), "{coloured}");
        let stripped = coloured.replace("\x1b[35m", "").replace("\x1b[1m", "");
        let stripped = stripped.replace("\x1b[0m", "");
        assert_eq!(stripped, shown(list, false));
    }
}
