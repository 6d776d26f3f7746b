//! What all connections of one process share, and the two signals that end them.

mod answers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::fleet::{Backend, Evidence, Greetings};
use crate::metrics::Metrics;
use crate::runtime::account::{Budget, FREE_BYTES, SHARE_BYTES};
use crate::runtime::descriptors;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::workers::Workers;
use crate::session::{Directory, Handovers, Journals, Pins, Revivals};
use crate::snapshot::Snapshot;

pub use answers::{Answers, SMALL_BYTES_MAX, Whole};

/// Bytes of backends' large frames that are held until they are whole, for all clients together.
const FRAMES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What all connections may hold beyond their shares: enough for one to hold an opening of full size, in a buffer that
/// has grown to twice that, whatever another does.
fn large_max(limits: &Limits) -> usize {
    limits.opening_bytes.saturating_mul(8)
}

/// The running balancer.
#[derive(Debug)]
pub struct Balancer {
    snapshot: ArcSwap<Snapshot>,
    /// Who has which session.
    pub directory: Arc<Directory>,
    /// What is kept to bring sessions back.
    pub journals: Arc<Journals>,
    /// How many are brought back on each server.
    pub revivals: Revivals,
    /// Where sessions went last.
    pub pins: Pins,
    /// Which servers see each other's sessions.
    pub evidence: Evidence,
    /// What the fleet answers to `connect`.
    pub greetings: Greetings,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Memory that clients make their connections hold.
    pub memory: Arc<Budget>,
    /// Memory of backends' large frames, until clients have taken them.
    pub frame_memory: Arc<Budget>,
    /// Answers of the whole fleet to clients' questions.
    pub answers: Answers,
    /// Links kept for the running turns of clients that are gone.
    pub parked: AtomicUsize,
    /// How a parked link is told that a client comes back to its session.
    pub handovers: Arc<Handovers>,
    /// Where connections live.
    pub workers: Workers,
    /// Every task of every connection.
    pub tasks: TaskTracker,
    /// Cancelled: not ready any more, and nothing new is accepted; open connections go on.
    pub draining: CancellationToken,
    /// The end of all connections.
    pub shutdown: Shutdown,
    turns: AtomicUsize,
    /// Whether each backend of the first configuration has been probed once.
    probed: watch::Sender<bool>,
}

impl Balancer {
    /// A balancer with nothing connected yet.
    pub fn new(snapshot: Snapshot, metrics: Arc<Metrics>, workers: Workers) -> Arc<Self> {
        let memory = snapshot.config.limits.opening_memory;
        Arc::new(Self {
            directory: Directory::new(metrics.owners.clone()),
            journals: Journals::new(&metrics, &snapshot.config.sessions),
            revivals: Revivals::default(),
            pins: Pins::new(metrics.pins.clone()),
            evidence: Evidence::default(),
            greetings: Greetings::default(),
            memory: Budget::of_shares(
                metrics.opening_memory.clone(),
                FREE_BYTES,
                SHARE_BYTES,
                (memory, large_max(&snapshot.config.limits)),
            ),
            frame_memory: Budget::of_shares(metrics.frame_memory.clone(), 0, 0, (memory, FRAMES_BYTES_MAX)),
            answers: Answers::new(metrics.answer_memory.clone()),
            parked: AtomicUsize::new(0),
            handovers: Arc::default(),
            metrics,
            snapshot: ArcSwap::from_pointee(snapshot),
            workers,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            shutdown: Shutdown::default(),
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
        let limits = &next.config.limits;
        self.memory.set_max(limits.opening_memory, large_max(limits));
        self.frame_memory.set_max(limits.opening_memory, FRAMES_BYTES_MAX);
        self.journals.set(&next.config.sessions);
        descriptors::commit(&next.config.demand(next.servers()));
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

    /// Whether some backend serves only clients that have sent it a good token: then no other client may learn where
    /// sessions are, nor act on them. A backend that is down, or has left, counts only while none is up.
    pub fn demands_token(&self) -> bool {
        let now = self.now();
        let up = now.is_up();
        let left = now.retired.iter().filter(|_| !up);
        let backends = now.members.iter().chain(left).map(|member| &member.backend);
        backends.filter(|backend| !up || backend.is_up()).any(|backend| backend.demands_token())
    }

    /// Whether `backend` may be sent a client's frames. While the fleet demands a token, frames of a client that is not
    /// `authenticated` go only to backends that demand it: they refuse them, and the others would act on them.
    pub fn may_hear(&self, backend: &Backend, authenticated: bool) -> bool {
        authenticated || backend.demands_token() || !self.demands_token()
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
