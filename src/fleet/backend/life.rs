//! How a backend leaves: in the configuration, retired, over, forgotten.
//!
//! Retired, it has left the configuration and keeps its connections. Over, it has none and its series are gone. It
//! is still probed and asked then, since it may have sessions of other balancers, until it is forgotten.

use std::sync::atomic::Ordering;

use super::Backend;

impl Backend {
    /// It has left the configuration; it is over when its last link has gone.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.nudge.notify_one();
    }

    /// It is in the configuration (again); false if it is over already and needs a successor.
    pub fn enlist(&self) -> bool {
        if self.over.load(Ordering::Acquire) {
            return false;
        }
        self.forgotten.store(false, Ordering::Release);
        if self.retired.swap(false, Ordering::AcqRel) {
            self.voice.store(self.series.take_voice(), Ordering::Release);
            self.tell_up();
        }
        true
    }

    /// Whether it has left the configuration and nothing uses it. Once true it stays true: its series have gone.
    pub fn is_over(&self) -> bool {
        if self.retired.load(Ordering::Acquire)
            && self.connections() == 0
            && !self.over.swap(true, Ordering::AcqRel)
        {
            self.series.leave();
        }
        self.over.load(Ordering::Acquire)
    }

    /// From now on it is not asked any more once it is over: it holds no session, has been silent for long, or has a
    /// successor.
    pub fn forget(&self) {
        self.forgotten.store(true, Ordering::Release);
        self.nudge.notify_one();
    }

    /// Whether nothing will be asked of it any more: its attendant may end. A backend that is over may have connections
    /// again, for sessions that were located there.
    pub fn is_forgotten(&self) -> bool {
        self.is_over() && self.forgotten.load(Ordering::Acquire) && self.connections() == 0
    }

    /// Whether it has left the configuration.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if !*self.over.get_mut() {
            self.series.leave();
        }
    }
}
