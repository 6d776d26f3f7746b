//! How long the last probes of a backend took, and how its last restart ended: recent history for the status page.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Probes remembered; with the default interval the last two minutes.
pub const PROBES_MAX: usize = 60;

/// The last probes and restarts.
#[derive(Debug, Default)]
pub struct History {
    probes: Mutex<VecDeque<Option<Duration>>>,
    restarts: Mutex<Restarted>,
}

/// How often a backend was restarted, and how the last time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restarted {
    /// Commands that were begun for it.
    pub count: u64,
    /// When the last one began or, once it has, ended; and how: "running", "success", "failure" or "timeout".
    pub last: Option<(Instant, &'static str)>,
}

impl History {
    /// A probe was answered after so long, or not at all.
    pub fn note(&self, took: Option<Duration>) {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        if probes.len() == PROBES_MAX {
            probes.pop_front();
        }
        probes.push_back(took);
    }

    /// Whether the last one was answered.
    pub fn is_answered(&self) -> bool {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner).back().is_some_and(Option::is_some)
    }

    /// The last ones, the oldest first; `None` = not answered.
    pub fn probes(&self) -> Vec<Option<Duration>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// Its restart begins.
    pub fn restart_begun(&self) {
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        restarts.count = restarts.count.saturating_add(1);
        restarts.last = Some((Instant::now(), "running"));
    }

    /// That restart has ended, with this result.
    pub fn restart_ended(&self, result: &'static str) {
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        restarts.last = Some((Instant::now(), result));
    }

    /// Its restarts.
    pub fn restarted(&self) -> Restarted {
        *self.restarts.lock().unwrap_or_else(PoisonError::into_inner)
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
