//! One backend: its name, what probes last said, what it carries, and where to ask it something.
//!
//! A backend lives as long as anything refers to it. A reload keeps the same value for the same name and address, so
//! health, counts and the standing connection outlast it; a removed backend stays until its last connection has gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use super::health::Health;
use super::history::History;
use crate::config::BackendTls;
use crate::metrics::BackendSeries;

/// Questions waiting for one backend's standing connection; a further one waits outside.
const ASKS_MAX: usize = 1024;

/// How often a question may outlast its patience while others are answered.
const PATIENCES_MAX: u32 = 8;
/// Lookups of one backend's name under way. A slow resolver holds on to a thread for each, long after whoever dialled has
/// given up.
const LOOKUPS_MAX: usize = 8;

/// A question, sent over the standing query connection.
#[derive(Debug)]
pub struct Ask {
    /// A read.
    pub method: Box<str>,
    /// About what.
    pub params: Value,
    /// Dropped without a word: no answer.
    pub answer: oneshot::Sender<Answer>,
}

/// What a backend answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// `result`.
    Result(Value),
    /// `error`: its code.
    Error(i64),
}

/// What the last probes said.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Up or down.
    pub health: Health,
    /// A request without a good `connect` was answered `-32001`: who has not connected learns nothing here.
    pub demands_token: bool,
    /// It does not take our token, or we have none: it can be probed but not asked.
    pub mute: bool,
    /// As it says.
    pub version: Option<Arc<str>>,
    /// Since when it has this health; `None` before the first verdict.
    pub since: Option<Instant>,
    /// Why the last failed probe failed; `None` once a backend that is up has answered another.
    pub error: Option<Arc<str>>,
    /// When that was.
    pub failed: Option<Instant>,
    /// How long the last answered probe took.
    pub probe: Option<Duration>,
}

/// One CLI server.
#[derive(Debug)]
pub struct Backend {
    name: Arc<str>,
    address: Arc<str>,
    tls: ArcSwapOption<BackendTls>,
    series: Arc<BackendSeries>,
    connections: AtomicUsize,
    /// 0: no bound.
    connections_max: AtomicUsize,
    sessions: AtomicUsize,
    answers: AtomicUsize,
    standing: watch::Sender<Standing>,
    history: History,
    up: AtomicBool,
    suspect: AtomicBool,
    made: Instant,
    newcomer: AtomicBool,
    /// When it came up, in microseconds since it was made; zero if it was found up.
    came_up: AtomicU64,
    retired: AtomicBool,
    over: AtomicBool,
    nudge: Notify,
    lookups: Arc<Semaphore>,
    asks: mpsc::Sender<Ask>,
}

impl Backend {
    /// A backend nobody has probed, and the questions its attendant will have to answer.
    pub fn new(name: &str, address: &str, series: Arc<BackendSeries>) -> (Arc<Self>, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let backend = Self {
            name: name.into(),
            address: address.into(),
            tls: ArcSwapOption::empty(),
            series,
            connections: AtomicUsize::new(0),
            connections_max: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
            standing: watch::Sender::new(Standing::default()),
            history: History::default(),
            up: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            made: Instant::now(),
            newcomer: AtomicBool::new(false),
            came_up: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            over: AtomicBool::new(false),
            nudge: Notify::new(),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            asks,
        };
        (Arc::new(backend), asked)
    }

    /// The configured name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// `host:port` as configured.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// The TLS it speaks, if any.
    pub fn tls(&self) -> Option<Arc<BackendTls>> {
        self.tls.load_full()
    }

    /// Connections made from now on speak this; those that are there go on.
    pub fn speak(&self, tls: Option<Arc<BackendTls>>) {
        self.series.certificate_expires(tls.as_ref().and_then(|tls| tls.expiry()));
        self.tls.store(tls);
    }

    /// Room for lookups of its name.
    pub fn lookups(&self) -> &Arc<Semaphore> {
        &self.lookups
    }

    /// Its series.
    pub fn series(&self) -> &BackendSeries {
        &self.series
    }

    /// What the last probes said, now and whenever it changes; a probe that only took another time wakes nobody.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// What the last probes took.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Changes what probes say.
    pub fn stand(&self, change: impl FnOnce(&mut Standing)) {
        self.standing.send_if_modified(|standing| {
            let health = standing.health;
            change(standing);
            if standing.health == Health::Up && self.warms_up_after(health) {
                let micros = u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.came_up.store(micros.max(1), Ordering::Release);
            }
            self.up.store(standing.health == Health::Up, Ordering::Release);
            let changed = standing.health != health;
            if changed {
                standing.since = Some(Instant::now());
            }
            changed
        });
        self.series.up.set(i64::from(self.is_up()));
    }

