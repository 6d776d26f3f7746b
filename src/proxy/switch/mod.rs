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
mod downstream;
mod evicted;
mod fate;
mod heard;
mod in_flight;
mod job;
mod jobs;
mod left;
mod loss;
mod memories;
mod merge;
mod opened;
mod notes;
mod parting;
mod provider;
mod sessions;
mod plan;
mod act;
mod revival;
mod revive;
mod server;
mod server_requests;
mod slow;
mod stall;
mod table;
mod union;
mod upstream;
mod upstreams;
mod waiting;
mod whole;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::balancer::Balancer;
use crate::close::{At as Where, By, Close, Why};
use crate::config::{Config, Listener};
use crate::metrics::Record;
use crate::net::Stream;
use crate::place::Refused;
use crate::wire::{Id, reply};

use crate::proxy::queue::Queued;
use crate::proxy::rules::Rules;
use crate::proxy::state_requests::StateRequests;
use downstream::Downstream;
use job::{Event, Job};
use table::Table;
use upstreams::Upstreams;
use waiting::Waiting;

/// What is read at once for a client that holds as much as its share.
const READ_BYTES_MIN: usize = 8 * 1024;
/// Bytes waiting for one peer, beyond which nothing more is read for it.
const QUEUE_BYTES_MAX: usize = 256 * 1024;
/// What may wait for one backend, or for a job, beyond that, so that frames for others can be read.
const OVERFLOW_BYTES_MAX: usize = 1024 * 1024;

/// One client and all its upstreams.
struct Switch<'a> {
    balancer: Arc<Balancer>,
    config: Arc<Config>,
    rules: Rules<'a>,
    record: &'a mut Record,
    client: Downstream,
    upstreams: Upstreams,
    table: Table,
    state: StateRequests,
    waiting: Waiting,
    /// What it asks of the whole fleet.
    calls: calls::Calls,
    providers: provider::Providers,
    /// Something could not move in this turn for want of room, or has to be looked at once more.
    barred: bool,
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
    let mut switch = Switch {
        balancer: Arc::clone(balancer),
        rules: Rules::new(listener, &config),
        record,
        client: Downstream::new(client, &account, &config.timeouts),
        upstreams: Upstreams::default(),
        table: Table::new(&account),
        state: StateRequests::default(),
        waiting: Waiting::new(&account),
        calls: calls::Calls::default(),
        providers: provider::Providers::default(),
        barred: false,
        config,
    };
    let (closes, peer) = (Arc::clone(balancer), switch.record.client());
    // As a job it is looked at only when it happens, not whenever a byte moves.
    switch.waiting.watch(Box::pin(async move {
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
        if self.client.has_ended() && self.waiting.is_over() && self.upstreams.have_taken_all() {
            return Poll::Ready(Close::new(By::Client, Where::Relay, Why::Fin));
        }
        if self.client.poll_deadline(cx).is_ready() {
            return Poll::Ready(Close::new(By::Client, Where::Relay, Why::Timeout));
        }
        if let Some(limit) = self.config.timeouts.idle
            && self.client.poll_idle(moved, limit, cx).is_ready()
        {
            return Poll::Ready(Close::new(By::Balancer, Where::Relay, Why::Timeout));
        }
        // What was read and has to wait does so in buffers of its own.
        self.client.tighten();
        for (_, upstream) in self.upstreams.iter_mut() {
            upstream.tighten();
        }
        Poll::Pending
    }

    /// One round over everything that may move; whether something did. Whoever stops before its socket says so marks
    /// the round as `barred`.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        let mut moved = false;
        self.rules.renew(&self.balancer);
        while let Poll::Ready(news) = self.waiting.poll(cx) {
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
        while let Some(at) = self.upstreams.first_from(next) {
            moved |= self.turn_upstream(at, cx)?;
            next = at.saturating_add(1);
        }
        let wrote = match self.client.poll_flush(cx) {
            Poll::Ready(Ok(wrote)) => wrote,
            Poll::Ready(Err(error)) => return Err(Close::io(By::Client, Where::Relay, &error)),
            Poll::Pending => false,
        };
        self.client.blame_speaker();
        self.watch_answer(cx)?;
        Ok(moved | wrote)
    }

    /// Sets off on a job.
    fn send_out(&mut self, job: impl FnOnce(u64) -> Job) -> u64 {
        let number = self.waiting.send_out(self.balancer.now().servers(), job);
        // It sets off when it is looked at.
        self.barred = true;
        number
    }

    /// Queues a frame of sessile's own for the client: between frames, never inside one.
    fn say_own(&mut self, frame: Vec<u8>) {
        self.say_parts([frame.into()]);
    }

    /// The same with a frame in several parts.
    fn say_parts<const N: usize>(&mut self, parts: [Queued; N]) {
        for part in parts {
            if let Some(part) = self.client.put_aside(part) {
                self.say(part);
            }
        }
    }

    /// The speaker's frame has ended.
    fn fall_silent(&mut self) {
        self.client.end_frame();
        while let Some(frame) = self.client.next_aside() {
            self.say(frame);
        }
    }

    /// Queues bytes of a backend for the client.
    fn say(&mut self, piece: impl Into<Queued>) {
        let piece = piece.into();
        self.record.add_to_client(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        self.client.push(piece);
    }

    /// Answers a request with a refusal; the connection goes on.
    fn refuse(&mut self, id: Option<&Id>, refused: &Refused) {
        let Some(id) = id else { return };
        let Refused { refusal, message, retry_after } = refused;
        self.balancer.metrics.errors_answered.with_label_values(&[refusal.label()]).inc();
        self.say_own(reply::error(id, *refusal, message, *retry_after));
    }
}
