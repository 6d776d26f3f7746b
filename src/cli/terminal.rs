//! Output: aligned tables, without control characters.
//!
//! Failed writes are ignored: the reader may have gone (`sessile status | head -1`).

use std::io::{IsTerminal as _, Write as _};

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

/// How a word is highlighted. The text must say the same: color is never the only sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Intended by an operator, or temporary.
    Slow,
    /// Needs attention.
    Bad,
    /// A side note.
    Faint,
}

/// What standard output can show.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// Colors: only on a terminal, and not against `NO_COLOR`.
    pub(super) color: bool,
    /// The width, if it is limited.
    pub(super) columns: Option<usize>,
}

impl Look {
    /// Of this process's standard output.
    pub(super) fn of_output() -> Self {
        let output = std::io::stdout();
        if !output.is_terminal() {
            return Self::default();
        }
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|value| value == "dumb");
        let size = rustix::termios::tcgetwinsize(&output).ok();
        let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        Self { color: !unwanted && !dumb, columns }
    }

    /// `text` in the color of its tone.
    pub(super) fn paint(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Slow => "33",
            Tone::Bad => "1;31",
            Tone::Faint => "2",
        };
        if self.color && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Rows of cells, the first row being the heads. Columns are as wide as they need to be; numbers are aligned right.
#[derive(Debug)]
pub(super) struct Table(Vec<Row>);

#[derive(Debug, Default)]
struct Row {
    cells: Vec<(String, Tone)>,
    /// Lines of its own beneath it.
    notes: Vec<(String, Tone)>,
}

impl Table {
    /// A table with these heads.
    pub(super) fn new(heads: &[&str]) -> Self {
        let cells = heads.iter().map(|head| (head.to_string(), Tone::Faint)).collect();
        Self(vec![Row { cells, notes: Vec::new() }])
    }

    /// A table without heads.
    pub(super) fn bare() -> Self {
        Self(Vec::new())
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.toned(cells.into_iter().map(|cell| (cell, Tone::Plain)));
    }

    /// Adds a row some of whose cells stand out.
    pub(super) fn toned(&mut self, cells: impl IntoIterator<Item = (String, Tone)>) {
        let cells = cells.into_iter().map(|(cell, tone)| (plain(&cell), tone)).collect();
        self.0.push(Row { cells, notes: Vec::new() });
    }

    /// Adds a line beneath the last row.
    pub(super) fn note(&mut self, text: &str, tone: Tone) {
        if let Some(row) = self.0.last_mut() {
            row.notes.push((plain(text), tone));
        }
    }

    /// Leaves out columns until it fits, the last of `spare` first.
    pub(super) fn fit(&mut self, columns: Option<usize>, spare: &[&str]) {
        let Some(columns) = columns else { return };
        for head in spare.iter().rev() {
            let widths: usize = self.shape().iter().map(|(width, _)| width.saturating_add(2)).sum();
            if widths.saturating_sub(2) <= columns {
                return;
            }
            let at = self.0.first().and_then(|row| row.cells.iter().position(|(cell, _)| cell == head));
            for row in &mut self.0 {
                if let Some(at) = at.filter(|at| *at < row.cells.len()) {
                    row.cells.remove(at);
                }
            }
        }
    }

    /// The width of each column, and whether it is aligned right.
    fn shape(&self) -> Vec<(usize, bool)> {
        let columns = self.0.iter().map(|row| row.cells.len()).max().unwrap_or(0);
        let column = |at: usize| self.0.iter().filter_map(move |row| row.cells.get(at)).map(|(cell, _)| cell);
        let shape = |at| {
            let width = column(at).map(|cell| cell.chars().count()).max().unwrap_or(0);
            let numbers = column(at).skip(1).all(|cell| cell == "-" || cell.parse::<f64>().is_ok());
            (width, numbers && column(at).count() > 1)
        };
        (0..columns).map(shape).collect()
    }

    /// Every line begins with `indent` and ends with a newline and no space.
    pub(super) fn render(&self, indent: &str) -> String {
        self.painted(indent, Look::default())
    }

    /// The same with what `look` can show.
    pub(super) fn painted(&self, indent: &str, look: Look) -> String {
        let shape = self.shape();
        let mut text = String::new();
        for Row { cells, notes } in &self.0 {
            let mut line = String::from(indent);
            let mut gap = 0_usize;
            for ((cell, tone), (width, right)) in cells.iter().zip(&shape) {
                let rest = width.saturating_sub(cell.chars().count());
                let (before, after) = if *right { (rest, 0) } else { (0, rest) };
                // Spaces are written only before the next cell, so that no line ends with one.
                if !cell.is_empty() {
                    line.extend(std::iter::repeat_n(' ', gap.saturating_add(before)));
                    line.push_str(&look.paint(cell, *tone));
                    gap = 0;
                } else {
                    gap = gap.saturating_add(before);
                }
                gap = gap.saturating_add(after).saturating_add(2);
            }
            text.push_str(&line);
            text.push('\n');
            for (note, tone) in notes {
                text.push_str(&format!("{indent}  {}\n", look.paint(note, *tone)));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide() -> Table {
        let mut table = Table::new(&["NAME", "ADDRESS", "STATE"]);
        table.toned([
            ("a".into(), Tone::Plain),
            ("a.example:1".into(), Tone::Faint),
            ("down".into(), Tone::Bad),
        ]);
        table.note("refused", Tone::Bad);
        table
    }

    #[test]
    fn colors_change_no_place_of_a_letter() {
        let look = Look { color: true, columns: None };
        let painted = wide().painted("", look);
        assert!(
            painted.contains("\u{1b}[1;31mdown\u{1b}[0m\n  \u{1b}[1;31mrefused\u{1b}[0m\n"),
            "{painted:?}"
        );
        let mut bare = painted;
        for code in ["\u{1b}[1;31m", "\u{1b}[2m", "\u{1b}[0m"] {
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, wide().render(""));
        assert_eq!(bare, "NAME  ADDRESS      STATE\na     a.example:1  down\n  refused\n");
    }

    #[test]
    fn a_narrow_terminal_gets_what_matters() {
        let fitted = |columns| {
            let mut table = wide();
            table.fit(Some(columns), &["STATE", "ADDRESS"]);
            table.render("")
        };
        assert_eq!(fitted(24), wide().render(""));
        assert_eq!(fitted(23), "NAME  STATE\na     down\n  refused\n");
        assert_eq!(fitted(5), "NAME\na\n  refused\n");
    }

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
