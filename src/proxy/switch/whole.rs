//! IDs that a server might take for the beginning of others: what is sent of such a request, and when.

use super::downstream::Target;
use super::table::Binding;
use super::waiting::Waiter;
use super::{Switch, job};
use crate::proxy::inlet::Frame;
use crate::wire::{Envelope, SessionId};

impl Switch<'_> {
    /// A server might take the ID for the beginning of another: the fleet is asked first, and frames of the session wait.
    pub(super) fn ask_whether_whole(&mut self, frame: Frame, session: &SessionId) {
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
        let (before, begun) = (self.client.set_rest(None), self.table.set_begun(None));
        let mut is_first = true;
        for waiter in waiting.into_pieces() {
            match (waiter, self.client.rest()) {
                (Waiter::Frame(frame), _) => {
                    self.client.set_rest(None);
                    let plan = self.view().plan_whole(&frame, is_first);
                    self.act(plan, *frame);
                    is_first = false;
                }
                (Waiter::More(bytes), Some(Target::Upstream(at))) => {
                    self.note_more(&bytes);
                    self.push_up(at, bytes);
                }
                (Waiter::More(bytes), Some(Target::Job(job))) => self.waiting.push_more(job, bytes),
                (Waiter::More(_), _) => {}
            }
        }
        let after = match before {
            Some(Target::Job(number)) if number == job => self.client.rest().or(Some(Target::Nowhere)),
            before => before,
        };
        if before != Some(Target::Job(job)) {
            self.table.set_begun(begun);
        }
        self.client.set_rest(after);
        self.begin();
    }
}

/// The frame that is sent in a request's place, and still counts as that request: its answer is put into the words of what
/// was asked.
pub(super) fn instead(frame: &Frame) -> Option<Frame> {
    let sent = Frame::instead(&frame.envelope)?;
    let envelope = Envelope { method: frame.envelope.method.clone(), ..sent.envelope };
    Some(Frame { envelope, ..sent })
}
