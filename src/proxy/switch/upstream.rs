//! The upstream side: what backends send, and what becomes of a client when one is lost.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use serde_json::json;

use super::table::{At, Flight, Seat};
use super::{QUEUE_BYTES_MAX, Switch, Target, UNANSWERED_MAX};
use crate::alarm::Alarm;
use crate::close::{At as Where, By, Close, Why};
use crate::config::Lifecycle;
use crate::fleet::{Backend, Lease};
use crate::link::Link;
use crate::metrics::Outcome;
use crate::net::Stream;
use crate::place::Refused;
use crate::proxy::inlet::{Frame, Inlet, Piece};
use crate::proxy::learned;
use crate::proxy::park::{Parked, park};
use crate::proxy::queue::Queue;
use crate::wire::envelope::Field;
use crate::wire::{Envelope, Id, Refusal, SessionId, reply};

/// One connection of one client to one backend.
pub(super) struct Upstream {
    stream: Stream,
    lease: Lease,
    inlet: Inlet,
    out: Queue,
    /// The client is in the middle of a large frame to this backend.
    midway: bool,
    /// Frames that wait for the end of that one.
    behind: Queue,
    alarm: Arc<Alarm>,
    /// Creates without an ID that it has not answered.
    pub births: usize,
    /// The rest of a large frame from this backend is not for the client.
    muted: bool,
}

impl Upstream {
    pub(super) fn new(link: Link) -> Self {
        let Link { stream, lease, unread } = link;
        Self {
            stream,
            lease,
            inlet: Inlet::new(By::Backend, unread),
            out: Queue::default(),
            midway: false,
            behind: Queue::default(),
            alarm: Arc::default(),
            births: 0,
            muted: false,
        }
    }

    pub(super) fn backend(&self) -> &Arc<Backend> {
        self.lease.backend()
    }

    /// Raised when the upstream has to be given up.
    pub(super) fn alarm(&self) -> &Arc<Alarm> {
        &self.alarm
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.out.is_empty() && !self.stream.has_unsent()
    }

    /// Whether more may be queued for the backend.
    pub(super) fn has_room(&self) -> bool {
        self.out.len() < QUEUE_BYTES_MAX
    }

    /// Queues a frame, never inside another.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.lease.backend().series().bytes_to_backend.inc_by(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.midway { self.behind.push(bytes) } else { self.out.push(bytes) }
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
    /// Parks the links of a client that has gone, with the sessions it was attached to.
    pub(super) fn park_all(&mut self) {
        let midway = match self.target {
            Some(Target::Upstream(at)) => Some(at),
            _ => None,
        };
        for (at, upstream) in std::mem::take(&mut self.upstreams) {
            let sessions = self.table.leave(at);
            if Some(at) == midway || sessions.is_empty() {
                continue;
            }
            let Upstream { stream, lease, inlet, mut out, .. } = *upstream;
            // A turn may wait for what only the client could have said.
            for id in self.table.unanswered(at) {
                out.push(reply::client_gone(&id).into());
            }
            park(&self.balancer, Parked { stream, lease, inlet, out, sessions });
        }
    }

