//! The picture of `memctl top`: what is known, drawn for one size of terminal. Pure.

use memctl::Bytes;

use super::bars::{Glyphs, Levels, bar};
use super::text::{Line, Tone, displaced, size};
use super::view::{Look, Partition, SHARED};

/// The longest name that is shown whole: with it the sizes still fit 80 columns.
const MAX_NAME: usize = 20;
/// Columns of the state, and of a size such as `1048576 KiB`.
const STATE: usize = 9;
const SIZE: usize = 11;
/// The shortest bar worth drawing.
const MIN_BAR: usize = 8;
/// The heading of what the guest calls a partition.
const GUEST: &str = "GUEST";
/// Lines that are no memory: title, headings, foot.
const FRAME: usize = 3;
/// Behind the state of a partition with memory that is not where it should be, and in the title.
const MARK: &str = "*";

/// What is drawn.
#[derive(Debug)]
pub(super) struct Top {
    /// The last look at the VM.
    pub(super) look: Look,
    /// Why there is no newer one.
    pub(super) trouble: Option<String>,
    /// The first partition in view, as far as there are so many.
    pub(super) first: usize,
    /// Whether the terminal shows colours.
    pub(super) colours: bool,
    /// What bars are made of.
    pub(super) glyphs: Glyphs,
}

/// The picture: at most `height` lines of at most `width` characters, without line ends.
pub(super) fn render(top: &Top, width: usize, height: usize) -> Vec<String> {
    let columns = Columns::new(&top.look, width);
    let (room, first) = (room(top, height), first_in_view(top, height));
    let scale = scale(&top.look.partitions);
    let shared = top.look.machine.shared.iter().map(|row| (row, levels(row).extent()));
    let partitions = top.look.partitions.iter().skip(first).take(room).map(|row| (row, scale));
    let mut lines = vec![title(top), columns.headings()];
    lines.extend(shared.chain(partitions).map(|(row, scale)| columns.row(row, top.glyphs, scale)));
    // The foot stays at the bottom, whatever is above it.
    lines.resize(height.saturating_sub(1), Line::default());
    lines.push(foot(top, first, room));
    lines.truncate(height);
    lines.iter().map(|line| line.render(width, top.colours)).collect()
}

/// How many partitions there is room for.
fn room(top: &Top, height: usize) -> usize {
    height.saturating_sub(FRAME + top.look.machine.shared.len())
}

/// The first partition in view, so that a full view stays full.
pub(super) fn first_in_view(top: &Top, height: usize) -> usize {
    top.first.min(top.look.partitions.len().saturating_sub(room(top, height)))
}

/// The largest partition fills its bar, so that partitions can be compared.
fn scale(partitions: &[Partition]) -> Bytes {
    partitions.iter().map(|partition| levels(partition).extent()).max().unwrap_or_default()
}

fn levels(partition: &Partition) -> Levels {
    Levels {
        used: partition.used.unwrap_or_default(),
        plugged: partition.plugged,
        requested: partition.size,
    }
}

fn sum(partitions: &[Partition], part: fn(&Partition) -> Bytes) -> Bytes {
    let parts = partitions.iter().map(|partition| part(partition).as_u64());
    Bytes::new(parts.fold(0, u64::saturating_add))
}

fn title(top: &Top) -> Line {
    let (machine, partitions) = (&top.look.machine, &top.look.partitions);
    let plugged = sum(partitions, |partition| partition.plugged);
    let size = sum(partitions, |partition| partition.size);
    let count = match partitions.len() {
        0 => "no partitions".into(),
        1 => format!("1 partition: {plugged} of {size} plugged"),
        count => format!("{count} partitions: {plugged} of {size} plugged"),
    };
    let line = Line::of("memctl top  ", Tone::Strong)
        .then(format!("{}  {} of RAM  ", machine.state, machine.actual), Tone::Plain);
    let displaced = displaced(sum(partitions, |one| one.spilled), sum(partitions, |one| one.stuck));
    let line = match displaced.is_empty() {
        true => line,
        false => line.then(format!("{MARK} {displaced}  "), Tone::Bad),
    };
    line.then(count, Tone::Plain)
}

