//! The switch: every frame of a client to the backend of its own session.
//!
//! One task per client carries all its upstreams. Whatever can be done without waiting is done in [`Switch::turn`], which
//! is polled; whatever must wait (placing a session, dialling, asking the fleet) is an errand, and only the frames that
//! depend on it wait with it. Queues in both directions are bounded, and a full one stops reading from the peer that
//! fills it. Frames reach the client whole: while one upstream is in the middle of a large frame, the others wait.

mod client;
mod errand;
mod merge;
mod method;
mod provider;
mod route;
mod table;
mod upstream;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::balancer::{Balancer, Share};
use crate::close::{At as Where, By, Close, Why};
use crate::config::{Config, Listener};
use crate::fleet::Backend;
use crate::link::StateFrame;
use crate::metrics::Record;
use crate::net::{Stream, farewell};
use crate::place::Refused;
use crate::wire::{Id, reply};

use crate::proxy::inlet::{Frame, Inlet};
use crate::proxy::queue::Queue;
use errand::{Errand, News};
use table::{At, Table};
use upstream::Upstream;

/// State requests that may be asked again of another backend.
const UNANSWERED_MAX: usize = 8;
/// Errands that one client may have on their way; a frame that needs a further one waits.
const ERRANDS_MAX: usize = 256;
/// Bytes of all frames that wait for errands.
const WAITING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Answers of the whole fleet that one client may have in the making; a further one is not begun meanwhile.
const MERGING_MAX: usize = 16;
/// Bytes waiting for one peer, beyond which nothing more is read for it.
const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// One client and all its upstreams.
struct Switch<'a> {
    balancer: Arc<Balancer>,
    config: Arc<Config>,
    listener: &'a Listener,
    record: &'a mut Record,
    client: Stream,
    inlet: Inlet,
    out: Queue,
    upstreams: BTreeMap<At, Box<Upstream>>,
    upstream_last: At,
    /// The upstream that is in the middle of a frame to the client.
    speaker: Option<At>,
    /// Frames of sessile's own that wait for the end of the speaker's.
    aside: Queue,
    table: Table,
    providers: provider::Providers,
    errands: FuturesUnordered<Pin<Box<dyn Future<Output = News> + Send>>>,
    errand_last: u64,
    /// Frames that wait for an errand.
    waiting: HashMap<u64, Waiting>,
    /// The errand that brings the first upstream.
    scouting: Option<u64>,
    /// Where the rest of the client's large frame goes.
    target: Option<Target>,
    /// A frame of the client whose way is full or not free yet.
    held: Option<Box<Frame>>,
    /// What of the client is counted against the memory of all openings.
    share: Share,
    /// Answers of the whole fleet in the making.
    merging: usize,
    /// Something could not move in this turn for want of room, or has to be looked at once more.
    barred: bool,
    /// The state request in flight: nothing else is sent before its answer.
    busy: Option<Box<(Id, StateFrame)>>,
    /// By when it must be answered: one timer, however many such requests a client makes.
    overdue: Option<Pin<Box<Sleep>>>,
    /// State requests that a backend took with it.
    unanswered: usize,
    state: Arc<Vec<StateFrame>>,
    version: Option<Box<[u8]>>,
    authenticated: bool,
    /// The client has sent its last byte.
    ended: bool,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Runs while no byte moves, where the configuration bounds that.
    idle: Option<Pin<Box<Sleep>>>,
}

/// What waits for an errand, in order.
#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Waiter>,
    bytes: usize,
}

/// A frame that waits, or more of the one before.
enum Waiter {
    Frame(Box<Frame>),
    More(Bytes),
}

impl Waiting {
    /// Whether a request with this id is among them.
    fn has(&self, id: &Id) -> bool {
        let is_it = |waiter: &Waiter| match waiter {
            Waiter::Frame(frame) => frame.envelope.method.is_some() && frame.envelope.id.as_ref() == Some(id),
            Waiter::More(_) => false,
        };
        self.pieces.iter().any(is_it)
    }

    /// The frames, to be refused.
    fn into_frames(self) -> impl Iterator<Item = Frame> {
        self.pieces.into_iter().filter_map(|waiter| match waiter {
            Waiter::Frame(frame) => Some(*frame),
            Waiter::More(_) => None,
        })
    }
}

/// Where the rest of a large frame goes.
#[derive(Clone, Debug)]
enum Target {
    Upstream(At),
    Errand(u64),
    Nowhere,
}

/// Carries a client's frames until it leaves or has to.
pub async fn switch(
    balancer: &Arc<Balancer>,
    listener: &Listener,
    client: Stream,
    record: &mut Record,
) -> Close {
    let config = Arc::clone(&balancer.now().config);
    let opening = Instant::now().checked_add(config.timeouts.opening);
    let mut switch = Switch {
        balancer: Arc::clone(balancer),
        listener,
        record,
        client,
        inlet: Inlet::new(By::Client, BytesMut::new()),
        out: Queue::default(),
        upstreams: BTreeMap::new(),
        upstream_last: 0,
        speaker: None,
        aside: Queue::default(),
        table: Table::default(),
        providers: provider::Providers::default(),
        errands: FuturesUnordered::new(),
        errand_last: 0,
        waiting: HashMap::new(),
        scouting: None,
        target: None,
        held: None,
        share: balancer.opening_memory.share(),
        merging: 0,
        barred: false,
        busy: None,
        overdue: None,
        unanswered: 0,
        state: Arc::default(),
        version: None,
        authenticated: false,
        ended: false,
        deadline: opening.map(|due| Box::pin(sleep_until(due))),
        idle: config.timeouts.idle.map(|limit| Box::pin(sleep(limit))),
        config,
    };
    let (closes, peer) = (Arc::clone(balancer), switch.record.client());
    // As an errand it is looked at only when it happens, not whenever a byte moves.
    switch.errands.push(Box::pin(async move {
        closes.closing.reaches(peer).await;
        News::Closing
    }));
    let close = poll_fn(|cx| switch.poll(cx)).await;
    // Boxed: the short end must not make room in the long life.
    Box::pin(switch.end(close)).await;
    close
}

