//! The sessions of a backend that clients are attached to through this process: how many there are, and in how many a turn runs.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use super::Backend;

/// How many there are.
#[derive(Debug, Default)]
pub(super) struct Held {
    sessions: AtomicUsize,
    /// Two that change at once may be counted the second first: so these may be negative for a moment.
    busy: AtomicI64,
    idle: AtomicI64,
}

impl Backend {
    /// Sessions owned now.
    pub fn sessions(&self) -> usize {
        self.held.sessions.load(Ordering::Relaxed)
    }

    /// Those of them in which a turn runs.
    pub fn sessions_busy(&self) -> usize {
        usize::try_from(self.held.busy.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// Those of them in which none does. Of the others it is not known.
    pub fn sessions_idle(&self) -> usize {
        usize::try_from(self.held.idle.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// A session has come.
    pub fn session_added(&self) {
        self.held.sessions.fetch_add(1, Ordering::Relaxed);
        self.series.sessions_active.inc();
    }

    /// A session has left.
    pub fn session_removed(&self) {
        self.held.sessions.fetch_sub(1, Ordering::Relaxed);
        self.series.sessions_active.dec();
    }

    /// So many more are busy, and so many more idle.
    pub fn turns_changed(&self, busy: i64, idle: i64) {
        self.held.busy.fetch_add(busy, Ordering::Relaxed);
        self.held.idle.fetch_add(idle, Ordering::Relaxed);
        self.series.sessions_busy.add(busy);
    }
}
