//! One backend: its name, the one server behind it, what probes last said, what it carries, and where to ask it something.
//!
//! A backend is one server at one socket address for as long as it exists: all that is known of it (health, owners, what
//! it answered) is about that server. When a name resolves to another address, that is another backend. A reload keeps
//! the same value for the same name and server, so health, counts and the standing connection outlast it. A removed
//! backend is *over* when its last connection has gone: then its series are removed. It is still probed and asked until it
//! is *forgotten*, which `control/forget` decides.

mod held;
mod lease;
mod life;
mod unanswered;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};

use super::asks::{Asks, Questions};
use super::health::Health;
use super::history::History;
use super::moved::Moved;
use super::unreachable::Unreachable;
use crate::config::BackendTls;
use crate::metrics::BackendSeries;
use held::Held;

pub use lease::{Lease, Leased};
pub use unanswered::UNANSWERED_TOLD;

/// What the last probes said.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Up or down.
    pub health: Health,
    /// A request without a good `connect` was answered `-32001`: it answers only clients that have authenticated.
    pub demands_token: bool,
    /// It refuses sessile's token, or sessile has none: it can be probed but not asked.
    pub mute: bool,
    /// It answers on the connections it has, and accepts no new one.
    pub takes_no_more: bool,
    /// The version that it reports.
    pub version: Option<Arc<str>>,
    /// Since when it has this health; `None` before the first verdict.
    pub since: Option<Instant>,
    /// Why the last failed probe failed; `None` once a backend that is up has answered another.
    pub error: Option<Arc<str>>,
    /// When that probe failed.
    pub failed: Option<Instant>,
    /// How long the last answered probe took.
    pub probe: Option<Duration>,
}

/// The next number of a server's process.
fn next_life() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

/// One CLI server.
#[derive(Debug)]
pub struct Backend {
    name: Arc<str>,
    address: Arc<str>,
    socket: Option<SocketAddr>,
    server: Arc<str>,
    tls: ArcSwapOption<BackendTls>,
    series: Arc<BackendSeries>,
    /// Its voice in its series: of two backends of one name, gauges are about the one that was enlisted last.
    voice: AtomicU64,
    connections: AtomicUsize,
    /// 0: no bound.
    connections_max: AtomicUsize,
    held: Held,
    standing: watch::Sender<Standing>,
    history: History,
    /// Of its server: backends of one server share it.
    moved: OnceLock<Arc<Moved>>,
    up: AtomicBool,
    takes_no_more: AtomicBool,
    suspect: AtomicBool,
    /// A number for the server's process that no other process has.
    life: AtomicU64,
    made: Instant,
    newcomer: AtomicBool,
    /// When it came up, in microseconds since it was made; zero if it was found up.
    came_up: AtomicU64,
    /// When a probe was answered last, in microseconds since it was made; zero if none was.
    heard: AtomicU64,
    retired: AtomicBool,
    over: AtomicBool,
    forgotten: AtomicBool,
    nudge: Notify,
    doubt: Notify,
    /// Questions in a row without an answer.
    unanswered: AtomicUsize,
    asks: Asks,
}

impl Backend {
    /// A backend that has not been probed, and the questions for the tasks of its connections. Without an IP address
    /// and a port as its address, it has no server yet.
    pub fn new(name: &str, address: &str, series: Arc<BackendSeries>) -> (Arc<Self>, Questions) {
        Self::at(name, address, address.parse().ok(), series)
    }

