//! Providers: calls that bind a whole server to this connection. Every server, or none.
//!
//! `sessionFs.setProvider` and `llmInference.setProvider` make a server call back over the connection that made them, so
//! each server of the fleet needs an upstream of this client first. The client gets one answer: the first failure, or a
//! success. Servers that come later are told as they are told any state.

use std::collections::HashMap;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Switch;
use super::in_flight::At;
use super::job::{self, Event};
use crate::close::Close;
use crate::link::{Link, StateFrame};
use crate::metrics::Outcome;
use crate::place::Refused;
use crate::proxy::inlet::Frame;
use crate::runtime::account::Charge;
use crate::wire::{Envelope, Id, Refusal, reply};

/// The calls on their way, by number.
#[derive(Default)]
pub(super) struct Providers {
    calls: HashMap<u64, Call>,
}

/// One call of the client, made of every server.
struct Call {
    id: Id,
    state: StateFrame,
    /// Who has not answered.
    waiting: Vec<At>,
    success: Option<Bytes>,
    failure: Option<(Bytes, Outcome)>,
    /// For both.
    charge: Charge,
    /// Goes with it, and ends its deadline.
    _over: oneshot::Sender<()>,
}

impl Call {
    /// It has failed for want of a server's answer, if not for another reason before.
    fn fail(&mut self, message: &str) {
        let refusal = Refusal::BackendLost;
        let answer = || reply::error(&self.id, refusal, message, None).into();
        self.failure.get_or_insert_with(|| (answer(), Outcome::Error(Some(refusal.code()))));
    }
}

impl Providers {
    /// Whether no call is on its way: only then does everybody know the same.
    pub(super) fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }
}

impl Switch<'_> {
    /// Makes sure that there is an upstream to every server, then calls them all.
    pub(super) fn provide(&mut self, frame: Frame) {
        let Some(id) = frame.envelope.id.clone() else { return };
        let state = match self.new_state(&frame, id.clone()) {
            Ok(state) => state,
            Err(refused) => return self.refuse(Some(&id), &refused),
        };
        self.depart_alone(id.clone(), &frame);
        let (balancer, known) = (self.balancer.clone(), self.known());
        let number = self.send_out(|number| job::everyone(&balancer, number, known));
        let (over, is_over) = oneshot::channel();
        let charge = self.client.account().charge();
        let call = Call { id, state, waiting: Vec::new(), success: None, failure: None, charge, _over: over };
        self.providers.calls.insert(number, call);
        let within = self.config.timeouts.rehome;
        self.waiting.watch(Box::pin(async move {
            drop(tokio::time::timeout(within, is_over).await);
            Event::Unprovided(number)
        }));
    }

    /// The call should have been answered by every server now; if it has not been, it has failed.
    pub(super) fn unprovided(&mut self, number: u64) {
        if let Some(call) = self.providers.calls.get_mut(&number) {
            call.waiting.clear();
            call.fail("a backend did not answer within timeouts.rehome");
        }
        self.end_calls();
    }

    /// Every server has an upstream, or one could not be reached and none is called.
    pub(super) fn provided(&mut self, job: u64, links: Result<Vec<Link>, Refused>) -> Result<(), Close> {
        let links = match links {
            Ok(links) => links,
            Err(refused) => {
                if let Some(call) = self.providers.calls.remove(&job) {
                    self.end_alone(&call.id, Outcome::Error(Some(refused.refusal.code())));
                    self.refuse(Some(&call.id), &refused);
                }
                return Ok(());
            }
        };
        for link in links {
            // A placement may have brought one meanwhile.
            if self.upstreams.to(link.stream.backend()).is_none() {
                self.install(link, None);
            }
        }
        let ats: Vec<At> = self.upstreams.numbers().collect();
        let Some(call) = self.providers.calls.get_mut(&job) else { return Ok(()) };
        call.waiting.clone_from(&ats);
        let own = own_id(job);
        let frame = reply::with_id(call.state.body(), call.id.span(), own.as_bytes());
        self.push_up_all(ats, frame);
        Ok(())
    }

    /// A server has answered something of sessile's own.
    pub(super) fn own_answer(&mut self, at: At, frame: &Frame) {
        let Some(id) = &frame.envelope.id else { return };
        if self.has_let_leave(at, id) || self.has_answered_revival(at, id, frame) {
            return;
        }
        let called = |number: &u64| id.raw() == own_id(*number).as_bytes();
        let Some(number) = self.providers.calls.keys().copied().find(called) else { return };
        let Some(call) = self.providers.calls.get_mut(&number) else { return };
        let answer = frame.with_id(id, call.id.raw());
        let Envelope { is_error, error_code, .. } = frame.envelope;
        let known = if is_error { call.failure.is_some() } else { call.success.is_some() };
        if !known {
            call.charge.force(call.charge.bytes().saturating_add(answer.len()));
        }
        if is_error {
            call.failure.get_or_insert((answer, Outcome::Error(error_code)));
        } else {
            call.success.get_or_insert(answer);
        }
        call.waiting.retain(|waiting| *waiting != at);
        self.end_calls();
    }

    /// A lost server has failed every call that waited for it.
    pub(super) fn fail_calls(&mut self, at: At) {
        for call in self.providers.calls.values_mut().filter(|call| call.waiting.contains(&at)) {
            call.waiting.retain(|waiting| *waiting != at);
            call.fail("a backend went away before it answered");
        }
        self.end_calls();
    }

    /// Answers the calls that every server has answered.
    fn end_calls(&mut self) {
        let ended =
            |call: &Call| call.waiting.is_empty() && (call.success.is_some() || call.failure.is_some());
        let over: Vec<Call> =
            self.providers.calls.extract_if(|_, call| ended(call)).map(|(_, call)| call).collect();
        // Frames may have waited for this.
        self.barred |= !over.is_empty();
        for Call { id, state, success, failure, .. } in over {
            let outcome = failure.as_ref().map_or(Outcome::Success, |(_, outcome)| *outcome);
            self.end_alone(&id, outcome);
            if outcome == Outcome::Success {
                self.state.accepted(state);
            }
            if let Some(answer) = failure.map(|(answer, _)| answer).or(success) {
                self.say_own(answer.to_vec());
            }
        }
    }
}

/// The id under which servers are called, as JSON text.
fn own_id(number: u64) -> String {
    format!("\"sessile-call-{number}\"")
}
