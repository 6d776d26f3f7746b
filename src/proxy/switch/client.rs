//! The client's side of the switch: its bytes as frames, taken as long as they have somewhere to go.

use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::in_flight::At;
use super::plan::Plan;
use super::table::Binding;
use super::{QUEUE_BYTES_MAX, Switch, Target, WAITING_BYTES_MAX};
use crate::close::{At as Where, By, Close, Why};
use crate::metrics::Outcome;
use crate::net::READ_BYTES_MAX;
use crate::place::Refused;
use crate::proxy::inlet::{Frame, InletFault, Piece, Subject};
use crate::proxy::refusals::{NOT_JSON, plain};
use crate::proxy::switch::jobs::{JOB_BYTES_MAX, JOBS_MAX};
use crate::wire::{Id, Refusal, is_json, reply};

/// Of a frame that has begun, so much is not counted: heads on their own, and the usual frames.
const FREE_BYTES: usize = 4 * 1024;
/// What is left free while frames wait: those that are requests take more when they go on their way.
const DEPARTURES_BYTES: usize = 64 * 1024;

/// What a backend that does not keep up may be owed beyond a queue, so that frames for others can be read.
const OVERFLOW_BYTES_MAX: usize = 1024 * 1024;

/// Why a frame cannot be sent on now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bar {
    /// It can be, later.
    Wait,
    /// The client does not read what it is told.
    Unread,
    /// It will be free when this upstream has taken more.
    Full(At),
    /// This upstream takes little or nothing: whoever can be told is told.
    Stuck(At),
}