fn foot(top: &Top, first: usize, room: usize) -> Line {
    if let Some(trouble) = &top.trouble {
        return Line::of(format!("as it was; {trouble}"), Tone::Bad)
            .then("  q leaves", Tone::Plain);
    }
    let count = top.look.partitions.len();
    let line = match count > room && room > 0 {
        true => {
            let place = format!("{}-{} of {count}, up and down scroll  ", first + 1, first + room);
            Line::of(place, Tone::Strong)
        }
        false => Line::default(),
    };
    top.glyphs.legend(line.then("q leaves  ", Tone::Plain))
}

/// Where things are in a line: name, state, bar, sizes, the guest's name; the bar takes what is
/// left, and where that is little the guest's name is left out before the bar is.
struct Columns {
    name: usize,
    bar: usize,
    guest: usize,
}

impl Columns {
    fn new(look: &Look, width: usize) -> Self {
        let name = look.rows().map(|row| row.id.len()).max().unwrap_or(0);
        let name = name.clamp(SHARED.len(), MAX_NAME);
        let guest = look.rows().map(|row| guest(row).len()).max().unwrap_or(0).max(GUEST.len());
        // Each column has a space beside it, and the bar two brackets.
        let taken = name + 1 + STATE + 1 + 4 * (SIZE + 1) + 2;
        let left = width.saturating_sub(taken);
        match left.saturating_sub(guest + 1) {
            bar if bar >= MIN_BAR => Self { name, bar, guest },
            _ => Self { name, bar: if left < MIN_BAR { 0 } else { left }, guest: 0 },
        }
    }

    fn headings(&self) -> Line {
        let text = self.start("ID", "STATE", [Tone::Strong; 2]);
        let bar = if self.bar == 0 { 0 } else { self.bar + 2 };
        let text = text.then(format!(" {:bar$}", ""), Tone::Strong);
        self.end(text, ["USED", "PEAK", "PLUGGED", "SIZE"].map(Into::into), GUEST, Tone::Strong)
    }

    fn row(&self, row: &Partition, glyphs: Glyphs, scale: Bytes) -> Line {
        let state = Tone::of_state(&row.state);
        let mark = if displaced(row.spilled, row.stuck).is_empty() { " " } else { MARK };
        let line = self.start(&row.id, &row.state, [Tone::Plain, state]).then(mark, Tone::Bad);
        let line = self.bar(line, glyphs, levels(row), scale);
        let &Partition { used, used_peak, plugged, size: all, .. } = row;
        let sizes = [used, used_peak, Some(plugged), Some(all)].map(size);
        self.end(line, sizes, guest(row), Tone::Plain)
    }

    fn start(&self, id: &str, state: &str, [id_tone, state_tone]: [Tone; 2]) -> Line {
        let name = self.name;
        Line::of(format!("{id:<name$.name$} "), id_tone)
            .then(format!("{state:<STATE$.STATE$}"), state_tone)
    }

    fn bar(&self, line: Line, glyphs: Glyphs, levels: Levels, scale: Bytes) -> Line {
        if self.bar == 0 {
            return line;
        }
        let line = line.then("[", Tone::Faint);
        bar(line, glyphs, levels, scale, self.bar).then("]", Tone::Faint)
    }

    fn end(&self, line: Line, sizes: [String; 4], guest: &str, tone: Tone) -> Line {
        let line = sizes.iter().fold(line, |line, size| line.then(format!(" {size:>SIZE$}"), tone));
        match self.guest {
            0 => line,
            width => line.then(format!(" {guest:>width$}"), tone),
        }
    }
}

