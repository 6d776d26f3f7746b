//! From a path or a text to a configuration, or to everything that is wrong with it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue, Error as SyntaxError};

use super::check::check;
use super::file;
use super::model::Config;
use super::problem::{Findings, Problems, ValueFault};
use super::schema::shown;
use super::secret::{Surroundings, hide_in_text};

/// A larger file is refused unread.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// The parser gives up at some errors. The faulty lines are then blanked and the rest is parsed again, so often at most.
const SYNTAX_ROUNDS_MAX: usize = 8;

/// Reads and checks the file at `path`. Relative paths in it begin at its folder.
///
/// # Errors
/// Every problem of the file, or why it cannot be read.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let origin = path.display().to_string();
    let text = file::read(path, FILE_BYTES_MAX).map_err(|why| {
        Problems::of_file(&origin, ValueFault::new(format!("the configuration file {why}")))
    })?;
    parse_in(&text, &origin, path, &|name| std::env::var_os(name))
}

/// Checks `text`, which came from a file named `origin`. Relative paths in it begin at the folder of `origin`.
///
/// # Errors
/// Every problem of the text.
pub fn parse(text: &str, origin: &str) -> Result<Config, Problems> {
    parse_in(text, origin, Path::new(origin), &|name| std::env::var_os(name))
}

/// Every file that the configuration at `path` names, even if it is not sound: a change of any of them may matter.
pub fn files(path: &Path) -> BTreeSet<PathBuf> {
    let seen = RefCell::default();
    if let Ok(text) = file::read(path, FILE_BYTES_MAX) {
        // Its problems are reported when it is loaded.
        drop(parse_seeing(&text, "", path, &|name| std::env::var_os(name), &seen));
    }
    seen.into_inner()
}

pub(super) fn parse_in(
    text: &str,
    origin: &str,
    path: &Path,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Config, Problems> {
    parse_seeing(text, origin, path, env, &RefCell::default())
}

fn parse_seeing(
    text: &str,
    origin: &str,
    path: &Path,
    env: &dyn Fn(&str) -> Option<OsString>,
    seen: &RefCell<BTreeSet<PathBuf>>,
) -> Result<Config, Problems> {
    if text.len() > FILE_BYTES_MAX {
        let fault = ValueFault::new(format!("the configuration is larger than {} KiB", FILE_BYTES_MAX >> 10));
        return Err(Problems::of_file(origin, fault));
    }
    let around = Surroundings { env, folder: path.parent().unwrap_or(Path::new("")), seen };
    let mut found = Findings::new(text);
    let mut rest = Cow::Borrowed(text);
    for round in 0..SYNTAX_ROUNDS_MAX {
        let (root, errors) = DeTable::parse_recoverable(&rest);
        if errors.is_empty() {
            let config = check(root.get_ref(), around, &mut found);
            return found.into_result(origin).map(|()| config);
        }
        if round == 0 {
            hide_in_text(text, &mut found);
            found.walk_in_part();
        }
        match report_syntax(&rest, &errors, &mut found) {
            Some(without) if without != rest => rest = Cow::Owned(without),
            _ => break,
        }
    }
    found.into_result(origin)?;
    Err(Problems::of_file(origin, ValueFault::new("the configuration is not TOML")))
}

/// Reports the first error of every line. Returns the text without these lines, if what is left may be looked at.
fn report_syntax(text: &str, errors: &[SyntaxError], found: &mut Findings<'_>) -> Option<String> {
    let mut starts = BTreeSet::new();
    let unclosed = errors.iter().any(|error| span_of(error).start >= text.trim_end().len());
    for error in errors {
        let span = span_of(error);
        let before = text.get(..text.floor_char_boundary(span.start)).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |newline| newline.saturating_add(1));
        if !starts.insert(start) {
            continue;
        }
        let fault = match twice(text, &span) {
            Some(fault) if error.message() == "duplicate key" => fault,
            _ => ValueFault::new(format!("not TOML: {}", error.message())),
        };
        if unclosed && error.message().contains("array") {
            // every later line is taken for a part of the list: only the first error counts
            found.at(span, fault.help("a list that began above, or here, is not closed with `]`"));
            return None;
        }
        let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        found.at(span, if lacks_quotes(line) { fault.help("strings are written in quotes") } else { fault });
    }
    without_lines(text, &starts)
}

/// The fault of the key or section at `span`, if it is in a line above too.
fn twice(text: &str, span: &Range<usize>) -> Option<ValueFault> {
    let name = text.get(span.clone())?;
    let start = text.get(..span.start)?.rfind('\n').map_or(0, |newline| newline.saturating_add(1));
    let opens = |line: &str| line.trim_start().starts_with('[');
    let section = opens(text.get(start..)?);
    let is_it = |line: &str| match (section, opens(line)) {
        (true, true) => line.trim().trim_matches(['[', ']']).trim() == name,
        (false, false) => line.split_once('=').is_some_and(|(key, _)| key.trim() == name),
        _ => false,
    };
    let above: Vec<(usize, &str)> = (1..).zip(text.get(..start)?.lines()).collect();
    // A key may be in another section too.
    let same = above.iter().rev().take_while(|(_, line)| section || !opens(line));
    let (first, _) = same.filter(|(_, line)| is_it(line)).last()?;
    let fault = ValueFault::new(format!("`{}` is written twice", shown(name)));
    Some(fault.help(format!("it stands in line {first} already")))
}

fn span_of(error: &SyntaxError) -> Range<usize> {
    error.span().unwrap_or_default()
}

/// Whether the line's value would be valid in quotes.
fn lacks_quotes(line: &str) -> bool {
    let value = line.split_once('=').map(|(_, value)| value.trim()).unwrap_or_default();
    let bare = !value.is_empty() && !value.contains(['"', '\'', '[', ']', '{', '}', '#', '\\']);
    bare && DeValue::parse(value).is_err()
}

/// The text with the lines that begin at `starts` blank, so that all other bytes keep their place.
///
/// `None` if one of them opens a table: its keys would then seem to belong to the table before.
fn without_lines(text: &str, starts: &BTreeSet<usize>) -> Option<String> {
    let mut rest = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        if !starts.contains(&rest.len()) {
            rest.push_str(line);
        } else if line.trim_start().starts_with('[') {
            return None;
        } else {
            let content = line.trim_end_matches(['\r', '\n']);
            rest.extend(std::iter::repeat_n(' ', content.len()));
            rest.push_str(line.get(content.len()..).unwrap_or_default());
        }
    }
    Some(rest)
}