impl Switch<'_> {
    /// Takes frames from the client while their way is free.
    pub(super) fn turn_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        let (mut moved, mut waits) = (false, false);
        loop {
            if let Some(bar) = self.bars_more() {
                if self.gives_up(bar)? {
                    moved = true;
                    continue;
                }
                // A client that does not read has no more time for it.
                waits = bar != Bar::Unread;
                self.barred = true;
                break;
            }
            let piece = match self.held.take() {
                Some(frame) => Some(Piece::Frame(*frame)),
                None => match self.inlet.next(self.config.limits.opening_bytes) {
                    Ok(Some(Piece::Frame(frame))) if !is_sound(&frame) => {
                        self.refuse(frame.envelope.id.as_ref(), &plain(Refusal::Malformed, NOT_JSON));
                        moved = true;
                        continue;
                    }
                    Ok(piece) => piece,
                    Err(fault) => {
                        self.faulty(&fault)?;
                        moved = true;
                        continue;
                    }
                },
            };
            match piece {
                Some(Piece::Frame(frame)) => {
                    if !self.take(frame)? {
                        (waits, self.barred) = (true, true);
                        break;
                    }
                }
                Some(Piece::More { bytes, end }) => self.more(bytes, end.map(|envelope| envelope.id)),
                None if self.ended => break,
                None if !self.account()? => {
                    (waits, self.barred) = (true, true);
                    break;
                }
                None => match self.inlet.poll_fill(&mut self.client, cx, READ_BYTES_MAX) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0)) => {
                        self.ended = true;
                        self.deadline = None;
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Err(Close::io(By::Client, Where::Relay, &error)),
                },
            }
            moved = true;
        }
        if waits && !self.ended {
            // What has begun and is not read cannot come to its end.
            self.deadline = None;
        } else if moved || self.deadline.is_none() {
            self.watch();
        }
        self.inlet.settle();
        let parked = self.parked_bytes();
        if self.parked.bytes() > 0 || parked > FREE_BYTES {
            self.parked.force(parked);
        }
        Ok(moved)
    }

    /// Sends a frame on its way; false if it waits, and everything behind it.
    fn take(&mut self, frame: Frame) -> Result<bool, Close> {
        let bar = if self.must_wait(&frame) {
            Bar::Wait
        } else {
            let plan = self.view().plan(&frame);
            match self.bar(&plan, frame.bytes.len()) {
                None => {
                    self.act(plan, frame);
                    self.begin();
                    return Ok(true);
                }
                Some(Bar::Stuck(_)) if is_request(&frame) => {
                    self.turn_down(&frame);
                    return Ok(true);
                }
                Some(bar) => bar,
            }
        };
        self.held = Some(Box::new(frame));
        self.gives_up(bar)
    }

    /// Bytes of the client that wait to know where they go.
    pub(super) fn parked_bytes(&self) -> usize {
        let waiting: usize = self.waiting.values().map(|waiting| waiting.bytes).sum();
        let held = self.held.as_ref().map_or(0, |frame| frame.takes());
        waiting.saturating_add(held).saturating_add(self.jobs.bytes())
    }

    /// Counts a frame that has begun; false to wait until there is room. If there will be none, the frame is refused and its
    /// rest skipped.
    fn account(&mut self) -> Result<bool, Close> {
        let held = self.inlet.held();
        let granted = self.inlet.settle();
        // What is read next may have to wait as well.
        let ahead = READ_BYTES_MAX.saturating_add(DEPARTURES_BYTES);
        if granted && (self.waiting.is_empty() || self.inlet.account().has_room(ahead)) {
            return Ok(true);
        }
        if !self.waiting.is_empty() {
            // There will be room when they know where they go.
            return Ok(false);
        }
        match self.inlet.give_up() {
            Some(id) => {
                let message = "there is no room for frames that are not whole yet";
                self.refuse(Some(&id), &plain(Refusal::Limit, message));
                Ok(true)
            }
            None if held <= FREE_BYTES => Ok(true),
            None => Err(Close::new(By::Balancer, Where::Relay, Why::Limit)),
        }
    }

    /// A frame that has begun must be whole in time; between frames a client may idle.
    fn watch(&mut self) {
        if self.ended {
            // What it has sent has to be taken in time: nobody else would end this.
            let due = self.config.timeouts.half_close.and_then(|limit| Instant::now().checked_add(limit));
            self.deadline = self.deadline.take().or_else(|| due.map(|due| Box::pin(sleep_until(due))));
        } else if !self.inlet.is_waiting() {
            self.deadline = None;
        } else if self.deadline.is_none() {
            let due = Instant::now().checked_add(self.config.timeouts.opening);
            self.deadline = due.map(|due| Box::pin(sleep_until(due)));
        }
    }

    /// What keeps the client's next bytes from their way, if anything.
    fn bars_more(&mut self) -> Option<Bar> {
        let wait = |bars: bool| bars.then_some(Bar::Wait);
        if self.out.len().saturating_add(self.aside.len()) >= QUEUE_BYTES_MAX {
            return Some(Bar::Unread);
        }
        match self.target {
            Some(Target::Upstream(at)) => self.full(at, READ_BYTES_MAX),
            Some(Target::Job(job)) => {
                let bytes = self.waiting.get(&job)?.bytes;
                let beyond = bytes.saturating_sub(QUEUE_BYTES_MAX);
                wait(
                    bytes >= QUEUE_BYTES_MAX
                        && (beyond > OVERFLOW_BYTES_MAX || !self.may_wait(READ_BYTES_MAX)),
                )
            }
            Some(Target::Nowhere) | None => None,
        }
    }

    /// Whether what keeps the client waiting has been given up for that.
    fn gives_up(&mut self, bar: Bar) -> Result<bool, Close> {
        match bar {
            Bar::Full(at) | Bar::Stuck(at) => self.give_up_slow(at),
            Bar::Wait | Bar::Unread => Ok(false),
        }
    }

    /// Whether a request must wait whatever it is: a state request has no answer yet, or others wait and there is no room.
    fn must_wait(&mut self, frame: &Frame) -> bool {
        frame.envelope.method.is_some()
            && (self.state.is_open() || !self.waiting.is_empty() && !self.may_wait(frame.takes()))
    }

    /// Why what is planned for a frame cannot be done now, if it cannot: there is no room on its way.
    fn bar(&mut self, plan: &Plan, bytes: usize) -> Option<Bar> {
        let wait = |bars: bool| bars.then_some(Bar::Wait);
        match plan {
            Plan::Drop | Plan::Refuse(_) | Plan::Fleet(_) => None,
            Plan::Answer(at) | Plan::To(at) | Plan::Cancel(at) => self.full(*at, bytes),
            // An upstream on its way would not be told.
            Plan::State | Plan::Provide if !self.waiting.is_empty() || !self.providers.is_idle() => {
                Some(Bar::Wait)
            }
            Plan::State | Plan::Provide => {
                let full = self.upstreams.keys().copied().find(|at| !self.has_room(*at, bytes))?;
                self.note_full(full);
                Some(Bar::Full(full))
            }
            Plan::Wait(job) => wait(self.is_crowded(*job)),
            Plan::Any => match (self.any_up(), self.scouting) {
                (Some(at), _) => self.full(at, bytes),
                (None, Some(job)) => wait(self.is_crowded(job)),
                (None, None) => wait(!self.providers.is_idle()),
            },
            Plan::Place(_) => wait(!self.providers.is_idle()),
            Plan::Whole(session) => match self.table.sessions.get(session) {
                Some(Binding::Bound { at, .. }) => {
                    let at = *at;
                    self.full(at, bytes)
                }
                Some(Binding::Placing(job)) => wait(self.is_crowded(*job)),
                None => wait(!self.providers.is_idle()),
            },
            Plan::Close(then) => self.bar(then, bytes),
        }
    }

    /// Whether one more frame may wait for a job. What is bound nowhere counts as what an opening holds.
    fn may_wait(&mut self, bytes: usize) -> bool {
        let bytes = self.parked_bytes().saturating_add(bytes).saturating_add(JOB_BYTES_MAX);
        self.waiting.len() < JOBS_MAX
            && bytes <= WAITING_BYTES_MAX
            && self.parked.resize(bytes.saturating_add(DEPARTURES_BYTES))
    }

    /// Whether nothing more may be queued for an upstream: what a queue does not hold may still wait, within bounds.
    fn full(&mut self, at: At, bytes: usize) -> Option<Bar> {
        let has_room = self.has_room(at, bytes);
        let upstream = self.upstreams.get_mut(&at)?;
        if has_room {
            upstream.intake.is_free();
            return None;
        }
        let overflow = upstream.overflow().saturating_add(bytes);
        if overflow <= OVERFLOW_BYTES_MAX && self.may_wait(bytes) {
            return None;
        }
        self.note_full(at);
        let is_stuck = self.upstreams.get(&at)?.pace.is_stuck() || self.is_slow(at);
        Some(if is_stuck { Bar::Stuck(at) } else { Bar::Full(at) })
    }

    /// Refuses a request to a backend that takes little or nothing: the client's others are not to wait behind it.
    fn turn_down(&mut self, frame: &Frame) {
        if frame.left > 0 {
            self.target = Some(Target::Nowhere);
        }
        let message = "the backend of this session takes little or nothing at the moment";
        let refused = Refused::later(Refusal::Limit, message, &self.config);
        self.refuse(frame.envelope.id.as_ref(), &refused);
    }

    /// Whether no further frame may wait for this job.
    fn is_crowded(&self, job: u64) -> bool {
        self.waiting.get(&job).is_some_and(|waiting| waiting.bytes >= QUEUE_BYTES_MAX)
    }

    /// More of a large frame. At its end the id is known for sure.
    fn more(&mut self, bytes: Bytes, end: Option<Option<Id>>) {
        match self.target.clone() {
            Some(Target::Upstream(at)) => {
                self.record.add_to_backend(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                if let Some(upstream) = self.upstreams.get_mut(&at) {
                    upstream.push_on(bytes, end.is_some());
                }
            }
            Some(Target::Job(job)) => {
                if let Some(waiting) = self.waiting.get_mut(&job) {
                    waiting.push(bytes);
                }
            }
            Some(Target::Nowhere) | None => {}
        }
        if end.is_some() {
            self.target = None;
        }
    }

    /// A frame that no server would read alike, or that says too late where it must go, is answered where an id is known, and
    /// the next one is looked at: its end is known. Behind what is no head nothing is.
    fn faulty(&mut self, fault: &InletFault) -> Result<(), Close> {
        let (refusal, subject) = match fault {
            InletFault::Head(_) => return Err(Close::new(By::Client, Where::Relay, Why::Malformed)),
            InletFault::Unheld => return Ok(()),
            InletFault::Body(_, subject) => (Refusal::Malformed, subject),
            InletFault::Undecided(subject) => (Refusal::Limit, subject),
            InletFault::Midway(_, subject) => return self.spoilt(fault, subject),
        };
        tracing::info!(client = %self.record.client(), %fault, "a frame is dropped");
        self.dismiss(subject, &plain(refusal, &fault.to_string()));
        Ok(())
    }

    /// A large frame repeats a routing key, or contradicts itself, behind what has been sent on: its backend must not see it
    /// whole.
    fn spoilt(&mut self, fault: &InletFault, subject: &Subject) -> Result<(), Close> {
        tracing::warn!(client = %self.record.client(), %fault, "a frame is cut off in the middle");
        let refused = plain(Refusal::Malformed, &fault.to_string());
        match self.target.replace(Target::Nowhere) {
            Some(Target::Upstream(at)) => {
                self.blame(at, subject, &refused);
                self.lose(at)
            }
            Some(Target::Job(job)) => {
                self.unplaced(job, &refused);
                self.table.forget(job);
                Ok(())
            }
            Some(Target::Nowhere) | None => {
                if subject.is_answer {
                    self.dismiss(subject, &refused);
                }
                Ok(())
            }
        }
    }

    /// The request that costs its backend is told why, as long as nothing of its answer has come.
    fn blame(&mut self, at: At, subject: &Subject, refused: &Refused) {
        let Some(id) = subject.id.as_ref().filter(|_| !subject.is_answer) else { return };
        if self.table.flights.get(id).is_none_or(|flight| flight.at != at || flight.begun) {
            return;
        }
        let outcome = Outcome::Error(Some(refused.refusal.code()));
        if let Some(flight) = self.table.arrive(id, outcome) {
            self.landed(&flight, outcome);
        }
        self.refuse(Some(id), refused);
    }

    /// Refuses a frame of which nothing was sent on. An answer is refused to the server that waits for it; one that nobody
    /// waits for may have been meant as a request, unless a request of that id is in flight.
    fn dismiss(&mut self, subject: &Subject, refused: &Refused) {
        let Some(id) = &subject.id else { return };
        if subject.is_answer {
            if let Some(asked) = self.table.asked(id) {
                let Refused { refusal, message, retry_after } = refused;
                return self
                    .push_up(asked.at, reply::error(&asked.id, *refusal, message, *retry_after).into());
            }
            if self.table.flights.contains_key(id) {
                return;
            }
        }
        self.refuse(Some(id), refused);
    }
}

/// Whether a whole request is one that servers can read.
fn is_sound(frame: &Frame) -> bool {
    frame.envelope.method.is_none() || frame.left > 0 || is_json(frame.body())
}

/// Whether a frame is one that can be refused.
fn is_request(frame: &Frame) -> bool {
    frame.envelope.method.is_some() && frame.envelope.id.is_some()
}
