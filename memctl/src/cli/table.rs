//! The table of `memctl ls`.

use std::ops::Range;

use super::text::{Line, Tone, displaced, size, time};
use super::view::{Look, Partition};

/// The last column has a text only where something is wrong.
const HEADINGS: [&str; 9] =
    ["ID", "STATE", "SIZE", "PLUGGED", "USED", "PEAK", "RELEASE", "GUEST", ""];
const STATE: usize = 1;
const DISPLACED: usize = 8;
/// Columns to the right of their place, as numbers are; text goes to the left.
const NUMBERS: Range<usize> = 2..DISPLACED;

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
        line(row, &widths, |at| match at {
            STATE => Tone::of_state(&row[STATE]),
            DISPLACED => Tone::Bad,
            _ => Tone::Plain,
        })
    });
    let lines = std::iter::once(heading).chain(rest);
    lines.map(|line| line.render(usize::MAX, colours) + "\n").collect()
}

fn line(row: &Row, widths: &[usize], tone: impl Fn(usize) -> Tone) -> Line {
    let mut line = Line::default();
    for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
        let gap = " ".repeat(width - cell.chars().count());
        let (before, after) = if NUMBERS.contains(&at) { (&*gap, "") } else { ("", &*gap) };
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
        partition.guest.clone().unwrap_or_else(|| "-".into()),
        displaced(partition.spilled, partition.stuck),
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
    fn columns_line_up_and_fit_100() {
        let list = json!([
            {"id": "fn-7", "state": "bound", "size": 512 << 20, "plugged": 512 << 20,
             "used": 700 << 10, "used_peak": 300 << 20, "last_release_us": 1500, "number": 3},
            {"id": "fn-8", "state": "requested", "size": 512 << 20, "plugged": 384 << 20,
             "used": 393_212 << 10, "used_peak": 393_212 << 10, "last_release_us": 12_345,
             "node": 1, "spilled": 128 << 20},
            {"id": "fn-9", "state": "draining", "plugged": 4096, "number": null, "stuck": 4096},
        ]);
        let expected = "\
ID        STATE         SIZE  PLUGGED        USED        PEAK    RELEASE   GUEST
(shared)  Running      2 GiB    1 GiB           -           -          -       -
fn-7      bound      512 MiB  512 MiB     700 KiB     300 MiB   1.500 ms       3
fn-8      requested  512 MiB  384 MiB  393212 KiB  393212 KiB  12.345 ms  node 1  128 MiB spilled
fn-9      draining   0 bytes    4 KiB           -           -          -       -  4 KiB stuck
";
        let shown = shown(list, false);
        assert_eq!(shown, expected);
        assert!(shown.lines().all(|line| line.len() <= 100));
    }

    #[test]
    fn colours_change_no_column() {
        let list = json!([{"id": "a", "state": "draining", "stuck": 4096}]);
        let coloured = shown(list.clone(), true);
        assert!(coloured.contains("\x1b[35mdraining\x1b[0m"), "{coloured}");
        assert!(coloured.ends_with("\x1b[31m4 KiB stuck\x1b[0m\n"), "{coloured}");
        let codes = ["\x1b[35m", "\x1b[31m", "\x1b[1m", "\x1b[0m"];
        let stripped = codes.iter().fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(stripped, shown(list, false));
    }
}
