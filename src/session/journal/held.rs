//! Params that are kept: their fields, with values that may be shared.

use zeroize::Zeroizing;

use super::params::Fields;
use super::values::{VALUE_BYTES, Value, Values};
use crate::runtime::account::allocated;
use crate::wire::SessionId;

/// Why a session cannot be brought back, or not as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmovable {
    /// A method changed what cannot be rebuilt.
    Method,
    /// More than `sessions.journal_bytes`.
    Size,
    /// `sessions.journal_memory` is used up.
    Memory,
    /// Its params are not understood.
    Unread,
}

impl Unmovable {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Size => "size",
            Self::Memory => "memory",
            Self::Unread => "unread",
        }
    }
}

/// The fields of some params, but the session's ID.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(Box<str>, Value)>);

impl Params {
    /// Keeps fields, if they are at most so long.
    pub(super) fn keep(
        values: &std::sync::Arc<Values>,
        fields: &Fields<'_>,
        bytes_max: usize,
    ) -> Result<Self, Unmovable> {
        let again = || fields.0.iter().filter(|(name, _)| name != "sessionId");
        let long = again().map(|(name, value)| long(name, value.get().as_bytes()));
        if long.fold(0, usize::saturating_add) > bytes_max {
            return Err(Unmovable::Size);
        }
        let mut kept = Vec::with_capacity(fields.0.len());
        for (name, value) in again() {
            let value = values.keep(value.get().as_bytes()).ok_or(Unmovable::Memory)?;
            kept.push((name.as_str().into(), value));
        }
        Ok(Self(kept))
    }

    /// The same on top of earlier ones.
    pub(super) fn over(self, before: Self) -> Self {
        let mut all = before;
        for (name, value) in self.0 {
            match all.0.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = value,
                None => all.0.push((name, value)),
            }
        }
        all
    }

    /// Leaves fields out; whether there were any.
    pub(super) fn forget(&mut self, names: &[&str]) -> bool {
        let before = self.0.len();
        self.0.retain(|(name, _)| !names.contains(&&**name));
        self.0.len() < before
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        let mut pairs = self.0.iter().zip(&other.0);
        self.0.len() == other.0.len() && pairs.all(|((a, one), (b, two))| a == b && one.text() == two.text())
    }

    /// How long they are.
    pub(super) fn long(&self) -> usize {
        self.0.iter().map(|(name, value)| long(name, value.text())).fold(0, usize::saturating_add)
    }

    /// What their holder is charged for.
    pub(super) fn bytes(&self) -> usize {
        let one = |(name, value): &(Box<str>, Value)| allocated(name.len()).saturating_add(value.own_bytes());
        self.0.iter().map(one).fold(0, usize::saturating_add)
    }

    /// As the params of a request about this session, with what comes behind the last field.
    pub(super) fn object(&self, session: &SessionId, last: &[u8]) -> Zeroizing<Vec<u8>> {
        let bytes = self.long().saturating_add(last.len()).saturating_add(session.as_str().len());
        // What is longer once it is escaped finds room, or else a copy stays behind.
        let mut object = Zeroizing::new(Vec::with_capacity(bytes.saturating_mul(2)));
        object.extend_from_slice(br#"{"sessionId":"#);
        object.extend_from_slice(serde_json::Value::from(session.as_str()).to_string().as_bytes());
        for (name, value) in &self.0 {
            object.push(b',');
            object.extend_from_slice(serde_json::Value::from(&**name).to_string().as_bytes());
            object.push(b':');
            object.extend_from_slice(value.text());
        }
        object.extend_from_slice(last);
        object.push(b'}');
        object
    }
}

fn long(name: &str, value: &[u8]) -> usize {
    name.len().saturating_add(value.len()).saturating_add(VALUE_BYTES)
}
