//! The servers' side of the switch: what backends send, and what of it the client gets. Answers belong to the upstream that was
//! asked.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::Switch;
use super::fate::{Answer, Fate, Rest, ServerView};
use super::in_flight::{At, InFlight};
use super::opened::deleted;
use super::upstream::Upstream;
use crate::close::Close;
use crate::config::Lifecycle;
use crate::metrics::Outcome;
use crate::net::READ_BYTES_MAX;
use crate::proxy::inlet::{Frame, InletFault, Piece};
use crate::proxy::opening::learned;
use crate::proxy::queue::Queued;
use crate::runtime::account::Charge;
use crate::wire::envelope::Field;
use crate::wire::{Envelope, Id, SessionId};

impl Switch<'_> {
    /// Moves what can move between one backend and the client.
    pub(super) fn turn_upstream(&mut self, at: At, cx: &mut Context<'_>) -> Result<bool, Close> {
        let Some(upstream) = self.upstreams.get_mut(at) else { return Ok(false) };
        let Ok(mut moved) = upstream.poll_write(cx) else { return self.lose_dead(at).map(|()| true) };
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
            if upstream.is_deaf() {
                break;
            }
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
                Poll::Ready(_) => return self.lose_dead(at).map(|()| true),
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
                let fate = self.server_view(at).fate(&frame);
                if frame.left == 0 {
                    self.table.note_said(at, &frame.envelope);
                }
                self.carry(at, fate, frame);
            }
            Piece::More { bytes, end } => {
                let Some(rest) = self.upstreams.get(at).map(Upstream::rest) else { return };
                if rest == Rest::Pass {
                    self.tell(at, bytes.into());
                }
                if let Some(envelope) = end {
                    if self.client.hears(at) {
                        self.fall_silent();
                    }
                    let fate = self.server_view(at).at_end(rest, &envelope);
                    self.table.note_said(at, &envelope);
                    self.carried(at, fate, &envelope);
                }
            }
        }
    }

    /// What is known at this moment.
    fn server_view(&self, at: At) -> ServerView<'_, impl Fn() -> bool> {
        let hears_all = self.rules.listener().lifecycle == Lifecycle::All;
        ServerView { table: &self.table, at, hears_all, is_many: || self.balancer.now().has_several() }
    }

    /// Does with a frame, or with its beginning, what is decided.
    fn carry(&mut self, at: At, fate: Fate, mut frame: Frame) {
        if frame.left > 0 {
            self.begin_from(at, fate.rest());
        }
        let bytes = match fate {
            Fate::Drop | Fate::LateBegin => return,
            Fate::Stray => return self.balancer.metrics.stray_answers.inc(),
            Fate::Own => return self.own_answer(at, &frame),
            Fate::Late(born) => return self.late(at, &frame.envelope, born.as_ref()),
            Fate::Left => return self.answer_left(at, frame.envelope.id.as_ref()),
            Fate::Keep => return self.keep(at, &frame),
            Fate::Denied => return self.denied(at, frame),
            Fate::Answer(answer) => return self.answer(at, answer, frame),
            Fate::Begin => {
                if let Some(id) = &frame.envelope.id {
                    self.table.begin(id);
                }
                std::mem::take(&mut frame.bytes)
            }
            Fate::Pass => std::mem::take(&mut frame.bytes),
            Fate::Ask { is_inference } => self.ask(at, &frame, is_inference),
            Fate::Cancel(number) => numbered(&frame, frame.envelope.cancels.as_ref(), number),
        };
        self.tell(at, queued(bytes, frame.charge.take()));
    }

    /// Does what the end of a frame brings about that had begun.
    fn carried(&mut self, at: At, fate: Fate, envelope: &Envelope) {
        match fate {
            Fate::Answer(answer) => {
                if answer.is_birth {
                    self.tell_birth(at, envelope);
                }
                // The client has the beginning of this answer already: all that can be done is to let go of a copy.
                self.open(at, &answer.opens, envelope);
                self.answered(at, envelope);
            }
            Fate::Late(born) => self.late(at, envelope, born.as_ref()),
            _ => {}
        }
    }

    /// A frame has begun whose rest is still to come.
    fn begin_from(&mut self, at: At, rest: Rest) {
        if let Some(upstream) = self.upstreams.get_mut(at) {
            upstream.set_rest(rest);
        }
        if rest == Rest::Pass {
            self.client.begin_frame(at);
        }
    }

    /// Passes on an answer, or what is said in its place.
    fn answer(&mut self, at: At, answer: Answer, frame: Frame) {
        let mut frame = match self.open(at, &answer.opens, &frame.envelope) {
            Some(refused) => self.refused_instead(frame, &refused),
            None if answer.is_delete => deleted(frame),
            None => frame,
        };
        if answer.is_birth {
            self.tell_birth(at, &frame.envelope);
        }
        self.tell(at, queued(frame.bytes.clone(), frame.charge.take()));
        if let Some(connect) = frame.envelope.id.as_ref().and_then(|id| self.state.open_connect(id)) {
            learned::learn(&self.balancer, &self.config, connect, frame.body());
        }
        if let Some(session) = answer.denies {
            self.table.deny(at, &session);
        }
        self.answered(at, &frame.envelope);
    }

    /// A request of a server, under a number of its own.
    fn ask(&mut self, at: At, frame: &Frame, is_inference: bool) -> Bytes {
        let Some(id) = &frame.envelope.id else { return Bytes::new() };
        if let (true, Field::Is(request)) = (is_inference, &frame.envelope.request) {
            self.table.infer(request, at);
        }
        self.balancer.metrics.ids_rewritten.inc();
        self.give_up_asked(id);
        let number = self.table.asked_mut().ask(at, id.clone());
        numbered(frame, Some(id), number)
    }

    /// Keeps a broadcast until it is known whether its session is this client's.
    fn keep(&mut self, at: At, frame: &Frame) {
        if let (Field::Is(session), Some(upstream)) = (&frame.envelope.session, self.upstreams.get_mut(at)) {
            upstream.keep(session.clone(), &frame.bytes);
        }
    }

    /// An answer has come after the client was told that none would.
    fn late(&mut self, at: At, envelope: &Envelope, born: Option<&SessionId>) {
        if let Some(id) = &envelope.id {
            self.table.arrive_late(at, id);
        }
        if let Some(session) = born {
            self.close_copy(at, session);
        }
    }

    /// Queues what comes of a backend for the client.
    pub(super) fn tell(&mut self, at: At, piece: Queued) {
        if let Some(upstream) = self.upstreams.get(at) {
            let count = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            upstream.backend().series().bytes_to_client.inc_by(count);
        }
        self.say(piece);
    }

    /// An answer has passed: what it changes.
    fn answered(&mut self, at: At, envelope: &Envelope) {
        let Some(id) = &envelope.id else { return };
        let outcome = if envelope.is_error { Outcome::Error(envelope.error_code) } else { Outcome::Success };
        let Some(flight) = self.table.arrive(id, outcome) else { return };
        self.landed(&flight, outcome);
        if outcome == Outcome::Success {
            self.note_success(&flight, envelope);
        }
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

/// A frame with this number in the place of a server's id.
fn numbered(frame: &Frame, id: Option<&Id>, number: u64) -> Bytes {
    id.map_or_else(Bytes::new, |id| frame.with_id(id, number.to_string().as_bytes()))
}

/// Bytes for the client, counted by the charge that has been held for them, if one was.
fn queued(bytes: Bytes, charge: Option<Charge>) -> Queued {
    match charge {
        Some(charge) => Queued::counted(bytes, Some(charge)),
        None => bytes.into(),
    }
}