    /// It joins a fleet that is running: it warms up from its first good probe on. One that a balancer finds up at its own
    /// start may have been warm for days.
    pub fn newcomer(&self) {
        self.newcomer.store(true, Ordering::Release);
    }

    fn warms_up_after(&self, before: Health) -> bool {
        match before {
            Health::Up => false,
            Health::Down => true,
            Health::Unknown => self.newcomer.load(Ordering::Acquire),
        }
    }

    /// How long ago it came up; `None` if it was found up.
    pub fn up_for(&self) -> Option<Duration> {
        let came_up = Some(self.came_up.load(Ordering::Acquire)).filter(|micros| *micros > 0)?;
        Some(self.made.elapsed().saturating_sub(Duration::from_micros(came_up)))
    }

    /// Whether probes say it is up.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// What probes say.
    pub fn health(&self) -> Health {
        self.standing.borrow().health
    }

    /// Whether it serves only clients that have sent a good token.
    pub fn demands_token(&self) -> bool {
        self.standing.borrow().demands_token
    }

    /// The version it says it has.
    pub fn version(&self) -> Option<Arc<str>> {
        self.standing.borrow().version.clone()
    }

    /// A dial failed or an answer did not come: nothing new is placed here and nothing asked until a probe is answered.
    /// The first time, one is wanted at once.
    pub fn suspect(&self) {
        if !self.suspect.swap(true, Ordering::AcqRel) {
            self.nudge.notify_one();
        }
    }

    /// A probe was answered.
    pub fn trust(&self) {
        self.suspect.store(false, Ordering::Release);
    }

    /// Whether a dial failed since the last answered probe.
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// Waits until a probe is wanted at once.
    pub async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// It has left the configuration; it is over when its last link has gone.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.nudge.notify_one();
    }

    /// It is in the configuration (again); false if it is over already and needs a successor.
    pub fn enlist(&self) -> bool {
        self.retired.store(false, Ordering::Release);
        !self.over.load(Ordering::Acquire)
    }

    /// Whether it has left the configuration and nothing uses it. Once true it stays true: its attendant has gone.
    pub fn is_over(&self) -> bool {
        if self.retired.load(Ordering::Acquire) && self.connections() == 0 {
            self.over.store(true, Ordering::Release);
        }
        self.over.load(Ordering::Acquire)
    }

    /// Whether it has left the configuration.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Links open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// From now on no more links than this on clients' behalf.
    pub fn bound(&self, connections: Option<usize>) {
        self.connections_max.store(connections.unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether it has as many links as it may.
    pub fn is_full(&self) -> bool {
        let most = self.connections_max.load(Ordering::Relaxed);
        most > 0 && self.connections() >= most
    }

    /// Sessions owned now.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// A session has come.
    pub(super) fn session_added(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        self.series.sessions_active.inc();
    }

    /// A session has left.
    pub(super) fn session_removed(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        self.series.sessions_active.dec();
    }

    /// Asks something. `None` = no answer will come: the connection is lost, or nothing at all was answered for as
    /// long as `patience`; then the backend is not asked again before it answers a probe. One that answers others is
    /// merely busy, and waited for, but not for ever: it may be this question alone that it has no answer to.
    pub async fn ask(&self, method: &str, params: Value, patience: Duration) -> Option<Answer> {
        let asking = async {
            let (answer, answered) = oneshot::channel();
            self.asks.send(Ask { method: method.into(), params, answer }).await.ok()?;
            answered.await.ok()
        };
        tokio::pin!(asking);
        for _ in 0..PATIENCES_MAX {
            let before = self.answers.load(Ordering::Relaxed);
            if let Ok(answer) = tokio::time::timeout(patience, &mut asking).await {
                return answer;
            }
            if self.answers.load(Ordering::Relaxed) == before {
                self.suspect();
                return None;
            }
        }
        tracing::warn!(backend = %self.name, method, "a backend answers others, but not this question");
        None
    }

    /// A question was answered.
    pub fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }
}

/// A counted use of a backend: every open link holds one.
#[derive(Debug)]
pub struct Lease(Arc<Backend>);

impl Lease {
    /// Counts one more link.
    pub fn new(backend: &Arc<Backend>) -> Self {
        backend.connections.fetch_add(1, Ordering::Relaxed);
        backend.series.connections_active.inc();
        Self(Arc::clone(backend))
    }

    /// Counts one more link, if there may be one more.
    pub fn within_bound(backend: &Arc<Backend>) -> Option<Self> {
        let most = backend.connections_max.load(Ordering::Relaxed);
        let lease = Self::new(backend);
        // Counted first: of two that come at once, none slips by.
        (most == 0 || backend.connections() <= most).then_some(lease)
    }

    /// Whose.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.series.connections_active.dec();
        if self.0.connections.fetch_sub(1, Ordering::Relaxed) == 1 && self.0.is_retired() {
            self.0.nudge.notify_one();
        }
    }
}
