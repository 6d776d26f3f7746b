//! IDs that a server might take for the beginning of others: what is sent of such a request, and when.

use super::downstream::Target;
use super::table::Binding;
use super::waiting::Waiter;
use super::{Switch, job};
use crate::place::Refused;
use crate::proxy::inlet::Frame;
use crate::proxy::refusals::NO_SESSION;
use crate::proxy::refusals::plain;
use crate::wire::method::Effect;
use crate::wire::{Envelope, Named, Refusal, SessionId};

impl Switch<'_> {
    /// A server might take the ID for the beginning of another. A delete is sent on as one that takes whole IDs only; the
    /// fleet is asked about the rest first, whatever this client has been told before: others may have deleted it.
    pub(super) fn by_whole_id(&mut self, frame: Frame, session: &SessionId) {
        let attached = matches!(self.table.binding(session), Some(Binding::Bound { attached: true, .. }));
        let frame = if frame.envelope.instead_of_prefix().is_some() {
            let Some(frame) = instead(&frame) else {
                return self.refuse(frame.envelope.id.as_ref(), &plain(Refusal::Malformed, NO_SESSION));
            };
            if attached {
                let plan = self.view().to_session(Named::Session(session.clone()));
                return self.act(plan, frame);
            }
            frame
        } else {
            frame
        };
        self.ask_whether_whole(frame, session);
    }

    /// Takes what the fleet has just said of the ID for true, unless this client is ending the session at the same time.
    fn take_whole(&mut self, frame: Frame) {
        let named = frame.envelope.named();
        if let Named::Session(session) = &named
            && frame.envelope.may_mean_another()
            && frame.envelope.instead_of_prefix().is_none()
            && self.is_ending(session)
        {
            let message = "this client is ending the session: wait for the answer";
            let refused = Refused::later(Refusal::SessionLocked, message, &self.config);
            return self.refuse(frame.envelope.id.as_ref(), &refused);
        }
        let plan = self.view().to_session(named);
        self.act(plan, frame);
    }

    /// Whether a request of this client that ends its part in the session is on its way, or waits to be.
    fn is_ending(&self, session: &SessionId) -> bool {
        let ends = |frame: &Frame| {
            frame.envelope.known().is_some_and(|known| known.effect == Effect::Detach)
                && frame.envelope.named() == Named::Session(session.clone())
        };
        self.table.is_ending(session) || self.waiting.has(ends)
    }

    /// A server might take the ID for the beginning of another: the fleet is asked first, and frames of the session wait.
    fn ask_whether_whole(&mut self, frame: Frame, session: &SessionId) {
        let (balancer, asked) = (self.balancer.clone(), session.clone());
        let number = self.send_out(|number| job::whole(&balancer, number, asked));
        if !self.table.has(session) {
            self.table.bind(session.clone(), Binding::Placing(number));
        }
        self.wait(number, frame);
    }

    /// The fleet has said that an ID is whole: what has waited for that goes on.
    pub(super) fn is_whole(&mut self, job: u64) {
        self.table.forget(job);
        let waiting = self.waiting.take(job);
        let before = self.client.set_rest(None);
        let mut is_first = true;
        for waiter in waiting.into_pieces() {
            match (waiter, self.client.rest()) {
                (Waiter::Frame(frame), _) => {
                    self.client.set_rest(None);
                    // What was said is true of the first only: that may be what ends the session.
                    match frame.envelope.known() {
                        Some(known) if !is_first => {
                            let plan = self.view().by_session(&frame.envelope, known, frame.envelope.named());
                            self.act(plan, *frame);
                        }
                        _ => self.take_whole(*frame),
                    }
                    is_first = false;
                }
                (Waiter::More(bytes), Some(Target::Upstream(at))) => self.push_up(at, bytes),
                (Waiter::More(bytes), Some(Target::Job(job))) => self.waiting.push_more(job, bytes),
                (Waiter::More(_), _) => {}
            }
        }
        let after = match before {
            Some(Target::Job(number)) if number == job => self.client.rest().or(Some(Target::Nowhere)),
            before => before,
        };
        self.client.set_rest(after);
        self.begin();
    }
}

/// The frame that is sent in a request's place, and still counts as that request: its answer is put into the words of what
/// was asked.
fn instead(frame: &Frame) -> Option<Frame> {
    let sent = Frame::instead(&frame.envelope).filter(|_| frame.left == 0)?;
    let envelope = Envelope { method: frame.envelope.method.clone(), ..sent.envelope };
    Some(Frame { envelope, ..sent })
}
