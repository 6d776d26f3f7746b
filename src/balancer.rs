//! What all connections of one process share, and the two words that end them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::{ArcSwap, Guard};
use prometheus::IntGauge;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::closing::Closing;
use crate::fleet::{Greetings, Owners, Pins};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::workers::Workers;

/// The running balancer.
#[derive(Debug)]
pub struct Balancer {
    snapshot: ArcSwap<Snapshot>,
    /// Who has which session.
    pub owners: Arc<Owners>,
    /// Where sessions went.
    pub pins: Pins,
    /// What the fleet answers to `connect`.
    pub greetings: Greetings,
    /// What Prometheus is told.
    pub metrics: Arc<Metrics>,
    /// What openings hold.
    pub opening_memory: Arc<Budget>,
    /// Links kept for the running turns of clients that are gone.
    pub parked: AtomicUsize,
    /// Where connections live.
    pub workers: Workers,
    /// Every task of every connection.
    pub tasks: TaskTracker,
    /// Not ready any more, and nothing new is accepted; what is there goes on.
    pub draining: CancellationToken,
    /// Everything closes.
    pub closing: Closing,
    turns: AtomicUsize,
    /// Whether each backend of the first configuration has been probed once.
    probed: watch::Sender<bool>,
}

impl Balancer {
    /// A balancer with nothing connected yet.
    pub fn new(snapshot: Snapshot, metrics: Arc<Metrics>, workers: Workers) -> Arc<Self> {
        Arc::new(Self {
            owners: Owners::new(metrics.owners.clone()),
            pins: Pins::new(metrics.pins.clone()),
            greetings: Greetings::default(),
            opening_memory: Budget::new(metrics.opening_memory.clone()),
            parked: AtomicUsize::new(0),
            metrics,
            snapshot: ArcSwap::from_pointee(snapshot),
            workers,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            closing: Closing::default(),
            turns: AtomicUsize::new(0),
            probed: watch::Sender::new(false),
        })
    }

    /// The configuration in force, for a moment.
    pub fn now(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// The configuration in force, to keep across awaits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Puts the next configuration in force.
    pub fn commit(&self, next: Snapshot) {
        self.snapshot.store(Arc::new(next));
    }

    /// The next turn of every round robin.
    pub fn turn(&self) -> usize {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// Every backend has been probed once: openings need not wait any more.
    pub fn probed(&self) {
        self.probed.send_replace(true);
    }

    /// Whether [`probed`](Self::probed) has been called.
    pub fn is_probed(&self) -> bool {
        *self.probed.borrow()
    }

    /// Waits for [`probed`](Self::probed).
    pub async fn until_probed(&self) {
        let mut probed = self.probed.subscribe();
        // The sender lives as long as `self`.
        if probed.wait_for(|probed| *probed).await.is_err() {}
    }

    /// Whether some backend serves only clients that have sent it a good token: then nobody else may learn where sessions
    /// are.
    pub fn demands_token(&self) -> bool {
        self.now().members.iter().any(|member| member.backend.demands_token())
    }

    /// The version of every backend that is up, if it is the same one and no backend demands a token.
    pub fn agreed_version(&self) -> Option<Arc<str>> {
        if self.demands_token() {
            return None;
        }
        let now = self.now();
        let up = now.members.iter().filter(|member| member.backend.is_up());
        let mut versions = up.map(|member| member.backend.version());
        let agreed = versions.next()??;
        versions.all(|version| version.as_ref() == Some(&agreed)).then_some(agreed)
    }

    /// Whether new connections are welcome and would find a backend.
    pub fn is_ready(&self) -> bool {
        !self.draining.is_cancelled() && self.now().is_up()
    }
}

/// A bound on bytes that many connections share.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    gauge: IntGauge,
}

/// One connection's part of a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Nothing used yet.
    pub fn new(gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), gauge })
    }

    /// An empty share.
    pub fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), bytes: 0 }
    }
}

impl Share {
    /// How large it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes this share `bytes` large; false if all shares together would then exceed `bytes_max`. Shrinking always
    /// works.
    pub fn resize(&mut self, bytes: usize, bytes_max: Option<usize>) -> bool {
        if bytes == self.bytes {
            return true;
        }
        let used = &self.budget.used;
        if bytes > self.bytes {
            let more = bytes.saturating_sub(self.bytes);
            let before = used.fetch_add(more, Ordering::Relaxed);
            if bytes_max.is_some_and(|max| before.saturating_add(more) > max) {
                used.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        } else {
            used.fetch_sub(self.bytes.saturating_sub(bytes), Ordering::Relaxed);
        }
        self.bytes = bytes;
        self.budget.gauge.set(i64::try_from(used.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.resize(0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_their_budget_and_are_given_back() {
        let budget = Budget::new(IntGauge::new("g", "g").unwrap());
        let (mut a, mut b) = (budget.share(), budget.share());
        assert!(a.resize(60, Some(100)));
        assert!(!b.resize(41, Some(100)));
        assert!(b.resize(40, Some(100)));
        assert!(a.resize(10, Some(100)));
        assert!(b.resize(90, Some(100)));
        drop(a);
        assert_eq!(budget.gauge.get(), 90);
        drop(b);
        assert_eq!(budget.gauge.get(), 0);
    }
}
