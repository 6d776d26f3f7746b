//! What a request has opened: the session that its answer names, which need not be the one that was asked for.

use std::sync::Arc;

use super::Switch;
use super::fate::Opens;
use super::in_flight::At;
use super::table::Binding;
use crate::place::Refused;
use crate::proxy::inlet::Frame;
use crate::session::{Adopted, Subscriber};
use crate::wire::envelope::Field;
use crate::wire::{Envelope, Refusal, SessionId, reply};

impl Switch<'_> {
    /// Takes note of the session that an answer has opened. What to tell the client instead, if that is another server's: the
    /// copy that was opened is let go of.
    pub(super) fn open(&mut self, at: At, opens: &Opens, envelope: &Envelope) -> Option<Refused> {
        if *opens == Opens::Nothing {
            return None;
        }
        let (Some(id), Field::Is(session)) = (&envelope.id, &envelope.result_session) else { return None };
        // What was asked for is not what the client is attached to now.
        self.table.misses(id);
        match opens {
            Opens::Nothing => None,
            Opens::Named => self.adopt(at, session),
            Opens::InsteadOf(asked) => Some(self.opened_another(at, asked, session)),
        }
    }

    /// Attaches this client to a session that it has opened there, if it is live nowhere else.
    fn adopt(&mut self, at: At, session: &SessionId) -> Option<Refused> {
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
                self.table.attach(at, session.clone(), Some(attachment));
                None
            }
            Adopted::Claimed => {
                self.table.attach(at, session.clone(), None);
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
        if !self.table.binding(opened).is_some_and(is_there) {
            let id = Some(&b"\"sessile-close\""[..]);
            self.push_up(at, reply::of_session("session.destroy", id, opened).into());
            self.barred = true;
        }
        self.table.detach(asked);
        let message = format!("Session not found: {asked}: it has just been deleted");
        Refused { refusal: Refusal::Denied, message, retry_after: None }
    }

    /// A refusal in the place of an answer, which is then what the frame says of itself.
    pub(super) fn refused_instead(&self, frame: Frame, refused: &Refused) -> Frame {
        let Some(id) = &frame.envelope.id else { return frame };
        let Refused { refusal, message, retry_after } = refused;
        self.balancer.metrics.errors_answered.with_label_values(&[refusal.label()]).inc();
        let bytes = reply::error(id, *refusal, message, *retry_after).into();
        let (is_error, error_code) = (true, Some(refusal.code()));
        let envelope = Envelope { is_error, error_code, result_session: Field::Absent, ..frame.envelope };
        Frame { bytes, envelope, ..frame }
    }

    /// Lets go of a session that was opened on a server where it should not be.
    pub(super) fn close_copy(&mut self, at: At, session: &SessionId) {
        self.push_up(at, reply::close_session(Some(b"\"sessile-close\""), session).into());
        // The upstream's turn to be written to is over.
        self.barred = true;
    }
}

/// The answer to a delete, in the words of the one that the client has called: another was sent in its place.
pub(super) fn deleted(frame: Frame) -> Frame {
    const DELETED: &[u8] = br#"{"success":true}"#;
    let Some(id) = &frame.envelope.id else { return frame };
    let said: Option<serde_json::Value> = serde_json::from_slice(frame.body()).ok();
    if said.is_none_or(|said| said.get("result") != Some(&serde_json::json!({}))) {
        return frame;
    }
    let (before, after) = reply::around_result(id, DELETED.len());
    let bytes = [&before, DELETED, after].concat().into();
    Frame { bytes, ..frame }
}
