//! What a request has opened: the session that its answer names, which need not be the one that was asked for.

use std::sync::Arc;

use super::Switch;
use super::in_flight::At;
use super::table::Binding;
use crate::place::Refused;
use crate::proxy::inlet::Frame;
use crate::session::{Adopted, Attachment, Subscriber};
use crate::wire::envelope::Field;
use crate::wire::method::{Effect, may_be_prefix};
use crate::wire::{Envelope, Refusal, SessionId, reply};

impl Switch<'_> {
    /// Takes note of the session that an answer names, if a request of this client has opened it. What to tell the client
    /// instead, if the session is another server's: the copy that was opened is let go of.
    pub(super) fn opened(&mut self, at: At, envelope: &Envelope) -> Option<Refused> {
        let (Some(id), Field::Is(session), false) =
            (&envelope.id, &envelope.result_session, envelope.is_error)
        else {
            return None;
        };
        let flight = self.table.flights.get_mut(id).filter(|flight| flight.at == at)?;
        if flight.effect != Effect::Attach || flight.session.as_ref() == Some(session) {
            return None;
        }
        // What was asked for is not what the client is attached to now.
        flight.effect = Effect::None;
        let by_prefix = flight.session.clone().filter(|asked| may_be_prefix(asked.as_str()));
        if let Some(asked) = by_prefix.filter(|_| self.balancer.now().has_several()) {
            return Some(self.opened_another(at, &asked, session));
        }
        let upstream = self.upstreams.get(at)?;
        match self.balancer.directory.adopt(session, upstream.backend()) {
            Adopted::Elsewhere(owner) => {
                tracing::warn!(%session, backend = %upstream.backend().name(), owner = %owner.name(), "a session was opened that is live elsewhere");
                self.close_copy(at, session);
                let message = format!("{session} is live on another server: resume it by its whole ID");
                Some(Refused::later(Refusal::SessionLocked, message, &self.config))
            }
            Adopted::Held(attachment) => {
                attachment.subscribe(Subscriber::Inbox(Arc::clone(upstream.inbox())));
                self.attach(at, session.clone(), Some(attachment));
                None
            }
            Adopted::Claimed => {
                self.attach(at, session.clone(), None);
                None
            }
        }
    }

    /// The server has taken an ID for the beginning of another, though the fleet had said that it was a whole one: the
    /// session of this ID has gone meanwhile. Where the other one lives nobody has asked, so the client's part in it, and
    /// a copy with it, is given up.
    fn opened_another(&mut self, at: At, asked: &SessionId, opened: &SessionId) -> Refused {
        let is_there =
            |binding: &Binding| matches!(binding, Binding::Bound { at: known, .. } if *known == at);
        if !self.table.sessions.get(opened).is_some_and(is_there) {
            let id = Some(&b"\"sessile-close\""[..]);
            self.push_up(at, reply::of_session("session.destroy", id, opened).into());
            self.barred = true;
        }
        if let Some(Binding::Bound { attached, .. }) = self.table.sessions.get_mut(asked) {
            *attached = false;
        }
        let message = format!("Session not found: {asked}: it has just been deleted");
        Refused { refusal: Refusal::Denied, message, retry_after: None }
    }

    /// The answer to a delete, in the words of the one that the client has called: another was sent in its place.
    fn deleted(&self, at: At, frame: Frame) -> Frame {
        const DELETED: &[u8] = br#"{"success":true}"#;
        let Some(id) = &frame.envelope.id else { return frame };
        let is_one = self.table.flights.get(id).is_some_and(|flight| flight.at == at && flight.deletes);
        let is_empty = || {
            let said: Option<serde_json::Value> = serde_json::from_slice(frame.body()).ok();
            said.is_some_and(|said| said.get("result") == Some(&serde_json::json!({})))
        };
        if !(is_one && is_empty()) {
            return frame;
        }
        let (before, after) = reply::around_result(id, DELETED.len());
        let bytes = [&before, DELETED, after].concat().into();
        Frame { bytes, ..frame }
    }

    /// The answer to be passed on, or a refusal in its place, which is then what it says of itself.
    pub(super) fn or_refusal(&mut self, at: At, frame: Frame) -> Frame {
        let Some(refused) = self.opened(at, &frame.envelope) else { return self.deleted(at, frame) };
        let Some(id) = &frame.envelope.id else { return frame };
        let Refused { refusal, message, retry_after } = &refused;
        self.balancer.metrics.errors_answered.with_label_values(&[refusal.label()]).inc();
        let bytes = reply::error(id, *refusal, message, *retry_after).into();
        let (is_error, error_code) = (true, Some(refusal.code()));
        let envelope = Envelope { is_error, error_code, result_session: Field::Absent, ..frame.envelope };
        Frame { bytes, envelope, ..frame }
    }

    /// This client is attached to a session there.
    fn attach(&mut self, at: At, session: SessionId, attachment: Option<Attachment>) {
        match self.table.sessions.get_mut(&session) {
            Some(Binding::Bound { at: known, attached, .. }) if *known == at => *attached = true,
            // It is being placed: that brings the attachment.
            Some(Binding::Placing(_)) => {}
            _ => {
                self.table
                    .sessions
                    .insert(session, Binding::Bound { at, attachment, attached: true, flights: 0 });
            }
        }
    }

    /// Lets go of a session that was opened on a server where it should not be.
    pub(super) fn close_copy(&mut self, at: At, session: &SessionId) {
        self.push_up(at, reply::close_session(Some(b"\"sessile-close\""), session).into());
        // The upstream's turn to be written to is over.
        self.barred = true;
    }
}
