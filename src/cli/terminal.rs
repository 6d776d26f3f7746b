//! What is printed: aligned tables, and nothing that a terminal would obey.
//!
//! A reader that has gone (`sessile status | head -1`) is nobody to complain to, so failed writes are dropped.

use std::io::Write as _;

/// Prints to standard output.
pub(super) fn out(text: &str) {
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// Prints to standard error.
pub(super) fn err(text: &str) {
    drop(std::io::stderr().write_all(text.as_bytes()));
}

/// `text` on one line and without control characters: names, versions and errors may come from anywhere.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Rows of cells, the first row being the heads. Columns are as wide as they need to be; numbers stand right.
#[derive(Debug)]
pub(super) struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these heads.
    pub(super) fn new(heads: &[&str]) -> Self {
        Self(vec![heads.iter().map(ToString::to_string).collect()])
    }

    /// A table without heads.
    pub(super) fn bare() -> Self {
        Self(Vec::new())
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().map(|cell| plain(&cell)).collect());
    }

    /// Every line begins with `indent` and ends with a newline and no space.
    pub(super) fn render(&self, indent: &str) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let column = |at: usize| self.0.iter().filter_map(move |row| row.get(at));
        let shape: Vec<(usize, bool)> = (0..columns)
            .map(|at| {
                let width = column(at).map(|cell| cell.chars().count()).max().unwrap_or(0);
                let numbers = column(at).skip(1).all(|cell| cell == "-" || cell.parse::<f64>().is_ok());
                (width, numbers && column(at).count() > 1)
            })
            .collect();
        let mut text = String::new();
        for row in &self.0 {
            let cells = row.iter().zip(&shape).map(|(cell, (width, right))| {
                if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(indent);
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_harmless() {
        let mut table = Table::new(&["NAME", "COUNT", "NOTE"]);
        table.row(["a".into(), "5".into(), "\u{1b}[2Jbell\u{7}\n".into()]);
        table.row(["long name".into(), "12".into(), String::new()]);
        table.row(["ü".into(), "-".into(), "x".into()]);
        assert_eq!(
            table.render("  "),
            "  NAME       COUNT  NOTE\n  a              5  \u{fffd}[2Jbell\u{fffd}\u{fffd}\n  long name     12\n  ü              -  x\n"
        );
    }
}
