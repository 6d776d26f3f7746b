//! The upstream side: what backends send, and what of it the client gets. Answers belong to the upstream that was asked.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::births::Kept;
use super::in_flight::{At, InFlight};
use super::slow::Intake;
use super::stall::{Delay, Pace};
use super::{QUEUE_BYTES_MAX, Switch};
use crate::balancer::Balancer;
use crate::close::{By, Close};
use crate::config::Lifecycle;
use crate::fleet::{Backend, Leased};
use crate::link::Link;
use crate::metrics::Outcome;
use crate::net::READ_BYTES_MAX;
use crate::place::InUse;
use crate::proxy::inlet::{Frame, Inlet, InletFault, Piece};
use crate::proxy::opening::learned;
use crate::proxy::queue::{Queue, Queued};
use crate::runtime::account::Account;
use crate::runtime::stop_flag::StopFlag;
use crate::wire::envelope::Field;
use crate::wire::method::Way;
use crate::wire::{Envelope, Id};

/// One connection of one client to one backend.
pub(super) struct Upstream {
    stream: Leased,
    inlet: Inlet,
    out: Queue,
    /// The client is in the middle of a large frame to this backend.
    midway: bool,
    /// There was nothing to read when it was looked at last, its client having as much as its share.
    pub(super) dry: bool,
    /// Frames that wait for the end of that one.
    behind: Queue,
    stop_flag: Arc<StopFlag>,
    /// While it is, no other is dialled for this client.
    _in_use: Option<InUse>,
    /// Broadcasts that wait for a birth.
    pub(super) kept: Kept,
    /// What becomes of the rest of a large frame from this backend.
    fate: Fate,
    /// Since when nothing moves.
    pub(super) pace: Pace,
    /// What the backend takes while the client waits for that.
    pub(super) intake: Intake,
}

/// What becomes of a frame of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is for the client.
    Pass,
    /// It is for nobody.
    Drop,
    /// It answers what sessile has asked for itself.
    Own,
    /// It answers what the client was told would not be answered.
    Late,
}

impl Upstream {
    pub(super) fn new(link: Link, in_use: Option<InUse>, balancer: &Balancer, account: &Account) -> Self {
        let Link { stream, unread } = link;
        Self {
            stream,
            inlet: Inlet::new(By::Backend, unread, account.charge())
                .gathering(balancer.frame_memory.account().charge()),
            out: Queue::new(account),
            midway: false,
            dry: false,
            behind: Queue::new(account),
            stop_flag: Arc::default(),
            _in_use: in_use,
            kept: Kept::new(account),
            fate: Fate::Pass,
            pace: Pace::default(),
            intake: Intake::default(),
        }
    }

    /// What of it outlasts its client.
    pub(super) fn into_parts(self) -> (Leased, Inlet, Queue) {
        (self.stream, self.inlet, self.out)
    }

    /// What has come and was not looked at, as far as it is sound.
    pub(super) fn next(&mut self, bytes_max: usize) -> Option<Piece> {
        self.inlet.next(bytes_max).ok().flatten()
    }

    /// Bytes that are still to follow what the client has of a frame.
    pub(super) fn unsaid(&self) -> usize {
        self.inlet.unsaid()
    }

    /// Whether a frame of the backend has begun and is not whole.
    pub(super) fn is_midway(&self) -> bool {
        self.inlet.is_midway()
    }

    /// The request whose answer has begun and is held until it is whole.
    pub(super) fn answering(&self) -> Option<Id> {
        self.inlet.answering().cloned()
    }

    /// Bytes queued beyond what a queue holds.
    pub(super) fn overflow(&self) -> usize {
        self.out.len().saturating_add(self.behind.len()).saturating_sub(QUEUE_BYTES_MAX)
    }

    pub(super) fn backend(&self) -> &Arc<Backend> {
        self.stream.backend()
    }

    /// Raised when the upstream has to be given up.
    pub(super) fn stop_flag(&self) -> &Arc<StopFlag> {
        &self.stop_flag
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.out.is_empty() && !self.stream.has_unsent()
    }

    /// Bytes queued.
    pub(super) fn owed(&self) -> usize {
        self.out.len()
    }

    /// Whether more may be queued for the backend.
    pub(super) fn has_room(&self) -> bool {
        self.out.has_room(QUEUE_BYTES_MAX)
    }