fn guest(row: &Partition) -> &str {
    row.guest.as_deref().unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn top(count: u64) -> Top {
        let info = json!({
            "state": "Running", "memory_actual_size": 1_u64 << 30,
            "config": {"memory": {"size": 1_u64 << 30}},
        });
        let partition = |n: u64| {
            json!({"id": format!("fn-{n}"), "state": "bound", "size": 4 << 20,
                   "plugged": 2 << 20, "used": 1 << 20, "used_peak": 3 << 19, "number": n})
        };
        let list: Value = (0..count).map(partition).collect();
        let look = Look::new(info, list).unwrap();
        Top { look, trouble: None, first: 0, colours: false, glyphs: Glyphs::ASCII }
    }

    #[test]
    fn picture_shows_shared_memory_and_partitions() {
        let lines = render(&top(1), 80, 6);
        let expected = [
            "memctl top  Running  1 GiB of RAM  1 partition: 2 MiB of 4 MiB plugged",
            "ID       STATE                          USED        PEAK     PLUGGED        SIZE",
            "(shared) Running   [===========]           -           -       1 GiB       1 GiB",
            "fn-0     bound     [###===.....]       1 MiB    1536 KiB       2 MiB       4 MiB",
            "",
            "q leaves  # used  = plugged  . still to come  ! to be given back",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn columns_line_up_and_fill_the_width() {
        let lines = render(&top(2), 100, 10);
        let ends: Vec<usize> = lines[1..5].iter().map(|line| line.chars().count()).collect();
        assert_eq!(ends, [100; 4]);
    }

    #[test]
    fn what_the_guest_calls_a_partition_is_shown_where_there_is_room() {
        let lines = render(&top(1), 100, 6);
        assert!(lines[1].ends_with("SIZE GUEST"), "{lines:#?}");
        assert!(lines[2].ends_with("1 GiB     -"), "{}", lines[2]);
        assert!(lines[3].ends_with("4 MiB     0"), "{}", lines[3]);
    }

    #[test]
    fn spilled_and_stuck_memory_is_marked_and_summed() {
        let mut top = top(3);
        top.look.partitions[1].spilled = Bytes::mib(3);
        top.look.partitions[2].spilled = Bytes::mib(1);
        top.look.partitions[2].stuck = Bytes::kib(4);
        let lines = render(&top, 80, 8);
        assert!(lines[0].contains("of RAM  * 4 MiB spilled, 4 KiB stuck  3 p"), "{}", lines[0]);
        let marks: Vec<_> = lines[3..6].iter().map(|line| line.contains("bound    *[")).collect();
        assert_eq!(marks, [false, true, true], "{lines:#?}");
    }

    #[test]
    fn each_zone_has_a_line_and_partitions_have_the_rest() {
        let mut top = top(50);
        let zone = |id: &str| Partition { id: id.into(), ..top.look.machine.shared[0].clone() };
        top.look.machine.shared = vec![zone("(zone near)"), zone("(zone far)")];
        let lines = render(&top, 100, 10);
        assert!(lines[3].starts_with("(zone far)  Running"), "{lines:#?}");
        assert!(lines[4].starts_with("fn-0 ") && lines[8].starts_with("fn-4 "), "{lines:#?}");
        assert!(lines[9].starts_with("1-5 of 50"), "{lines:#?}");
    }

    #[test]
    fn many_partitions_scroll_and_the_view_stays_full() {
        let mut top = top(50);
        let shown = |top: &Top| {
            let lines = render(top, 120, 14);
            (lines[3].split(' ').next().unwrap().to_owned(), lines[13].clone())
        };
        assert_eq!(shown(&top).0, "fn-0");
        assert!(shown(&top).1.starts_with("1-10 of 50"), "{}", shown(&top).1);
        top.first = 49;
        assert_eq!(shown(&top).0, "fn-40");
        assert!(shown(&top).1.starts_with("41-50 of 50"), "{}", shown(&top).1);
        assert_eq!(first_in_view(&top, 14), 40);
    }

    #[test]
    fn trouble_is_shown_at_the_foot_with_the_last_look() {
        let mut top = top(1);
        top.trouble = Some("cannot connect".into());
        let lines = render(&top, 80, 8);
        assert!(lines[3].starts_with("fn-0"));
        assert_eq!(lines[7], "as it was; cannot connect  q leaves");
    }

    #[test]
    fn the_longest_names_leave_the_sizes_whole_in_80_columns() {
        let mut top = top(1);
        top.look.partitions[0].id = "x".repeat(64);
        let lines = render(&top, 80, 8);
        assert!(lines[1].ends_with(" SIZE") && lines[3].ends_with(" 4 MiB"), "{lines:#?}");
    }

    #[test]
    fn narrow_terminals_get_no_bar() {
        let lines = render(&top(1), 70, 8);
        assert!(!lines[3].contains('['), "{}", lines[3]);
        assert!(lines[3].ends_with("4 MiB"), "{}", lines[3]);
    }

    proptest! {
        #[test]
        fn picture_fits_any_terminal(width in 0_usize..200, height in 0_usize..40, first: usize) {
            let mut top = top(20);
            top.first = first;
            let lines = render(&top, width, height);
            prop_assert_eq!(lines.len(), height);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width));
        }
    }
}