    /// Moves what can move between one backend and the client.
    pub(super) fn turn_upstream(&mut self, at: At, cx: &mut Context<'_>) -> Result<bool, Close> {
        let Some(upstream) = self.upstreams.get_mut(&at) else { return Ok(false) };
        let mut moved = match upstream.out.poll_flush(&mut upstream.stream, cx) {
            Poll::Ready(Ok(wrote)) => wrote,
            Poll::Ready(Err(_)) => return self.lose(at).map(|()| true),
            Poll::Pending => false,
        };
        // What is in hand is passed on before more is read; nothing is read for a client that does not keep up, nor while
        // another backend is in the middle of a frame.
        loop {
            if self.out.len() >= QUEUE_BYTES_MAX || self.speaker.is_some_and(|speaker| speaker != at) {
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
                Err(fault) => {
                    tracing::warn!(backend = %upstream.backend().name(), %fault, "backend sent what is no frame");
                    return self.lose(at).map(|()| true);
                }
            }
            match upstream.inlet.poll_fill(&mut upstream.stream, cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(read)) if read > 0 => moved = true,
                Poll::Ready(_) => return self.lose(at).map(|()| true),
            }
        }
        Ok(moved)
    }

    fn take_from(&mut self, at: At, piece: Piece) {
        match piece {
            Piece::Frame(frame) => {
                let partial = frame.left > 0;
                if !partial
                    && frame.envelope.method.is_none()
                    && frame.envelope.id.as_ref().is_some_and(|id| self.is_ours(id))
                {
                    return self.own_answer(at, &frame);
                }
                let bytes = self.translate(at, &frame);
                let Some(upstream) = self.upstreams.get_mut(&at) else { return };
                upstream.muted = bytes.is_none();
                if partial && bytes.is_some() {
                    self.speaker = Some(at);
                    if let (None, Some(id)) = (&frame.envelope.method, &frame.envelope.id) {
                        self.table.begin(id);
                    }
                }
                self.tell(at, bytes.unwrap_or_default());
                if !partial && frame.envelope.method.is_none() {
                    if let Some(busy) = &self.busy
                        && busy.1.is_connect()
                        && frame.envelope.id.as_ref() == Some(&busy.0)
                    {
                        learned::learn(&self.balancer, &self.config, &busy.1, frame.body());
                    }
                    self.answered(at, &frame.envelope);
                }
            }
            Piece::More { bytes, end } => {
                if self.upstreams.get(&at).is_some_and(|upstream| !upstream.muted) {
                    self.tell(at, bytes);
                }
                if let Some(envelope) = end {
                    if self.speaker == Some(at) {
                        self.fall_silent();
                    }
                    if envelope.method.is_none() {
                        self.answered(at, &envelope);
                    }
                }
            }
        }
    }

    fn tell(&mut self, at: At, bytes: Bytes) {
        if let Some(upstream) = self.upstreams.get(&at) {
            let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            upstream.backend().series().bytes_to_client.inc_by(count);
        }
        self.say(bytes);
    }

    /// Whether an answer is to a request of sessile's own: a replayed state frame, a provider call. A client may number
    /// its requests alike, and is owed their answers.
    fn is_ours(&self, id: &Id) -> bool {
        id.raw().starts_with(b"\"sessile-") && !self.table.flights.contains_key(id)
    }

    /// What of a backend's frame the client is to see: answers as they are, requests under a number of their own, events
    /// of sessions it knows.
    fn translate(&mut self, at: At, frame: &Frame) -> Option<Bytes> {
        let envelope = &frame.envelope;
        match (envelope.method.as_deref(), &envelope.id) {
            (None, Some(id)) if self.is_ours(id) || self.table.is_too_late(at, id) => None,
            (None, _) => Some(frame.bytes.clone()),
            (Some(method), Some(id)) => {
                if let (true, Field::Is(request)) = (method.starts_with("llmInference."), &envelope.request) {
                    self.table.infer(request.clone(), at);
                }
                self.balancer.metrics.ids_rewritten.inc();
                let number = self.table.ask(at, id.clone());
                Some(frame.with_id(id, number.to_string().as_bytes()))
            }
            (Some("session.lifecycle"), None) if !self.may_hear(at, envelope) => None,
            (Some("$/cancelRequest"), None) => {
                let id = envelope.cancels.as_ref()?;
                let number = self.table.number_of(at, id)?;
                Some(frame.with_id(id, number.to_string().as_bytes()))
            }
            (Some(_), None) => Some(frame.bytes.clone()),
        }
    }

    /// Whether a broadcast event is any of this client's business: it knows the session, or waits for one to be born.
    fn may_hear(&self, at: At, envelope: &Envelope) -> bool {
        let born = self.upstreams.get(&at).is_some_and(|upstream| upstream.births > 0);
        let known = match &envelope.session {
            Field::Is(session) | Field::Long(session) => self.table.has_named(session),
            Field::Absent => true,
        };
        born || known || self.listener.lifecycle == Lifecycle::All
    }

    /// An answer has passed: what it changes.
    fn answered(&mut self, at: At, envelope: &Envelope) {
        let Some(id) = &envelope.id else { return };
        if let Some(born) = self.table.arrive_late(at, id) {
            if let (true, Field::Is(session)) = (born, &envelope.result_session) {
                self.disown(at, session);
            }
            return;
        }
        let outcome = if envelope.is_error { Outcome::Error(envelope.error_code) } else { Outcome::Success };
        let Some(flight) = self.table.arrive(id, outcome) else { return };
        self.landed(&flight, outcome);
        if flight.born
            && let Some(upstream) = self.upstreams.get_mut(&at)
        {
            upstream.births = upstream.births.saturating_sub(1);
            if let (Field::Is(session), false) = (&envelope.result_session, envelope.is_error) {
                self.born(at, session.clone());
            }
        }
        if let Some(busy) = self.busy.take_if(|busy| busy.0 == *id) {
            // The client's next frame has waited for this.
            self.barred = true;
            self.overdue = None;
            let (_, state) = *busy;
            if !envelope.is_error {
                self.authenticated |= state.is_connect();
                let known = Arc::make_mut(&mut self.state);
                if state.is_connect() {
                    known.retain(|known| !known.is_connect());
                }
                known.reserve_exact(1);
                known.push(state);
                self.version = envelope.protocol_version.clone().or(self.version.take());
            }
        }
    }

    pub(super) fn landed(&self, flight: &Flight, outcome: Outcome) {
        let metrics = &self.balancer.metrics;
        metrics.requests_in_flight.dec();
        metrics.requests.answered(flight.class, flight.since.elapsed(), outcome);
    }

    /// The server has named a session: it is this client's.
    fn born(&mut self, at: At, session: SessionId) {
        let Some(upstream) = self.upstreams.get(&at) else { return };
        let mut hold = self.balancer.owners.adopt(&session, upstream.backend());
        if let Some(hold) = &mut hold {
            hold.set_alarm(upstream.alarm());
        }
        self.table.sessions.insert(session, Seat::Seated { at, hold, attached: true, flights: 0 });
    }

    /// A session was born for a client that has been told it was not: nobody would ever let go of it.
    fn disown(&mut self, at: At, session: &SessionId) {
        let params = json!({ "sessionId": session.as_str() });
        let destroy = json!({ "jsonrpc": "2.0", "id": "sessile-disown", "method": "session.destroy", "params": params });
        self.push_up(at, reply::frame(destroy.to_string().as_bytes()).into());
        // The upstream's turn to be written to is over.
        self.barred = true;
    }

    /// A backend is lost: what it owed is answered, and who waits for a turn's end is told. The client's other sessions
    /// go on. Only a frame cut off in the middle cannot be mended.
    pub(super) fn lose(&mut self, at: At) -> Result<(), Close> {
        let Some(upstream) = self.upstreams.remove(&at) else { return Ok(()) };
        // Others may have waited for what it kept busy.
        self.barred = true;
        if self.speaker == Some(at) {
            return Err(Close::new(By::Backend, Where::Relay, Why::BackendLost));
        }
        // Ends what watches it.
        upstream.alarm().raise();
        let backend = Arc::clone(upstream.backend());
        tracing::info!(backend = %backend.name(), client = %self.record.client(), "a client lost a backend");
        drop(upstream);
        if matches!(self.target, Some(Target::Upstream(target)) if target == at) {
            self.target = Some(Target::Nowhere);
        }
        self.fail_calls(at);
        let wreck = self.table.wreck(at);
        self.answer_lost(&wreck.ids);
        for session in &wreck.sessions {
            self.say_own(lost_session(session));
        }
        Ok(())
    }

    /// Answers requests that a backend will not answer.
    pub(super) fn answer_lost(&mut self, ids: &[Id]) {
        let refused =
            Refused::later(Refusal::BackendLost, "the backend went away before it answered", &self.config);
        for id in ids {
            self.balancer.metrics.requests_in_flight.dec();
            // A state request is asked again of the next backend: nothing can go on without its answer.
            match self.busy.take_if(|busy| busy.0 == *id) {
                Some(busy) if self.held.is_none() && self.unanswered < UNANSWERED_MAX => {
                    self.unanswered = self.unanswered.saturating_add(1);
                    let again = crate::proxy::client::Frame::of_state(&busy.1);
                    let (bytes, body_at, envelope) = (again.bytes, again.body_at, again.envelope);
                    self.held = Some(Box::new(Frame { bytes, body_at, envelope, left: 0 }));
                }
                _ => self.refuse(Some(id), &refused),
            }
        }
    }

    pub(super) fn push_up(&mut self, at: At, bytes: Bytes) {
        self.record.add_to_backend(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if let Some(upstream) = self.upstreams.get_mut(&at) {
            upstream.push(bytes);
        }
    }
}

/// The event that releases an SDK's wait for the end of a turn.
fn lost_session(session: &SessionId) -> Vec<u8> {
    let now = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    let data = json!({
        "errorType": "backend_lost",
        "message": "the backend of this session went away; resume the session to go on",
    });
    let event = json!({ "type": "session.error", "data": data, "id": event_id(), "timestamp": now, "parentId": null });
    let params = json!({ "sessionId": session.as_str(), "event": event });
    let body = json!({ "jsonrpc": "2.0", "method": "session.event", "params": params });
    reply::frame(body.to_string().as_bytes())
}

/// Something like a UUID, for events that need an id of their own.
fn event_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    let (high, low) = (RandomState::new().hash_one(0), RandomState::new().hash_one(1));
    let hex = format!("{high:016x}{low:016x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}
