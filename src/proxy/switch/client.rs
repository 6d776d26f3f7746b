//! The client's side of the switch: its bytes as frames, taken as long as they have somewhere to go.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::downstream::{Room, Target};
use super::in_flight::At;
use super::plan::Plan;
use super::table::Binding;
use super::{OVERFLOW_BYTES_MAX, Switch};
use crate::close::{At as Where, By, Close, Why};
use crate::metrics::Outcome;
use crate::net::READ_BYTES_MAX;
use crate::place::Refused;
use crate::proxy::inlet::{Frame, InletFault, Piece, Subject};
use crate::proxy::refusals::{NOT_JSON, plain};
use crate::wire::{Id, Refusal, is_json, reply};

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
            let held = self.waiting.take_held();
            let was_held = held.is_some();
            let piece = match held {
                Some(frame) => Some(Piece::Frame(frame)),
                None => match self.client.next(self.config.limits.opening_bytes) {
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
                    if !self.take(frame, was_held)? {
                        (waits, self.barred) = (true, true);
                        break;
                    }
                }
                Some(Piece::More { bytes, end }) => self.more(bytes, end.map(|envelope| envelope.id)),
                None if self.client.has_ended() => break,
                None if !self.count_begun()? => {
                    (waits, self.barred) = (true, true);
                    break;
                }
                None => match self.client.poll_read(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Err(Close::io(By::Client, Where::Relay, &error)),
                },
            }
            moved = true;
        }
        self.client.set_deadline(waits, moved, &self.config.timeouts);
        self.client.settle();
        self.waiting.settle();
        Ok(moved)
    }

    /// Sends a frame on its way; false if it has to wait (it may have waited before), and everything behind it with it.
    fn take(&mut self, frame: Frame, was_held: bool) -> Result<bool, Close> {
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
        self.waiting.hold(frame, was_held);
        self.gives_up(bar)
    }

    /// Counts a frame that has begun; false to wait until there is room. If there will be none, the frame is refused and its
    /// rest skipped.
    fn count_begun(&mut self) -> Result<bool, Close> {
        match self.client.count_begun(!self.waiting.is_empty()) {
            Room::Is => Ok(true),
            Room::Later => Ok(false),
            Room::Refused(id) => {
                let message = "there is no room for frames that are not whole yet";
                self.refuse(Some(&id), &plain(Refusal::Limit, message));
                Ok(true)
            }
            Room::None => Err(Close::new(By::Balancer, Where::Relay, Why::Limit)),
        }
    }

    /// What keeps the client's next bytes from their way, if anything.
    fn bars_more(&mut self) -> Option<Bar> {
        if self.client.is_unread() {
            return Some(Bar::Unread);
        }
        match self.client.rest() {
            Some(Target::Upstream(at)) => self.full(at, READ_BYTES_MAX),
            Some(Target::Job(job)) => (!self.waiting.may_grow(job)).then_some(Bar::Wait),
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
            && (self.state.is_open() || !self.waiting.is_empty() && !self.waiting.may_take(frame.takes()))
    }

    /// Why what is planned for a frame cannot be done now, if it cannot: there is no room on its way.
    fn bar(&mut self, plan: &Plan, bytes: usize) -> Option<Bar> {
        let wait = |bars: bool| bars.then_some(Bar::Wait);
        match plan {
            Plan::Drop | Plan::Refuse(_) | Plan::Fleet(_) => None,
            Plan::Answer(at) | Plan::To(at) | Plan::Cancel(at) => self.full(*at, bytes),
            // An upstream on its way would not be told.
            Plan::State { .. } | Plan::Provide if !self.waiting.is_empty() || !self.providers.is_idle() => {
                Some(Bar::Wait)
            }
            Plan::State { .. } | Plan::Provide => {
                let full = self.upstreams.numbers().find(|at| !self.has_room(*at, bytes))?;
                self.upstreams.get_mut(full)?.note_full();
                Some(Bar::Full(full))
            }
            Plan::Wait(job) => wait(self.waiting.is_crowded(*job)),
            Plan::Scout | Plan::Place(_) | Plan::BringBack(_) => wait(!self.providers.is_idle()),
            Plan::Whole(session) => match self.table.binding(session) {
                Some(Binding::Bound { at, .. }) => {
                    let at = *at;
                    self.full(at, bytes)
                }
                Some(Binding::Placing(job)) => wait(self.waiting.is_crowded(*job)),
                Some(Binding::Reviving(reviving)) => wait(self.waiting.is_crowded(reviving.job)),
                Some(Binding::Lost(_)) | None => wait(!self.providers.is_idle()),
            },
            Plan::Close(then) | Plan::Instead(then) | Plan::Revive(_, then) => self.bar(then, bytes),
        }
    }

    /// Whether nothing more may be queued for an upstream: what a queue does not hold may still wait, within bounds.
    fn full(&mut self, at: At, bytes: usize) -> Option<Bar> {
        let has_room = self.has_room(at, bytes);
        let upstream = self.upstreams.get_mut(at)?;
        if has_room {
            upstream.note_room();
            return None;
        }
        let overflow = upstream.overflow().saturating_add(bytes);
        if overflow <= OVERFLOW_BYTES_MAX && self.waiting.may_take(bytes) {
            return None;
        }
        upstream.note_full();
        let is_stuck = upstream.is_stuck() || self.is_slow(at);
        Some(if is_stuck { Bar::Stuck(at) } else { Bar::Full(at) })
    }

    /// Refuses a request to a backend that takes little or nothing: the client's others are not to wait behind it.
    fn turn_down(&mut self, frame: &Frame) {
        if frame.left > 0 {
            self.client.set_rest(Some(Target::Nowhere));
        }
        let message = "the backend of this session takes little or nothing at the moment";
        let refused = Refused::later(Refusal::Limit, message, &self.config);
        self.refuse(frame.envelope.id.as_ref(), &refused);
    }

    /// More of a large frame. At its end the id is known for sure.
    fn more(&mut self, bytes: Bytes, end: Option<Option<Id>>) {
        match self.client.rest() {
            Some(Target::Upstream(at)) => {
                self.record.add_to_backend(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                self.note_more(&bytes);
                if let Some(upstream) = self.upstreams.get_mut(at) {
                    upstream.push_on(bytes, end.is_some());
                }
            }
            Some(Target::Job(job)) => self.waiting.push_more(job, bytes),
            Some(Target::Nowhere) | None => {}
        }
        if end.is_some() {
            self.table.set_begun(None);
            self.client.set_rest(None);
        }
    }

    /// A frame that not all servers would read alike, or that says too late where it must go, is refused if its id is known, and
    /// reading goes on behind its end. Behind something that is no head, nothing can be read.
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
        match self.client.set_rest(Some(Target::Nowhere)) {
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

    /// Refuses the request that costs the client this upstream, unless its answer has begun.
    fn blame(&mut self, at: At, subject: &Subject, refused: &Refused) {
        let Some(id) = subject.id.as_ref().filter(|_| !subject.is_answer) else { return };
        if self.table.flight(id).is_none_or(|flight| flight.at != at || flight.begun) {
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
            if let Some(asked) = self.table.asked_mut().answer(id) {
                let Refused { refusal, message, retry_after } = refused;
                return self
                    .push_up(asked.at, reply::error(&asked.id, *refusal, message, *retry_after).into());
            }
            if self.table.is_in_flight(id) {
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