    /// Queues a frame, never inside another.
    pub(super) fn push(&mut self, bytes: impl Into<Queued>) {
        let bytes = bytes.into();
        self.stream
            .backend()
            .series()
            .bytes_to_backend
            .inc_by(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.midway { self.behind.push_aside(bytes) } else { self.out.push(bytes) }
    }

    /// The client's large frame has begun, and only more of it may follow.
    pub(super) fn begin(&mut self) {
        self.midway = true;
    }

    /// Queues more of the client's large frame; behind its end, what has waited for that.
    pub(super) fn push_on(&mut self, bytes: Bytes, end: bool) {
        self.midway = false;
        self.push(bytes);
        self.midway = !end;
        while !self.midway {
            let Some(frame) = self.behind.pop() else { break };
            self.out.push(frame);
        }
    }
}

impl Switch<'_> {
    /// Moves what can move between one backend and the client.
    pub(super) fn turn_upstream(&mut self, at: At, cx: &mut Context<'_>) -> Result<bool, Close> {
        let Some(upstream) = self.upstreams.get_mut(&at) else { return Ok(false) };
        let queued = upstream.out.len();
        let mut moved = match upstream.out.poll_flush(&mut upstream.stream, cx) {
            Poll::Ready(Ok(wrote)) => wrote,
            Poll::Ready(Err(_)) => return self.lose(at).map(|()| true),
            Poll::Pending => false,
        };
        upstream.intake.took(queued.saturating_sub(upstream.out.len()));
        upstream.pace.wrote(moved, upstream.out.is_empty());
        let mut read = false;
        // What is in hand is passed on before more is read; nothing is read for a client that does not keep up, nor while
        // another backend is in the middle of a frame.
        loop {
            if self.out.len() >= QUEUE_BYTES_MAX || self.is_kept_waiting(at) {
                self.barred = true;
                break;
            }
            let bytes_max = self.config.limits.opening_bytes;
            let Some(upstream) = self.upstreams.get_mut(&at) else { return Ok(true) };
            match upstream.inlet.next(bytes_max) {
                Ok(Some(piece)) => {
                    self.take_from(at, piece);
                    moved = true;
                    continue;
                }
                Ok(None) => {}
                Err(InletFault::Unheld) => {
                    self.balancer.metrics.events_skipped.inc();
                    continue;
                }
                Err(fault) => {
                    tracing::warn!(backend = %upstream.backend().name(), %fault, "backend sent what is no frame");
                    return self.lose(at).map(|()| true);
                }
            }
            upstream.inlet.settle();
            let most = match self.share_of(at) {
                0 => {
                    self.barred = true;
                    break;
                }
                most => most,
            };
            let Some(upstream) = self.upstreams.get_mut(&at) else { return Ok(true) };
            match upstream.inlet.poll_fill(&mut upstream.stream, cx, most) {
                Poll::Pending => {
                    // Others that had to wait for it may be read now.
                    moved |= most < READ_BYTES_MAX && !std::mem::replace(&mut upstream.dry, true);
                    break;
                }
                Poll::Ready(Ok(came)) if came > 0 => {
                    upstream.dry = false;
                    (read, moved) = (true, true);
                }
                Poll::Ready(_) => return self.lose(at).map(|()| true),
            }
        }
        if let Some(upstream) = self.upstreams.get_mut(&at) {
            upstream.inlet.settle();
            let is_midway = upstream.is_midway();
            upstream.pace.read(read, is_midway);
            self.watch_pace(at);
        }
        Ok(moved)
    }

    pub(super) fn take_from(&mut self, at: At, piece: Piece) {
        match piece {
            Piece::Frame(frame) => {
                let partial = frame.left > 0;
                let fate = self.fate(at, &frame.envelope);
                if fate == Fate::Own && !partial {
                    return self.own_answer(at, &frame);
                }
                let frame = if partial || fate != Fate::Pass { frame } else { self.or_refusal(at, frame) };
                let mut frame = frame;
                let bytes = if fate == Fate::Pass { self.translate(at, &frame) } else { None };
                let fate = if fate == Fate::Pass && bytes.is_none() { Fate::Drop } else { fate };
                let Some(upstream) = self.upstreams.get_mut(&at) else { return };
                upstream.fate = fate;
                if partial && bytes.is_some() {
                    self.speaker = Some(Box::new(Delay::by(at)));
                    if let (None, Some(id)) = (&frame.envelope.method, &frame.envelope.id) {
                        self.table.begin(id);
                    }
                }
                if !partial && fate == Fate::Pass {
                    self.tell_births(at, &frame.envelope);
                }
                let bytes = bytes.unwrap_or_default();
                match frame.charge.take() {
                    Some(charge) => self.tell(at, Queued::counted(bytes, Some(charge))),
                    None => self.tell(at, bytes),
                }
                if !partial && frame.envelope.method.is_none() {
                    if let (Fate::Pass, Some(id)) = (fate, &frame.envelope.id)
                        && let Some(connect) = self.state.open_connect(id)
                    {
                        learned::learn(&self.balancer, &self.config, connect, frame.body());
                    }
                    self.answered(at, fate, &frame.envelope);
                }
            }
            Piece::More { bytes, end } => {
                let Some(fate) = self.upstreams.get(&at).map(|upstream| upstream.fate) else { return };
                if fate == Fate::Pass {
                    self.tell(at, bytes);
                }
                if let Some(envelope) = end {
                    if self.is_speaking(at) {
                        self.fall_silent();
                    }
                    if envelope.method.is_none() {
                        if fate == Fate::Pass {
                            self.tell_births(at, &envelope);
                            // The client has the beginning of this answer already: all that can be done is to let go of a copy.
                            self.opened(at, &envelope);
                        }
                        self.answered(at, fate, &envelope);
                    }
                }
            }
        }
    }