    /// The same with the server that its address stands for; `None`: its name has not been resolved.
    pub fn at(
        name: &str,
        address: &str,
        socket: Option<SocketAddr>,
        series: Arc<BackendSeries>,
    ) -> (Arc<Self>, Questions) {
        let (asks, asked) = Asks::new();
        let backend = Self {
            name: name.into(),
            address: address.into(),
            socket,
            server: socket.map_or_else(|| address.into(), |socket| socket.to_string().into()),
            tls: ArcSwapOption::empty(),
            voice: AtomicU64::new(series.take_voice()),
            series,
            connections: AtomicUsize::new(0),
            connections_max: AtomicUsize::new(0),
            held: Held::default(),
            standing: watch::Sender::new(Standing::default()),
            history: History::default(),
            moved: OnceLock::new(),
            up: AtomicBool::new(false),
            takes_no_more: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            life: AtomicU64::new(next_life()),
            made: Instant::now(),
            newcomer: AtomicBool::new(false),
            came_up: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            over: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
            nudge: Notify::new(),
            doubt: Notify::new(),
            unanswered: AtomicUsize::new(0),
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

    /// Where its server listens; `None`: its name has not been resolved.
    pub fn socket(&self) -> Option<SocketAddr> {
        self.socket
    }

    /// Its server, as text: the same for two backends of one server.
    pub fn server(&self) -> &Arc<str> {
        &self.server
    }

    /// The process of the server, as far as it can be told from the one before: what was learned about one process does
    /// not count for the next.
    pub fn process(&self) -> String {
        format!("{}#{}", self.server, self.life.load(Ordering::Acquire))
    }

    /// Its standing connection was lost and there is a new one: it may be another process by now.
    pub fn reborn(&self) {
        self.life.store(next_life(), Ordering::Release);
        self.forget_unanswered();
    }

    /// The TLS it speaks, if any.
    pub fn tls(&self) -> Option<Arc<BackendTls>> {
        self.tls.load_full()
    }

    /// New connections use this; open ones go on as they are.
    pub fn set_tls(&self, tls: Option<Arc<BackendTls>>) {
        self.series.certificate_expires(tls.as_ref().and_then(|tls| tls.expiry()));
        self.tls.store(tls);
    }

    /// Its series.
    pub fn series(&self) -> &BackendSeries {
        &self.series
    }

    /// What the last probes said, now and whenever it changes. A change of the probe's duration alone wakes nobody.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// The durations of the last probes.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Sessions that went on elsewhere while its server was not up.
    pub fn moved(&self) -> &Arc<Moved> {
        self.moved.get_or_init(Arc::default)
    }

    /// `same` was, or is, a backend of the same server: the two share what has moved off it. To be called before
    /// anything else is asked of this one.
    pub fn shares_moved_of(&self, same: &Self) {
        if same.server == self.server {
            self.moved.get_or_init(|| Arc::clone(same.moved()));
        }
    }

    /// Changes the standing.
    pub fn stand(&self, change: impl FnOnce(&mut Standing)) {
        self.standing.send_if_modified(|standing| {
            let (health, took_no_more) = (standing.health, standing.takes_no_more);
            change(standing);
            if standing.health == Health::Up && self.warms_up_after(health) {
                self.came_up.store(self.age(), Ordering::Release);
            }
            self.up.store(standing.health == Health::Up, Ordering::Release);
            self.takes_no_more.store(standing.takes_no_more, Ordering::Release);
            if standing.health != health {
                standing.since = Some(Instant::now());
            }
            standing.health != health || standing.takes_no_more != took_no_more
        });
        self.tell_up();
        if !self.is_up() {
            self.forget_unanswered();
        }
    }

    fn tell_up(&self) {
        let unanswered = i64::try_from(self.unanswered()).unwrap_or(i64::MAX);
        self.as_voice(|series| {
            series.up.set(i64::from(self.is_up()));
            series.unanswered.set(unanswered);
        });
    }

    /// Sets gauges, if they are about this backend.
    pub fn as_voice(&self, set: impl FnOnce(&BackendSeries)) {
        self.series.as_voice(self.voice.load(Ordering::Acquire), set);
    }

    /// It joins a running fleet: its slow start begins with its first good probe. A backend that is up when the
    /// balancer starts may have been up for days, and has no slow start.
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
        Some(self.since(&self.came_up)).filter(|_| self.came_up.load(Ordering::Acquire) > 0)
    }

    /// How long it has answered no probe: since the last one, or since it was made.
    pub fn silent_for(&self) -> Duration {
        self.since(&self.heard)
    }

    /// In microseconds, and never zero.
    fn age(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    fn since(&self, age: &AtomicU64) -> Duration {
        self.made.elapsed().saturating_sub(Duration::from_micros(age.load(Ordering::Acquire)))
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

    /// Sessile itself could not reach it: until a probe is answered, nothing new is placed here if another backend will
    /// do. The first time this hastens the next probe.
    pub fn mark_suspect(&self, _: Unreachable) {
        if !self.suspect.swap(true, Ordering::AcqRel) {
            self.hasten_probe();
            self.doubt.notify_one();
        }
    }

    /// Something went wrong here in which a client had a part: that is no evidence, but a reason to probe soon. However
    /// often this is called, there is a minimum time between two probes.
    pub fn hasten_probe(&self) {
        self.nudge.notify_one();
    }

    /// A probe was answered.
    pub fn trust(&self) {
        self.suspect.store(false, Ordering::Release);
        self.heard.store(self.age(), Ordering::Release);
    }

    /// Waits until a dial has failed: its name may resolve to another server by now.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Whether it was marked since the last answered probe.
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// Waits until a probe is wanted at once.
    pub async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// Links open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Bounds the links on clients' behalf from now on.
    pub fn set_connections_max(&self, connections: Option<usize>) {
        self.connections_max.store(connections.unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether it has as many links as it may, or the server accepts no more.
    pub fn is_full(&self) -> bool {
        let most = self.connections_max.load(Ordering::Relaxed);
        most > 0 && self.connections() >= most || self.takes_no_more.load(Ordering::Acquire)
    }

    /// Whether questions can still be answered: the task of its connection has not ended.
    pub fn is_attended(&self) -> bool {
        self.asks.is_attended()
    }

    /// A question of sessile's own was answered.
    pub fn answered(&self) {
        self.asks.answered();
    }
}