impl Switch<'_> {
    /// Turns until nothing can move any more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        let mut moved = false;
        loop {
            self.barred = false;
            match self.turn(cx) {
                // What had no room may have it now. What could move has: it is not asked again.
                Ok(true) if self.barred => moved = true,
                Ok(last) => {
                    moved |= last;
                    break;
                }
                Err(close) => return Poll::Ready(close),
            }
        }
        if self.ended
            && self.held.is_none()
            && self.waiting.is_empty()
            && self.upstreams.values().all(|upstream| upstream.is_flushed())
        {
            return Poll::Ready(Close::new(By::Client, Where::Relay, Why::Fin));
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Close::new(By::Client, Where::Relay, Why::Timeout));
        }
        if let (Some(idle), Some(limit)) = (&mut self.idle, self.config.timeouts.idle) {
            if let (true, Some(due)) = (moved, Instant::now().checked_add(limit)) {
                idle.as_mut().reset(due);
            }
            if idle.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Close::new(By::Balancer, Where::Relay, Why::Timeout));
            }
        }
        Poll::Pending
    }

    /// One round over everything that may move; whether something did. Whoever stops before its socket says so marks
    /// the round as `barred`.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        let mut moved = false;
        while let Poll::Ready(Some(news)) = self.errands.poll_next_unpin(cx) {
            self.heard(news)?;
            moved = true;
        }
        if self.busy.is_some() && self.overdue.as_mut().is_some_and(|due| due.as_mut().poll(cx).is_ready()) {
            self.overdue()?;
            moved = true;
        }
        moved |= self.turn_client(cx)?;
        let mut next = 0;
        while let Some((&at, _)) = self.upstreams.range(next..).next() {
            moved |= self.turn_upstream(at, cx)?;
            next = at.saturating_add(1);
        }
        match self.out.poll_flush(&mut self.client, cx) {
            Poll::Ready(Ok(wrote)) => Ok(moved | wrote),
            Poll::Ready(Err(error)) => Err(Close::io(By::Client, Where::Relay, &error)),
            Poll::Pending => Ok(moved),
        }
    }

    /// Sets off on an errand.
    fn send_out(&mut self, errand: impl FnOnce(u64) -> Errand) -> u64 {
        self.errand_last = self.errand_last.saturating_add(1);
        let number = self.errand_last;
        self.errands.push(errand(number));
        // It sets off when it is looked at.
        self.barred = true;
        number
    }

    /// The backends this client is connected to.
    fn backends(&self) -> Vec<Arc<Backend>> {
        self.upstreams.values().map(|upstream| Arc::clone(upstream.backend())).collect()
    }

    /// Queues a frame of sessile's own for the client: between frames, never inside one.
    fn say_own(&mut self, frame: Vec<u8>) {
        if self.speaker.is_some() {
            self.aside.push(frame.into());
        } else {
            self.say(frame.into());
        }
    }

    /// The speaker's frame has ended.
    fn fall_silent(&mut self) {
        self.speaker = None;
        let mut aside = std::mem::take(&mut self.aside);
        while let Some(frame) = aside.pop() {
            self.say(frame);
        }
    }

    /// Queues bytes of a backend for the client.
    fn say(&mut self, bytes: Bytes) {
        self.record.add_to_client(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.out.push(bytes);
    }

    /// Answers a request with a refusal; the connection goes on.
    fn refuse(&mut self, id: Option<&Id>, refused: &Refused) {
        let Some(id) = id else { return };
        let Refused { refusal, message, retry_after } = refused;
        self.balancer.metrics.errors_answered.with_label_values(&[refusal.label()]).inc();
        self.say_own(reply::error(id, *refusal, message, *retry_after));
    }

    /// Answers everything that waits for anything.
    fn refuse_all(&mut self, refused: &Refused) {
        let flying: Vec<Id> = self.table.flights.keys().cloned().collect();
        let waiting = std::mem::take(&mut self.waiting);
        let frames =
            waiting.into_values().flat_map(Waiting::into_frames).chain(self.held.take().map(|held| *held));
        let ids: Vec<Id> = frames.filter_map(|frame| frame.envelope.id).chain(flying).collect();
        for id in ids {
            self.refuse(Some(&id), refused);
        }
    }

    /// Parts from everybody.
    async fn end(mut self, close: Close) {
        self.part().await;
        if close.by == By::Client && self.config.timeouts.linger.is_some() {
            self.park_all();
        }
        let Switch { client, .. } = self;
        if close.by != By::Client || close.why != Why::Fin {
            farewell(client).await;
        }
    }

    /// Sends what is queued for the client, for a moment, and closes the books.
    async fn part(&mut self) {
        const FAREWELL: Duration = Duration::from_secs(2);
        let flights = i64::try_from(self.table.flights.len()).unwrap_or(i64::MAX);
        self.balancer.metrics.requests_in_flight.sub(flights);
        self.table.flights.clear();
        let flushing = poll_fn(|cx| self.out.poll_flush(&mut self.client, cx));
        if !matches!(tokio::time::timeout(FAREWELL, flushing).await, Ok(Ok(_))) {
            tracing::debug!("a client did not take its last bytes");
        }
    }
}
