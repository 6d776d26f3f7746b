//! What is wrong with a configuration file: every problem at once, each with its place and, if known, its fix.
//!
//! This is the first thing an operator sees after a typo, so messages name the key, what it must be and what it is.
//! Two rules for changes here: a secret must never be shown (values written where a secret belongs are
//! masked in `source` before anything can print it), and no input may panic or take quadratic time (only the faulty
//! line is given to the renderer, and the list has a bound).

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet, normalize_untrusted_str};

/// Problems listed for one file; the rest is only counted.
pub const LISTED_MAX: usize = 100;

/// A longer line is not shown; only its number is.
const SHOWN_LINE_BYTES_MAX: usize = 1000;

/// Everything wrong with one configuration file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    origin: String,
    source: String,
    list: Vec<Problem>,
    unlisted: usize,
}

/// One thing wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is; `None` = the file as a whole (missing, unreadable, or something it lacks).
    pub position: Option<Position>,
    /// The bytes at fault, on character boundaries of the text; `None` as for `position`.
    pub span: Option<Range<usize>>,
    /// One line: what it must be, and what it is.
    pub message: String,
    /// One line: how to fix it.
    pub help: Option<String>,
}

/// A place in a text, both counted from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl Problems {
    /// The one problem of a file that could not even be read.
    pub(super) fn of_file(origin: &str, fault: ValueFault) -> Self {
        let ValueFault { message, help } = fault;
        let problem = Problem { position: None, span: None, message, help };
        Self { origin: origin.to_owned(), source: String::new(), list: vec![problem], unlisted: 0 }
    }

    /// The file's name as given.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The problems in the order of the file; at most [`LISTED_MAX`].
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// How many problems there are, those beyond [`LISTED_MAX`] included.
    pub fn count(&self) -> usize {
        self.list.len().saturating_add(self.unlisted)
    }

    /// For a terminal: every problem with `file:line:column`, its line and a caret. Ends with a newline.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for problem in &self.list {
            out.push_str(&renderer.render(&[self.group(problem)]));
            out.push_str("\n\n");
        }
        let plural = if self.count() == 1 { "" } else { "s" };
        let _infallible =
            write!(out, "{}: {} problem{plural}", normalize_untrusted_str(&self.origin), self.count());
        if self.unlisted > 0 {
            let _infallible = write!(out, ", {} of them not shown", self.unlisted);
        }
        out.push('\n');
        out
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let group = Group::with_title(Level::ERROR.primary_title(&problem.message));
        let group = match (problem.position, self.line_at_fault(problem)) {
            (Some(at), Some((line, span))) => {
                let caret = AnnotationKind::Primary.span(span);
                group.element(Snippet::source(line).path(&self.origin).line_start(at.line).annotation(caret))
            }
            (Some(at), None) => {
                group.element(Origin::path(&self.origin).line(at.line).char_column(at.column))
            }
            (None, _) => group.element(Origin::path(&self.origin)),
        };
        match &problem.help {
            Some(help) => group.element(Level::HELP.message(normalize_untrusted_str(help))),
            None => group,
        }
    }

    /// The line a problem begins on, and the part of it at fault, in bytes of that line.
    fn line_at_fault(&self, problem: &Problem) -> Option<(&str, Range<usize>)> {
        let span = problem.span.clone()?;
        let (before, rest) = self.source.split_at_checked(span.start)?;
        let begin = before.rfind('\n').map_or(0, |newline| newline.saturating_add(1));
        let end = span.start.saturating_add(rest.find('\n').unwrap_or(rest.len()));
        let line = self.source.get(begin..end)?;
        let line = line.strip_suffix('\r').unwrap_or(line);
        let from = span.start.saturating_sub(begin).min(line.len());
        let to = span.end.saturating_sub(begin).clamp(from, line.len());
        (line.len() <= SHOWN_LINE_BYTES_MAX).then_some((line, from..to))
    }
}

