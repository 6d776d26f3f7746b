//! What sessile knows of each method: the one table. Pure.
//!
//! For every method it says where a request's session is named, what it does to that session, where the request goes, what
//! its success changes, and whether a listener denies it unless its configuration says otherwise. All code that treats
//! methods differently reads it here. Every method of the newest SDK has a row, or belongs to a family that has one;
//! `tests/sdk/methods.test.mjs` checks that against the SDK. A frame is looked up once, by its scan: see [`Called`].

use std::fmt;
use std::ops::Deref;

mod row;
mod server;
mod session;

use crate::runtime::account::{Owns, allocated};
pub use row::{Class, Effect, Merge, Method, Needs, Timed, Way, Where};
use server::FAMILIES;

/// Longest session ID that a server may take for the beginning of another.
const PREFIX_BYTES: std::ops::Range<usize> = 7..36;

/// The rows for unknown methods, by how their latency counts: a session that they name decides where they go.
static OTHERS: [Method; 2] = [row::unmovable(""), Method { timed: Timed::Read, ..row::unmovable("") }];

/// The row for `name`, and whether it is its own.
fn find(name: &str) -> (&'static Method, bool) {
    let table: &[Method] = if name.starts_with("session.") { &session::ROWS } else { &server::ROWS };
    let found = table.binary_search_by(|method| method.name.cmp(name)).ok();
    if let Some(method) = found.and_then(|at| table.get(at)) {
        return (method, true);
    }
    let is_one =
        |family: &&Method| family.name.strip_suffix('*').is_some_and(|beginning| name.starts_with(beginning));
    let [other, look] = &OTHERS;
    let looks = || name.contains("list") || name.contains(".get");
    let rest = || if looks() { look } else { other };
    (FAMILIES.iter().find(is_one).unwrap_or_else(rest), false)
}

/// A method as a body names it, with what is known of it.
#[derive(Clone)]
pub struct Called(Name);

/// Most methods have a row that holds their name.
#[derive(Clone)]
enum Name {
    Own(&'static Method),
    Other(Box<(&'static Method, Box<str>)>),
}

impl Called {
    /// What is known of it.
    pub fn known(&self) -> &'static Method {
        match &self.0 {
            Name::Own(known) => known,
            Name::Other(other) => other.0,
        }
    }
}

impl Owns for Called {
    fn owns(&self) -> usize {
        match &self.0 {
            Name::Own(_) => 0,
            Name::Other(other) => allocated(size_of_val(&**other)).saturating_add(allocated(other.1.len())),
        }
    }
}

impl From<&str> for Called {
    fn from(name: &str) -> Self {
        match find(name) {
            (known, true) => Self(Name::Own(known)),
            (known, false) => Self(Name::Other(Box::new((known, name.into())))),
        }
    }
}

impl Deref for Called {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Name::Own(known) => known.name,
            Name::Other(other) => &other.1,
        }
    }
}

impl PartialEq for Called {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Called {}

impl fmt::Debug for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// All rows, those of families last.
fn rows() -> impl Iterator<Item = &'static Method> {
    server::ROWS.iter().chain(&session::ROWS).chain(&FAMILIES)
}

/// The methods and families of methods that a listener denies where its configuration names none.
pub fn denied_by_default() -> impl Iterator<Item = &'static str> {
    rows().filter(|method| method.denied).map(|method| method.name)
}

/// Methods every SDK may send before its first session frame.
pub fn of_state() -> impl Iterator<Item = &'static str> {
    rows().filter(|method| method.way == Way::State).map(|method| method.name)
}

/// Every method that has a row of its own.
#[cfg(test)]
pub fn all() -> impl Iterator<Item = &'static str> {
    server::ROWS.iter().chain(&session::ROWS).map(|method| method.name)
}

/// Whether servers may take this ID for the beginning of another: at least seven characters of a UUID, not all.
pub fn may_be_prefix(id: &str) -> bool {
    PREFIX_BYTES.contains(&id.len())
        && id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests;
