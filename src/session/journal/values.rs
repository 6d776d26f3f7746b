//! Values of params. The sessions of one app have most of them in common: large ones are kept once in a process.
//!
//! They hold secrets: they are wiped when the last holder drops them, and `Debug` shows nothing.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use zeroize::Zeroizing;

use crate::runtime::account::{Budget, Charge, allocated};

/// Longer values are kept once.
const OWN_BYTES_MAX: usize = 512;
/// What a value takes beside its bytes, with the name of its field.
pub(super) const VALUE_BYTES: usize = 64;
/// What one that is kept once takes, with its place in the table.
const SHARED_BYTES: usize = 160;

/// All that are kept once.
#[derive(Debug)]
pub(super) struct Values {
    budget: Arc<Budget>,
    by_hash: Mutex<HashMap<u64, Vec<Weak<Once>>>>,
    hash: RandomState,
}

/// One that is.
struct Once {
    text: Zeroizing<Box<[u8]>>,
    hash: u64,
    values: Arc<Values>,
    _charge: Charge,
}

/// One value.
#[derive(Clone)]
pub(super) enum Value {
    Own(Zeroizing<Box<[u8]>>),
    Once(OnceHeld),
}

/// A holder of a value that is kept once.
#[derive(Clone)]
pub(super) struct OnceHeld(Arc<Once>);

impl Values {
    pub(super) fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self { budget, by_hash: Mutex::default(), hash: RandomState::new() })
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    fn by_hash(&self) -> MutexGuard<'_, HashMap<u64, Vec<Weak<Once>>>> {
        self.by_hash.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a value; `None` if there is no room. What is not kept once is the caller's to charge: [`Value::own_bytes`].
    pub(super) fn keep(self: &Arc<Self>, text: &[u8]) -> Option<Value> {
        if text.len() <= OWN_BYTES_MAX {
            return Some(Value::Own(Zeroizing::new(text.into())));
        }
        let hash = self.hash.hash_one(text);
        // Dropped behind the lock: one of them may have no other holder by then, and takes the lock when it goes.
        let mut known: Vec<Arc<Once>> = Vec::new();
        let mut by_hash = self.by_hash();
        let alike = by_hash.entry(hash).or_default();
        known.extend(alike.iter().filter_map(Weak::upgrade));
        if let Some(same) = known.iter().find(|one| **one.text == *text) {
            return Some(Value::Once(OnceHeld(Arc::clone(same))));
        }
        let mut charge = self.budget.charge();
        if !charge.resize(allocated(text.len()).saturating_add(SHARED_BYTES)) {
            if alike.is_empty() {
                by_hash.remove(&hash);
            }
            return None;
        }
        charge.tell();
        let (text, values) = (Zeroizing::new(text.into()), Arc::clone(self));
        let once = Arc::new(Once { text, hash, values, _charge: charge });
        alike.push(Arc::downgrade(&once));
        Some(Value::Once(OnceHeld(once)))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_hash().values().map(Vec::len).sum()
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        let mut by_hash = self.values.by_hash();
        if let Some(alike) = by_hash.get_mut(&self.hash) {
            alike.retain(|one| one.strong_count() > 0);
            if alike.is_empty() {
                by_hash.remove(&self.hash);
            }
        }
    }
}

impl Value {
    /// As it was written.
    pub(super) fn text(&self) -> &[u8] {
        match self {
            Self::Own(text) => text,
            Self::Once(OnceHeld(once)) => &once.text,
        }
    }

    /// What its holder is charged for.
    pub(super) fn own_bytes(&self) -> usize {
        match self {
            Self::Own(text) => allocated(text.len()).saturating_add(VALUE_BYTES),
            Self::Once(_) => VALUE_BYTES,
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(…)")
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(bytes_max: usize) -> (Arc<Values>, prometheus::IntGauge) {
        let gauge = prometheus::IntGauge::new("g", "g").unwrap();
        (Values::new(Budget::new(gauge.clone(), 0, Some(bytes_max))), gauge)
    }

    #[test]
    fn equal_large_values_are_one_and_go_with_their_last_holder() {
        let (values, gauge) = values(1 << 20);
        let long = vec![b'x'; OWN_BYTES_MAX + 1];
        let holders: Vec<_> = (0..1000).map(|_| values.keep(&long).unwrap()).collect();
        assert_eq!(values.len(), 1);
        let bytes = values.budget().account().bytes();
        assert_eq!(bytes, 0, "each has an account of its own");
        assert!(holders.windows(2).all(|two| two[0].text().as_ptr() == two[1].text().as_ptr()));
        let other = values.keep(&vec![b'y'; OWN_BYTES_MAX + 1]).unwrap();
        drop(holders);
        assert_eq!((values.len(), other.text()[0]), (1, b'y'));
        drop(other);
        assert_eq!((values.len(), gauge.get()), (0, 0));
        assert!(matches!(values.keep(b"short"), Some(Value::Own(_))));
    }

    #[test]
    fn a_large_value_for_which_there_is_no_room_is_not_kept_and_leaves_nothing() {
        let (values, _) = values(2 * OWN_BYTES_MAX);
        assert!(values.keep(&vec![b'x'; 4 * OWN_BYTES_MAX]).is_none());
        assert_eq!(values.by_hash().len(), 0);
        assert!(values.keep(&vec![b'x'; OWN_BYTES_MAX + 1]).is_some());
    }

    #[test]
    fn nothing_of_a_value_is_shown() {
        let (values, _) = values(1 << 20);
        for text in ["secret".to_owned(), "secret".repeat(OWN_BYTES_MAX)] {
            let value = values.keep(text.as_bytes()).unwrap();
            assert!(!format!("{value:?} {value:#?} {values:?}").contains("secret"));
        }
    }
}
