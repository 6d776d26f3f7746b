//! A backend is lost: what becomes of the requests and sessions of a client that were there, and of the client itself if the
//! backend had begun a frame.

use std::sync::Arc;

use super::Switch;
use super::downstream::Target;
use super::in_flight::At;
use super::parting::session_error;
use super::table::Dropped;
use crate::close::{At as Where, By, Close, Why};
use crate::place::Refused;
use crate::proxy::inlet::Frame;
use crate::wire::{Id, Refusal, reply};

/// What a session's client is told.
pub(super) const GONE: &str = "the backend of this session went away; resume the session to go on";

/// How a backend is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    /// Its connection has ended: its sessions may be opened elsewhere as soon as the fleet says that they are live nowhere.
    Dead,
    /// It is given up, and may go on with its sessions.
    Silent,
}

impl Switch<'_> {
    /// A backend is lost: what it owed is answered, and who waits for a turn's end is told. The client's other sessions
    /// go on, unless it has the beginning of a frame from there.
    pub(super) fn lose(&mut self, at: At) -> Result<(), Close> {
        self.lost(at, Gone::Silent)
    }

    /// The same of one that has closed its connection, or is not there any more: its sessions are brought back.
    pub(super) fn lose_dead(&mut self, at: At) -> Result<(), Close> {
        self.lost(at, Gone::Dead)
    }

    fn lost(&mut self, at: At, how: Gone) -> Result<(), Close> {
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
        let Dropped { ids, sessions, reviving } = self.table.drop_upstream(at, how == Gone::Dead);
        self.answer_lost(&ids);
        for session in &sessions {
            self.say_own(session_error(session, Refusal::BackendLost, GONE));
        }
        for job in reviving {
            self.revive_again(job);
        }
        Ok(())
    }

    /// Answers requests that a backend will not answer.
    pub(super) fn answer_lost(&mut self, ids: &[(Id, bool)]) {
        let refused =
            Refused::later(Refusal::BackendLost, "the backend went away before it answered", &self.config);
        for (id, revivable) in ids {
            self.balancer.metrics.requests_in_flight.dec();
            // A state request is asked again of the next backend: nothing can go on without its answer.
            match self.state.give_up(Some(id)) {
                Some(state) if self.state.may_repeat() => {
                    self.waiting.hold(Frame::of_state(&state), true);
                }
                _ => self.refuse_lost(id, &refused, *revivable),
            }
        }
    }

    /// Answers a request whose backend went away.
    fn refuse_lost(&mut self, id: &Id, refused: &Refused, revivable: bool) {
        let Refused { refusal, message, retry_after } = refused;
        self.balancer.metrics.errors_answered.with_label_values(&[refusal.label()]).inc();
        self.say_own(reply::backend_lost(id, message, *retry_after, revivable));
    }
}
