//! What the last probes of a backend took: a short memory for whoever opens the status page when it is too late to have
//! watched.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Probes remembered; with the default interval the last two minutes.
pub const PROBES_MAX: usize = 60;

/// A ring of probes.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Option<Duration>>>);

impl History {
    /// A probe was answered after so long, or not at all.
    pub fn note(&self, took: Option<Duration>) {
        let mut probes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if probes.len() == PROBES_MAX {
            probes.pop_front();
        }
        probes.push_back(took);
    }

    /// Whether the last one was answered.
    pub fn is_answered(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).back().is_some_and(Option::is_some)
    }

    /// The last ones, the oldest first; `None` = not answered.
    pub fn probes(&self) -> Vec<Option<Duration>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let history = History::default();
        for number in 0..PROBES_MAX as u64 + 2 {
            history.note((number > 2).then_some(Duration::from_millis(number)));
        }
        let probes = history.probes();
        assert_eq!(probes.len(), PROBES_MAX);
        assert_eq!((probes[0], probes[1]), (None, Some(Duration::from_millis(3))));
        assert_eq!(probes.last(), Some(&Some(Duration::from_millis(61))));
        assert!(history.is_answered() && !History::default().is_answered());
        history.note(None);
        assert!(!history.is_answered());
    }
}
