//! The servers' side of the switch: what backends send, and what of it the client gets. Answers belong to the upstream that was
//! asked.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::Switch;
use super::in_flight::{At, InFlight};
use super::upstream::Fate;
use crate::close::Close;
use crate::config::Lifecycle;
use crate::metrics::Outcome;
use crate::net::READ_BYTES_MAX;
use crate::proxy::inlet::{Frame, InletFault, Piece};
use crate::proxy::opening::learned;
use crate::proxy::queue::Queued;
use crate::wire::Envelope;
use crate::wire::envelope::Field;
use crate::wire::method::Way;

impl Switch<'_> {
    /// Moves what can move between one backend and the client.
    pub(super) fn turn_upstream(&mut self, at: At, cx: &mut Context<'_>) -> Result<bool, Close> {
        let Some(upstream) = self.upstreams.get_mut(at) else { return Ok(false) };
        let Ok(mut moved) = upstream.poll_write(cx) else { return self.lose(at).map(|()| true) };
        let mut read = false;
        // What is in hand is passed on before more is read; nothing is read for a client that does not keep up, nor while
        // another backend is in the middle of a frame.
        loop {
            if self.client.is_full() || self.client.hears_another(at) {
                self.barred = true;
                break;
            }
            let bytes_max = self.config.limits.opening_bytes;
            let Some(upstream) = self.upstreams.get_mut(at) else { return Ok(true) };
            match upstream.next(bytes_max) {
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
            upstream.settle();
            let most = match self.share_of(at) {
                0 => {
                    self.barred = true;
                    break;
                }
                most => most,
            };
            let Some(upstream) = self.upstreams.get_mut(at) else { return Ok(true) };
            match upstream.poll_read(cx, most) {
                Poll::Pending => {
                    // Others that had to wait for it may be read now.
                    moved |= most < READ_BYTES_MAX && upstream.run_dry();
                    break;
                }
                Poll::Ready(Ok(came)) if came > 0 => (read, moved) = (true, true),
                Poll::Ready(_) => return self.lose(at).map(|()| true),
            }
        }
        if let Some(upstream) = self.upstreams.get_mut(at) {
            upstream.settle();
            upstream.note_read(read);
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
                let Some(upstream) = self.upstreams.get_mut(at) else { return };
                upstream.set_fate(fate);
                if partial && bytes.is_some() {
                    self.client.begin_frame(at);
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
                let Some(fate) = self.upstreams.get(at).map(|upstream| upstream.fate()) else { return };
                if fate == Fate::Pass {
                    self.tell(at, bytes);
                }
                if let Some(envelope) = end {
                    if self.client.hears(at) {
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
        if let Some(upstream) = self.upstreams.get(at) {
            let count = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            upstream.backend().series().bytes_to_client.inc_by(count);
        }
        self.say(piece);
    }

    /// What of a backend's frame the client is to see: answers as they are, requests under a number of their own, events
    /// of sessions it knows.
    fn translate(&mut self, at: At, frame: &Frame) -> Option<Bytes> {
        let envelope = &frame.envelope;
        if self.table.has_left(at, envelope) {
            return self.answer_left(at, envelope);
        }
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
                    self.upstreams.get_mut(at)?.keep(session.clone(), &frame.bytes);
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
