//! Where each frame of the client goes.

use std::sync::Arc;
use std::time::Instant as StdInstant;

use super::errand::{self, News};
use super::merge;
use super::method::{self, Effect, Merge, Way};
use super::table::{At, Flight, NOWHERE, Seat};
use super::{Switch, Target, Waiter};
use crate::link::StateFrame;
use crate::metrics::{Class, Outcome};
use crate::place::{Refused, addresses};
use crate::proxy::inlet::Frame;
use crate::proxy::learned;
use crate::wire::envelope::Field;
use crate::wire::{Id, Named, Refusal, reply};

impl Switch<'_> {
    /// Sends a frame on its way.
    pub(super) fn dispatch(&mut self, frame: Frame) {
        if frame.left > 0 {
            self.target = Some(Target::Nowhere);
        }
        let Some(method) = frame.envelope.method.clone() else {
            return self.answer_up(frame);
        };
        if let Some(id) = &frame.envelope.id
            && self.table.flights.contains_key(id)
        {
            return self.refuse(Some(id), &plain(Refusal::Malformed, "a request with this id is in flight"));
        }
        if self.table.is_full() {
            let message = "this client has too many sessions or requests in flight";
            return self.refuse(frame.envelope.id.as_ref(), &plain(Refusal::Limit, message));
        }
        if self.listener.methods.denies(&method) {
            let message = format!("{method} affects a whole server; this listener does not allow it");
            return self.refuse(frame.envelope.id.as_ref(), &plain(Refusal::Denied, &message));
        }
        match method::way(&method) {
            Way::State => self.state_request(frame, &method),
            Way::Cancel => self.cancel(frame),
            Way::Inference => match self.inferring(&frame) {
                Some(at) => {
                    self.forward(at, frame);
                }
                None => self.forward_any(frame),
            },
            Way::Fleet(merge) if self.may_know() && self.is_many() => self.of_fleet(&frame, merge, &method),
            Way::Provider if self.may_know() && self.is_many() => self.provide(frame, &method),
            Way::Ordinary | Way::Provider | Way::Fleet(_) => match frame.envelope.named() {
                named @ (Named::Session(_) | Named::Untracked(_) | Named::Born) if self.may_know() => {
                    self.by_session(frame, &method, &named);
                }
                _ => self.forward_any(frame),
            },
        }
    }

    /// Keeps other frames out of the large one that is on its way to an upstream, if one is.
    pub(super) fn begin(&mut self) {
        if let Some(Target::Upstream(at)) = self.target
            && let Some(upstream) = self.upstreams.get_mut(&at)
        {
            upstream.begin();
        }
    }

    /// By the session that the frame names or will give birth to.
    fn by_session(&mut self, frame: Frame, method: &str, named: &Named) {
        let session = match named {
            Named::Session(session) | Named::Untracked(session) => Some(session),
            Named::Born | Named::Nothing => None,
        };
        if let Some(session) = session {
            if self.table.is_lost(session, method::revives(method)) {
                let message = "the backend of this session went away: resume the session to go on";
                let refused = Refused::later(Refusal::BackendLost, message, &self.config);
                return self.refuse(frame.envelope.id.as_ref(), &refused);
            }
            match self.table.sessions.get(session) {
                Some(Seat::Seated { at, .. }) => {
                    self.forward(*at, frame);
                    return;
                }
                Some(Seat::Placing(errand)) => return self.wait(*errand, frame),
                None => {}
            }
        }
        let must_exist = session.is_some() && !frame.envelope.creates();
        let (balancer, known, named) = (self.balancer.clone(), self.known(), named.clone());
        let number = self.send_out(|number| errand::place(&balancer, number, &named, must_exist, known));
        if let Some(session) = session {
            self.table.sessions.insert(session.clone(), Seat::Placing(number));
        }
        self.wait(number, frame);
    }

    /// To whatever upstream there is to a backend that is up; if there is none, one is fetched.
    fn forward_any(&mut self, frame: Frame) {
        if let Some(at) = self.any_up() {
            self.forward(at, frame);
            return;
        }
        let errand = match self.scouting {
            Some(errand) => errand,
            None => {
                let (balancer, known) = (self.balancer.clone(), self.known());
                self.send_out(|number| errand::scout(&balancer, number, known))
            }
        };
        self.scouting = Some(errand);
        self.wait(errand, frame);
    }

    /// The upstream that answers what any can: one whose backend is up, and that takes what it is sent if one does.
    pub(super) fn any_up(&self) -> Option<At> {
        let up = || self.upstreams.iter().filter(|(_, upstream)| upstream.backend().is_up());
        up().find(|(_, upstream)| upstream.has_room()).or_else(|| up().next()).map(|(at, _)| *at)
    }

    /// To an upstream; false if it is refused instead.
    pub(super) fn forward(&mut self, at: At, frame: Frame) -> bool {
        if let (Some(_), Some(id)) = (&frame.envelope.method, &frame.envelope.id)
            && self.table.flights.contains_key(id)
        {
            // Another with this id has been sent while this one waited.
            self.refuse(Some(id), &plain(Refusal::Malformed, "a request with this id is in flight"));
            return false;
        }
        if let (Some(method), Some(id)) = (&frame.envelope.method, &frame.envelope.id) {
            let named = frame.envelope.named();
            let born = named == Named::Born;
            let session = match named {
                Named::Session(session) | Named::Untracked(session) => Some(session),
                Named::Born | Named::Nothing => None,
            };
            if let (true, Some(upstream)) = (born, self.upstreams.get_mut(&at)) {
                upstream.births = upstream.births.saturating_add(1);
            }
            let (effect, class) = (method::effect(method), Class::of(method));
            self.balancer.metrics.requests_in_flight.inc();
            let flight = Flight { at, session, effect, born, begun: false, class, since: StdInstant::now() };
            self.table.depart(id.clone(), flight);
        }
        if frame.left > 0 {
            self.target = Some(Target::Upstream(at));
        }
        let released = match (&frame.envelope.id, frame.envelope.named()) {
            (None, Named::Session(session) | Named::Untracked(session)) => Some(session),
            _ => None,
        };
        self.push_up(at, frame.bytes);
        if let Some(session) = released {
            self.table.release(&session);
        }
        true
    }

    fn wait(&mut self, errand: u64, frame: Frame) {
        if frame.left > 0 {
            self.target = Some(Target::Errand(errand));
        }
        let waiting = self.waiting.entry(errand).or_default();
        waiting.bytes = waiting.bytes.saturating_add(frame.bytes.len());
        waiting.pieces.push_back(Waiter::Frame(Box::new(frame)));
    }

    /// The client's answer to a server's request: under the server's own id again.
    fn answer_up(&mut self, frame: Frame) {
        let Some(id) = &frame.envelope.id else { return };
        let Some(asked) = self.table.asked(id) else { return };
        let bytes = frame.with_id(id, asked.id.raw());
        if frame.left > 0 {
            self.target = Some(Target::Upstream(asked.at));
        }
        self.push_up(asked.at, bytes);
    }

    /// A state request: one upstream answers the client, the others are told and their answers swallowed.
    fn state_request(&mut self, frame: Frame, method: &str) {
        if frame.left > 0 {
            return self.refuse(frame.envelope.id.as_ref(), &plain(Refusal::Limit, "the frame is too long"));
        }
        if let Some(id) = frame.envelope.id.clone() {
            let state = StateFrame::new(frame.body(), method, id.clone());
            let held: usize = self.state.iter().map(StateFrame::bytes).sum();
            if held.saturating_add(state.bytes()) > self.config.limits.opening_bytes {
                let message = "the client's state is larger than limits.opening_bytes";
                return self.refuse(Some(&id), &plain(Refusal::Limit, message));
            }
            if state.is_connect()
                && self.is_new()
                && let Some(greeting) = learned::recall(&self.balancer, &self.config, state.body(), &id)
            {
                // No server has looked at it, so the client is not `authenticated`.
                self.state = Arc::new(vec![state]);
                self.version = greeting.protocol_version;
                return self.say_own(greeting.frame);
            }
            let answers = self.any_up();
            let others: Vec<At> = self.upstreams.keys().copied().filter(|at| Some(*at) != answers).collect();
            for at in others {
                let own = format!("\"sessile-{}\"", self.errand_last);
                self.push_up(at, reply::with_id(frame.body(), id.span(), own.as_bytes()).into());
            }
            self.wait_for_state();
            self.busy = Some(Box::new((id, state)));
        }
        self.forward_any(frame);
    }

    /// Whether no server has been told anything of this client, nor is one being looked for.
    fn is_new(&self) -> bool {
        self.upstreams.is_empty() && self.scouting.is_none() && self.state.is_empty()
    }

    /// From now on the state request has `timeouts.rehome` to be answered.
    pub(super) fn wait_for_state(&mut self) {
        self.overdue = Some(Box::pin(tokio::time::sleep(self.config.timeouts.rehome)));
        self.barred = true;
    }

    /// Asked of every server, over their query connections.
    fn of_fleet(&mut self, frame: &Frame, merge: Merge, method: &str) {
        let Some(id) = frame.envelope.id.clone().filter(|_| frame.left == 0) else {
            self.refuse(frame.envelope.id.as_ref(), &plain(Refusal::Limit, "the frame is too long"));
            return;
        };
        let body: serde_json::Value = serde_json::from_slice(frame.body()).unwrap_or_default();
        let params = body.get("params").cloned().unwrap_or_else(|| serde_json::json!({}));
        let (balancer, method) = (self.balancer.clone(), method.to_owned());
        self.depart_alone(id.clone(), &method);
        self.merging = self.merging.saturating_add(1);
        self.send_out(|_| {
            Box::pin(async move {
                let (frame, outcome) = merge::merged(&balancer, merge, &method, params, &id).await;
                News::Merged { id, frame, outcome }
            })
        });
    }

    /// Notes a request that is not on one upstream.
    pub(super) fn depart_alone(&mut self, id: Id, method: &str) {
        self.balancer.metrics.requests_in_flight.inc();
        let (effect, class) = (Effect::None, Class::of(method));
        let (at, session, since) = (NOWHERE, None, StdInstant::now());
        let flight = Flight { at, session, effect, born: false, begun: false, class, since };
        self.table.depart(id, flight);
    }

    /// Its answer is there.
    pub(super) fn end_alone(&mut self, id: &Id, outcome: Outcome) {
        if let Some(flight) = self.table.arrive(id, outcome) {
            self.landed(&flight, outcome);
        }
    }

    /// Whether the fleet is more than one server.
    fn is_many(&self) -> bool {
        addresses(&self.balancer.now()).nth(1).is_some()
    }

    /// A cancellation follows the request it cancels: to its backend, or to where it waits.
    fn cancel(&mut self, frame: Frame) {
        if frame.left > 0 {
            return self.refuse(frame.envelope.id.as_ref(), &plain(Refusal::Limit, "the frame is too long"));
        }
        if let Some(at) = self.cancelled(&frame) {
            return self.push_up(at, frame.bytes);
        }
        let Some(id) = &frame.envelope.cancels else { return };
        let errand = self.waiting.iter().find(|(_, waiting)| waiting.has(id)).map(|(errand, _)| *errand);
        if let Some(errand) = errand {
            self.wait(errand, frame);
        }
    }

    /// The upstream of the request that a cancellation is about.
    pub(super) fn cancelled(&self, frame: &Frame) -> Option<At> {
        let flight = self.table.flights.get(frame.envelope.cancels.as_ref()?)?;
        Some(flight.at)
    }

    /// The upstream whose inference a frame is part of.
    pub(super) fn inferring(&self, frame: &Frame) -> Option<At> {
        match &frame.envelope.request {
            Field::Is(request) => self.table.inference(request),
            Field::Absent | Field::Long(_) => None,
        }
    }

    /// Whether the client may learn where sessions are: see the opening.
    pub(super) fn may_know(&self) -> bool {
        self.authenticated || !self.balancer.demands_token()
    }
}

/// A refusal that trying again does not mend.
pub(super) fn plain(refusal: Refusal, message: &str) -> Refused {
    Refused { refusal, message: message.to_owned(), retry_after: None }
}