/// One problem a line, `file:line:column: message`: for logs.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            write!(f, "{}", self.origin)?;
            if let Some(at) = problem.position {
                write!(f, ":{at}")?;
            }
            write!(f, ": {}", problem.message)?;
        }
        if self.unlisted > 0 {
            write!(f, "\n{}: and {} more", self.origin, self.unlisted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A problem without its place yet: what is wrong with a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ValueFault {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl ValueFault {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// Collects what is wrong while the file is walked.
pub(super) struct Findings<'t> {
    text: &'t str,
    list: Vec<(Option<Range<usize>>, ValueFault)>,
    hidden: Vec<Range<usize>>,
    partial: bool,
}

/// How many findings there were at a moment; see [`Findings::clean_since`].
#[derive(Clone, Copy)]
pub(super) struct Mark(usize);

impl<'t> Findings<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, list: Vec::new(), hidden: Vec::new(), partial: false }
    }

    /// Something wrong at `span`; `None` = in no one place.
    pub(super) fn at(&mut self, span: impl Into<Option<Range<usize>>>, fault: ValueFault) {
        self.list.push((span.into(), fault));
    }

    /// Something that is missing; `span` is where it would be expected. Not reported when lines were left out for
    /// their syntax, as it may be on one of them.
    pub(super) fn missing(&mut self, span: Option<Range<usize>>, fault: ValueFault) {
        if !self.partial {
            self.list.push((span, fault));
        }
    }

    /// Whether the whole file is walked, so that what is not found has its default.
    pub(super) fn is_whole(&self) -> bool {
        !self.partial
    }

    /// Never shows what is written there.
    pub(super) fn hide(&mut self, span: Range<usize>) {
        self.hidden.push(span);
    }

    /// From now on, what is walked is not the whole file.
    pub(super) fn walk_in_part(&mut self) {
        self.partial = true;
    }

    pub(super) fn mark(&self) -> Mark {
        Mark(self.list.len())
    }

    /// Whether everything since `mark` was read as the file has it, so that two values may be compared.
    pub(super) fn clean_since(&self, mark: Mark) -> bool {
        !self.partial && self.list.len() == mark.0
    }

    /// The line an offset is on, from 1.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        position(self.text, offset).line
    }

    /// Nothing found, or the problems in the order of the file.
    pub(super) fn into_result(mut self, origin: &str) -> Result<(), Problems> {
        if self.list.is_empty() {
            return Ok(());
        }
        // stable, so that what is said first about one place stays first; the file as a whole comes last
        self.list.sort_by_key(|(span, _)| span.as_ref().map_or(usize::MAX, |span| span.start));
        let unlisted = self.list.len().saturating_sub(LISTED_MAX);
        let source = masked(self.text, &self.hidden);
        let place = |(span, ValueFault { message, help }): (Option<Range<usize>>, ValueFault)| {
            let span = span.map(|span| on_boundaries(&source, span));
            let position = span.as_ref().map(|span| position(&source, span.start));
            Problem { position, span, message, help }
        };
        let list = self.list.into_iter().take(LISTED_MAX).map(place).collect();
        Err(Problems { origin: origin.to_owned(), source: source.into_owned(), list, unlisted })
    }
}

/// The text with every hidden byte but line ends made a `*`, so that offsets stay.
fn masked<'t>(text: &'t str, hidden: &[Range<usize>]) -> Cow<'t, str> {
    if hidden.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut bytes = text.as_bytes().to_vec();
    for span in hidden {
        for byte in bytes.get_mut(on_boundaries(text, span.clone())).unwrap_or_default() {
            if !matches!(byte, b'\n' | b'\r') {
                *byte = b'*';
            }
        }
    }
    // whole characters became whole asterisks; if that were ever wrong, showing nothing is right
    Cow::Owned(String::from_utf8(bytes).unwrap_or_default())
}

/// The span moved inside the text and outwards to characters.
fn on_boundaries(text: &str, span: Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(span.start);
    start..text.ceil_char_boundary(span.end).max(start)
}

fn position(text: &str, offset: usize) -> Position {
    let before = text.get(..text.floor_char_boundary(offset)).unwrap_or_default();
    let line = before.matches('\n').count().saturating_add(1);
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count().saturating_add(1);
    Position { line, column }
}
