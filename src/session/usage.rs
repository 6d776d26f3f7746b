//! How one session is used, as its frames say: whether a turn runs, when it was used last, and whether it has to leave.
//!
//! Frames are noted by atomic means: they take no lock. How many sessions of a backend are busy is counted there.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::turn::{Activity, Sign, Turn};
use crate::fleet::Backend;

/// What is noted of a session as long as somebody is attached to it.
#[derive(Debug)]
pub(super) struct Notes {
    /// The second of its last use, counted from [`START`].
    used: AtomicU32,
    /// A [`Turn`], and beside it [`LEAVING`] and [`OVER`].
    state: AtomicU32,
}

/// Every connection must let go of it.
const LEAVING: u32 = 1 << 31;
/// The last has let go: what is said later does not count.
const OVER: u32 = 1 << 30;

/// The moment that others are counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn second() -> u32 {
    u32::try_from(START.elapsed().as_secs()).unwrap_or(u32::MAX)
}

/// How a session is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Whether a turn runs.
    pub activity: Activity,
    /// How long ago its last frame was, to the second, or that somebody was attached; zero while a turn runs.
    pub unused: Duration,
}

impl Notes {
    /// Nothing has been seen yet.
    pub(super) fn new() -> Self {
        Self { used: AtomicU32::new(second()), state: AtomicU32::new(0) }
    }

    /// Whether every connection must let go of the session.
    pub(super) fn is_leaving(&self) -> bool {
        self.state.load(Ordering::Acquire) & LEAVING != 0
    }

    /// From now on every connection must; false if that is not new.
    pub(super) fn leave(&self) -> bool {
        self.state.fetch_or(LEAVING, Ordering::AcqRel) & LEAVING == 0
    }

    /// The last has let go of the session, which was on `backend`.
    pub(super) fn end(&self, backend: &Backend) {
        let last = Turn::in_word(self.state.fetch_or(OVER, Ordering::AcqRel));
        count(backend, last.activity(), Activity::Unknown);
    }

    /// Takes note of a frame. While a turn runs, the session is in use without a note.
    pub(super) fn note(&self, backend: &Backend, sign: Sign) {
        let turn = Turn::in_word(self.state.load(Ordering::Relaxed));
        if sign == Sign::Nothing && turn.activity() == Activity::Busy {
            return;
        }
        self.used.store(second(), Ordering::Relaxed);
        if sign != Sign::Nothing {
            self.change(backend, |turn| turn.after(sign));
        }
    }

    /// Nobody sees its frames any more.
    pub(super) fn is_unseen(&self, backend: &Backend) {
        self.change(backend, Turn::unseen);
    }

    fn change(&self, backend: &Backend, change: impl Fn(Turn) -> Turn) {
        let changed = |word: u32| (word & OVER == 0).then(|| change(Turn::in_word(word)).put_into(word));
        if let Ok(before) = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, changed) {
            let before = Turn::in_word(before);
            count(backend, before.activity(), change(before).activity());
        }
    }

    /// How the session is used.
    pub(super) fn usage(&self) -> Usage {
        let activity = Turn::in_word(self.state.load(Ordering::Acquire)).activity();
        let seconds = match activity {
            Activity::Busy => 0,
            Activity::Idle | Activity::Unknown => second().saturating_sub(self.used.load(Ordering::Relaxed)),
        };
        Usage { activity, unused: Duration::from_secs(seconds.into()) }
    }
}

/// Counts a change at the backend.
fn count(backend: &Backend, before: Activity, after: Activity) {
    let by = |activity| i64::from(after == activity).saturating_sub(i64::from(before == activity));
    if before != after {
        backend.turns_changed(by(Activity::Busy), by(Activity::Idle));
    }
}
