//! The switch: every frame of a client to the backend of its own session.
//!
//! One task per client carries all its upstreams. Whatever can be done without waiting is done in [`Switch::turn`], which
//! is polled; whatever must wait (placing a session, dialling, asking the fleet) is a job, and only the frames that
//! depend on it wait with it. Queues in both directions are bounded, and a full one stops reading from the peer that
//! fills it. Frames reach the client whole: while one upstream is in the middle of a large frame, the others wait.

mod births;
mod bounds;
mod calls;
mod client;
mod in_flight;
mod job;
mod jobs;
mod loss;
mod merge;
mod opened;
mod parting;
mod provider;
mod act;
mod plan;
mod slow;
mod stall;
mod state_requests;
mod table;
mod union;
mod upstream;
mod whole;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::balancer::Balancer;
use crate::close::{At as Where, By, Close, Why};
use crate::config::{Config, Listener};
use crate::fleet::Backend;
use crate::metrics::Record;
use crate::net::Stream;
use crate::place::{Dials, Refused};
use crate::runtime::account::Charge;
use crate::wire::{Id, reply};

use crate::proxy::inlet::{Frame, Inlet, apart};
use crate::proxy::queue::{Queue, Queued};
use crate::proxy::rules::Rules;
use in_flight::At;
use job::{Event, Job};
use jobs::Jobs;
use stall::Delay;
use state_requests::StateRequests;
use table::Table;
use upstream::Upstream;

/// Bytes of all frames that wait for jobs.
const WAITING_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes waiting for one peer, beyond which nothing more is read for it.
const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// One client and all its upstreams.
struct Switch<'a> {
    balancer: Arc<Balancer>,
    config: Arc<Config>,
    rules: Rules<'a>,
    record: &'a mut Record,
    client: Stream,
    inlet: Inlet,
    out: Queue,
    upstreams: BTreeMap<At, Box<Upstream>>,
    /// Upstreams that are being made.
    dials: Arc<Dials>,
    upstream_last: At,
    /// The upstream that is in the middle of a frame to the client.
    speaker: Option<Box<Delay>>,
    /// Frames of sessile's own that wait for the end of the speaker's.
    aside: Queue,
    table: Table,
    providers: provider::Providers,
    jobs: Jobs,
    /// Frames that wait for a job.
    waiting: HashMap<u64, Waiting>,
    /// The job that brings the first upstream.
    scouting: Option<u64>,
    /// Where the rest of the client's large frame goes.
    target: Option<Target>,
    /// A frame of the client whose way is full or not free yet.
    held: Option<Box<Frame>>,
    /// For frames of the client that wait. Everything else that is held for it has charges of its own to the same account.
    parked: Charge,
    /// What it asks of the whole fleet.
    calls: calls::Calls,
    /// Something could not move in this turn for want of room, or has to be looked at once more.
    barred: bool,
    state: StateRequests,
    /// The client has sent its last byte.
    ended: bool,
    deadline: Option<Pin<Box<Sleep>>>,
    /// When upstreams that may be stalling are looked at.
    stalls: Option<Pin<Box<Sleep>>>,
    /// Runs while no byte moves, where the configuration bounds that.
    idle: Option<Pin<Box<Sleep>>>,
}

/// What waits for a job, in order.
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

    /// More of the frame that came last.
    fn push(&mut self, more: Bytes) {
        let more = apart(more);
        self.bytes = self.bytes.saturating_add(more.len());
        self.pieces.push_back(Waiter::More(more));
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
    Job(u64),
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
    let account = balancer.memory.account();
    let opening = Instant::now().checked_add(config.timeouts.opening);
    let mut switch = Switch {
        balancer: Arc::clone(balancer),
        rules: Rules::new(listener, &config),
        record,
        client,
        inlet: Inlet::new(By::Client, BytesMut::new(), account.charge()),
        out: Queue::new(&account),
        upstreams: BTreeMap::new(),
        dials: Arc::default(),
        upstream_last: 0,
        speaker: None,
        aside: Queue::new(&account),
        table: Table::new(&account),
        providers: provider::Providers::default(),
        jobs: Jobs::default(),
        waiting: HashMap::new(),
        scouting: None,
        target: None,
        held: None,
        parked: account.charge(),
        calls: calls::Calls::default(),
        barred: false,
        state: StateRequests::default(),
        ended: false,
        deadline: opening.map(|due| Box::pin(sleep_until(due))),
        stalls: None,
        idle: config.timeouts.idle.map(|limit| Box::pin(sleep(limit))),
        config,
    };
    let (closes, peer) = (Arc::clone(balancer), switch.record.client());
    // As a job it is looked at only when it happens, not whenever a byte moves.
    switch.jobs.watch(Box::pin(async move {
        closes.shutdown.reaches(peer).await;
        Event::Shutdown
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
        self.rules.renew(&self.balancer);
        while let Poll::Ready(news) = self.jobs.poll(cx) {
            self.heard(news)?;
            moved = true;
        }
        if self.state.poll_overdue(cx).is_ready() {
            self.overdue()?;
            moved = true;
        }
        moved |= self.poll_stalls(cx)?;
        moved |= self.next_call();
        moved |= self.turn_client(cx)?;
        let mut next = 0;
        while let Some((&at, _)) = self.upstreams.range(next..).next() {
            moved |= self.turn_upstream(at, cx)?;
            next = at.saturating_add(1);
        }
        let wrote = match self.out.poll_flush(&mut self.client, cx) {
            Poll::Ready(Ok(wrote)) => wrote,
            Poll::Ready(Err(error)) => return Err(Close::io(By::Client, Where::Relay, &error)),
            Poll::Pending => false,
        };
        if let Some(speaker) = &mut self.speaker {
            // While the client has not taken what there is, no backend holds it up.
            speaker.blame(self.out.is_empty() && !self.client.has_unsent());
        }
        self.watch_answer(cx)?;
        Ok(moved | wrote)
    }

    /// Sets off on a job.
    fn send_out(&mut self, job: impl FnOnce(u64) -> Job) -> u64 {
        let number = self.jobs.send_out(job);
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
        self.say_parts([frame.into()]);
    }

    /// The same with a frame in several parts.
    fn say_parts<const N: usize>(&mut self, parts: [Queued; N]) {
        for part in parts {
            if self.speaker.is_some() {
                self.aside.push_aside(part);
            } else {
                self.say(part);
            }
        }
    }

    /// The speaker's frame has ended.
    fn fall_silent(&mut self) {
        self.speaker = None;
        while let Some(frame) = self.aside.pop() {
            self.say(frame);
        }
    }

    /// Queues bytes of a backend for the client.
    fn say(&mut self, piece: impl Into<Queued>) {
        let piece = piece.into();
        self.record.add_to_client(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        self.out.push(piece);
    }

    /// Answers a request with a refusal; the connection goes on.
    fn refuse(&mut self, id: Option<&Id>, refused: &Refused) {
        let Some(id) = id else { return };
        let Refused { refusal, message, retry_after } = refused;
        self.balancer.metrics.errors_answered.with_label_values(&[refusal.label()]).inc();
        self.say_own(reply::error(id, *refusal, message, *retry_after));
    }
}
