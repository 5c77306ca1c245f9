//! Tables, for the terminal and for Markdown.

/// Rows of cells under headings. The first column holds names, the others numbers.
#[derive(Debug)]
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(headings: &[&str]) -> Self {
        Self {
            headings: headings.iter().map(|&heading| heading.to_owned()).collect(),
            rows: vec![],
        }
    }

    /// Adds a row; missing cells are empty, cells beyond the headings are left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().collect();
        cells.resize(self.headings.len(), String::new());
        self.rows.push(cells);
    }

    /// Columns aligned with spaces.
    pub fn to_text(&self) -> String {
        let widths: Vec<usize> =
            (0..self.headings.len()).map(|column| self.width(column)).collect();
        let mut text = String::new();
        for row in std::iter::once(&self.headings).chain(&self.rows) {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let width = *width;
                if column == 0 {
                    line.push_str(&format!("{cell:<width$}"));
                } else {
                    line.push_str(&format!("  {cell:>width$}"));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// A table of GitHub's Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = markdown_row(&self.headings);
        let rules =
            (0..self.headings.len()).map(|n| if n == 0 { "---" } else { "---:" }.to_owned());
        text.push_str(&markdown_row(&rules.collect::<Vec<_>>()));
        for row in &self.rows {
            text.push_str(&markdown_row(row));
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().chain(std::iter::once(&self.headings));
        cells.map(|row| row[column].chars().count()).max().unwrap_or(0)
    }
}

fn markdown_row(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["what", "time"]);
        table.row(["a|b".to_owned(), "1.0 µs".to_owned()]);
        table.row(["longer name".to_owned()]);
        table
    }

    #[test]
    fn columns_line_up() {
        assert_eq!(table().to_text(), "what           time\na|b          1.0 µs\nlonger name\n");
    }

    #[test]
    fn a_bar_in_a_cell_makes_no_column() {
        let text = "| what | time |\n| --- | ---: |\n| a\\|b | 1.0 µs |\n| longer name |  |\n";
        assert_eq!(table().to_markdown(), text);
    }
}
