//! A backend is lost: what becomes of the requests and sessions of a client that were there, and of the client itself if the
//! backend had begun a frame.

use std::sync::Arc;

use super::Switch;
use super::downstream::Target;
use super::in_flight::At;
use super::parting::session_error;
use crate::close::{At as Where, By, Close, Why};
use crate::place::Refused;
use crate::proxy::inlet::Frame;
use crate::wire::{Id, Refusal};

/// What a session's client is told.
pub(super) const GONE: &str = "the backend of this session went away; resume the session to go on";

impl Switch<'_> {
    /// A backend is lost: what it owed is answered, and who waits for a turn's end is told. The client's other sessions
    /// go on, unless it has the beginning of a frame from there.
    pub(super) fn lose(&mut self, at: At) -> Result<(), Close> {
        let Some(upstream) = self.upstreams.remove(at) else { return Ok(()) };
        // Others may have waited for what it kept busy.
        self.barred = true;
        if self.client.hears(at) {
            // The client must be able to read on, to what it is told last.
            self.fill_up(upstream.unsaid());
            return Err(Close::new(By::Backend, Where::Relay, Why::BackendLost));
        }
        // Ends what watches it.
        upstream.inbox().close();
        let backend = Arc::clone(upstream.backend());
        tracing::info!(backend = %backend.name(), client = %self.record.client(), "a client lost a backend");
        drop(upstream);
        self.client.divert(Target::Upstream(at));
        self.fail_calls(at);
        let dropped = self.table.drop_upstream(at);
        self.answer_lost(&dropped.ids);
        for session in &dropped.sessions {
            self.say_own(session_error(session, Refusal::BackendLost, GONE));
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
            match self.state.give_up(Some(id)) {
                Some(state) if self.state.may_repeat() => {
                    self.waiting.hold(Frame::of_state(&state), true);
                }
                _ => self.refuse(Some(id), &refused),
            }
        }
    }
}
