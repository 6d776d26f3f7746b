//! Secrets: `{ env = "NAME" }` or `{ file = "PATH" }`, resolved while the file is checked.
//!
//! What is written where a secret belongs is hidden from every message, even if it is wrong, and even if the file is
//! not TOML: people paste tokens.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::file;
use super::model::Secret;
use super::problem::{Findings, ValueFault};
use super::raw::Reader;
use super::schema::{nearest, shown};
use super::values;

/// Keys whose values are secrets; a longer key that ends so is one too.
const KEYS: [&str; 2] = ["token", "hash_key"];

const SOURCES: [&str; 2] = ["env", "file"];

const FILE_BYTES_MAX: usize = 64 * 1024;

/// The folder into which systemd puts a unit's credentials: the variable, which may also begin a `file`.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Where secrets come from: a parameter, because a test must not change the environment of its process.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'s> {
    /// Looks up an environment variable.
    pub(super) env: &'s dyn Fn(&str) -> Option<OsString>,
    /// The folder relative paths begin at: that of the configuration file.
    pub(super) folder: &'s Path,
    /// Every file that the configuration has named.
    pub(super) seen: &'s RefCell<BTreeSet<PathBuf>>,
}

impl Surroundings<'_> {
    /// Where a file is that the configuration calls `path`.
    pub(super) fn path(self, path: &str) -> Result<PathBuf, ValueFault> {
        let credential =
            path.strip_prefix('$').and_then(|path| path.strip_prefix(CREDENTIALS)?.strip_prefix('/'));
        let whole = match credential {
            Some(name) => {
                let folder = (self.env)(CREDENTIALS).filter(|folder| !folder.is_empty());
                let unset = || {
                    let file = shown(path);
                    let why = format!("which begins with ${CREDENTIALS}, which is not set");
                    ValueFault::new(format!("takes the file \"{file}\", {why}"))
                        .help("systemd sets it for a unit that has LoadCredential=")
                };
                Path::new(&folder.ok_or_else(unset)?).join(name)
            }
            None => self.folder.join(path),
        };
        self.seen.borrow_mut().insert(whole.clone());
        Ok(whole)
    }
}

/// Whether a secret may also be written out as a string.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    Allowed,
    Refused,
}

/// Reads the secret at `key`; `None` if there is none or it cannot be read, which is then reported.
pub(super) fn secret(
    reader: &mut Reader<'_, '_>,
    key: &'static str,
    plain: Plain,
    around: Surroundings<'_>,
) -> Option<Secret> {
    let value = reader.value(key)?;
    match value.get_ref() {
        DeValue::Table(table) => {
            let known = report_unknown_sources(reader, key, table);
            let from_table = reader.take(key, |_| resolve(table, known, around));
            from_table.flatten().map(Secret::new)
        }
        other => {
            reader.found().hide(value.span());
            match (other, plain) {
                (DeValue::String(text), Plain::Allowed) => Some(Secret::new(text.clone().into_owned())),
                _ => {
                    reader.report(key, refusal(other, plain));
                    None
                }
            }
        }
    }
}

fn refusal(value: &DeValue<'_>, plain: Plain) -> ValueFault {
    const TABLE: &str = "`{ env = \"NAME\" }` or `{ file = \"PATH\" }`";
    match (value, plain) {
        (DeValue::String(_), _) => {
            ValueFault::new("must not be written out in this file").help(format!("write {TABLE}"))
        }
        (_, Plain::Allowed) => values::must_be(&format!("a string, {TABLE}"), value),
        (_, Plain::Refused) => values::must_be(TABLE, value),
    }
}

/// Reports keys other than `env` and `file`, and says whether there were none.
fn report_unknown_sources(reader: &mut Reader<'_, '_>, key: &'static str, table: &DeTable<'_>) -> bool {
    let full_name = reader.full_name(key);
    let mut known = true;
    for (source, value) in table {
        if SOURCES.contains(&source.get_ref().as_ref()) {
            continue;
        }
        known = false;
        let fault = ValueFault::new(format!("unknown key `{}` in `{full_name}`", shown(source.get_ref())));
        let fault = match nearest(source.get_ref(), SOURCES) {
            Some(source) => fault.help(format!("did you mean `{source}`?")),
            None => fault.help("a secret has either `env` or `file`"),
        };
        reader.found().hide(value.span());
        reader.found().at(source.span(), fault);
    }
    known
}

/// The secret's text; `Ok(None)` if the table lacks it for a reason that was already reported.
fn resolve(table: &DeTable<'_>, known: bool, around: Surroundings<'_>) -> Result<Option<String>, ValueFault> {
    match (table.get("env"), table.get("file")) {
        (Some(_), Some(_)) => Err(ValueFault::new("must have either `env` or `file`, not both")),
        (None, None) if known => Err(ValueFault::new("must have either `env` or `file`")),
        (None, None) => Ok(None),
        (Some(name), None) => {
            let name = values::text(name.get_ref()).map_err(|fault| fault_in("env", fault))?;
            from_env(name, around).map(Some)
        }
        (None, Some(path)) => {
            let path = values::text(path.get_ref()).map_err(|fault| fault_in("file", fault))?;
            from_file(path, around).map(Some)
        }
    }
}

/// "has `env`, which must be …": the fault of a part, reported for the whole secret.
fn fault_in(source: &str, fault: ValueFault) -> ValueFault {
    ValueFault { message: format!("has `{source}`, which {}", fault.message), ..fault }
}

fn from_env(name: &str, around: Surroundings<'_>) -> Result<String, ValueFault> {
    let fault =
        |why: &str| ValueFault::new(format!("takes the environment variable \"{}\", {why}", shown(name)));
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(fault("which cannot be the name of one"));
    }
    let value = (around.env)(name).ok_or_else(|| fault("which is not set"))?;
    let value = value.into_string().map_err(|_not_unicode| fault("which is not UTF-8"))?;
    if value.is_empty() { Err(fault("which is empty")) } else { Ok(value) }
}

fn from_file(path: &str, around: Surroundings<'_>) -> Result<String, ValueFault> {
    let fault = |why: &str| ValueFault::new(format!("takes the file \"{}\", which {why}", shown(path)));
    let mut text = file::read(&around.path(path)?, FILE_BYTES_MAX).map_err(|why| fault(&why))?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() { Err(fault("is empty")) } else { Ok(text) }
}

/// Hides everything after the name of a secret on its line, unless it begins like a table: for text that is not TOML,
/// where no parser says where values end.
pub(super) fn hide_in_text(text: &str, found: &mut Findings<'_>) {
    let mut begin = 0usize;
    for line in text.split_inclusive('\n') {
        let spans = KEYS.iter().filter_map(|key| after_key(line, key));
        for span in spans {
            found.hide(begin.saturating_add(span.start)..begin.saturating_add(span.end));
        }
        begin = begin.saturating_add(line.len());
    }
}

fn after_key(line: &str, key: &str) -> Option<Range<usize>> {
    let start = line.find(key)?.saturating_add(key.len());
    let rest = line.get(start..)?;
    let value = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '=' | '"' | '\'' | ':'));
    let table = value.strip_prefix('{').map(str::trim_start);
    let harmless = table.is_some_and(|table| SOURCES.iter().any(|source| table.starts_with(source)));
    (!harmless && !value.is_empty()).then(|| line.len().saturating_sub(value.len())..line.len())
}