    /// What becomes of a frame: an answer is the client's only if this upstream was asked for it and has not answered yet.
    fn fate(&self, at: At, envelope: &Envelope) -> Fate {
        if envelope.method.is_some() {
            return Fate::Pass;
        }
        match &envelope.id {
            Some(id) if self.table.is_owed(at, id) => Fate::Pass,
            Some(id) if id.raw().starts_with(b"\"sessile-") => Fate::Own,
            Some(id) if self.table.is_too_late(at, id) => Fate::Late,
            _ => {
                self.balancer.metrics.stray_answers.inc();
                Fate::Drop
            }
        }
    }

    pub(super) fn tell(&mut self, at: At, piece: impl Into<Queued>) {
        let piece = piece.into();
        if let Some(upstream) = self.upstreams.get(&at) {
            let count = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            upstream.backend().series().bytes_to_client.inc_by(count);
        }
        self.say(piece);
    }

    /// What of a backend's frame the client is to see: answers as they are, requests under a number of their own, events
    /// of sessions it knows.
    fn translate(&mut self, at: At, frame: &Frame) -> Option<Bytes> {
        let envelope = &frame.envelope;
        match (envelope.known(), &envelope.id) {
            (None, _) => Some(frame.bytes.clone()),
            (Some(known), Some(id)) => {
                if let (Way::Inference, Field::Is(request)) = (known.way, &envelope.request) {
                    self.table.infer(request, at);
                }
                self.balancer.metrics.ids_rewritten.inc();
                let number = self.table.ask(at, id.clone());
                self.give_up_asked();
                Some(frame.with_id(id, number.to_string().as_bytes()))
            }
            (Some(known), None) if known.broadcast && !self.may_hear(envelope) => {
                if let (Field::Is(session), true) = (&envelope.session, self.table.is_bearing(at)) {
                    self.upstreams.get_mut(&at)?.kept.keep(session.clone(), &frame.bytes);
                }
                None
            }
            (Some(known), None) if known.way == Way::Cancel => {
                let id = envelope.cancels.as_ref()?;
                let number = self.table.number_of(at, id)?;
                Some(frame.with_id(id, number.to_string().as_bytes()))
            }
            (Some(_), None) => Some(frame.bytes.clone()),
        }
    }

    /// Whether a broadcast event is any of this client's business: it knows the session.
    fn may_hear(&self, envelope: &Envelope) -> bool {
        let known = match &envelope.session {
            Field::Is(session) | Field::Long(session) => self.table.has_named(session),
            Field::Absent => true,
        };
        known || self.rules.listener().lifecycle == Lifecycle::All
    }

    /// An answer has passed, or was too late: what it changes.
    fn answered(&mut self, at: At, fate: Fate, envelope: &Envelope) {
        let Some(id) = &envelope.id else { return };
        if fate == Fate::Late
            && let (Some(true), Field::Is(session)) =
                (self.table.arrive_late(at, id), &envelope.result_session)
        {
            // It was born for a client that has been told it was not: nobody else would ever let go of it.
            return self.close_copy(at, session);
        }
        if fate != Fate::Pass {
            return;
        }
        let outcome = if envelope.is_error { Outcome::Error(envelope.error_code) } else { Outcome::Success };
        let Some(flight) = self.table.arrive(id, outcome) else { return };
        self.landed(&flight, outcome);
        if flight.born {
            self.end_births(at);
        }
        // The client's next frame has waited for the answer to a state request.
        self.barred |= self.state.answered(id, envelope);
    }

    pub(super) fn landed(&self, flight: &InFlight, outcome: Outcome) {
        let metrics = &self.balancer.metrics;
        metrics.requests_in_flight.dec();
        metrics.requests.answered(flight.class, flight.since.elapsed(), outcome);
    }
}
