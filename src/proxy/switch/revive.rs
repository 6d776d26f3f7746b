//! Bringing sessions back whose backends have gone: on the client's own connection to their next one, for the client's next
//! frame. See [`revival`](super::revival) for how far one is.
//!
//! What the backend answers to sessile is not for the client; what it asks meanwhile reaches it at once.

use std::sync::Arc;

use super::in_flight::At;
use super::job::Event;
use super::revival::{Next, Revived};
use super::table::Binding;
use super::{Switch, job};
use crate::fleet::is_not_stored;
use crate::place::{Placed, Refused};
use crate::proxy::inlet::Frame;
use crate::session::{RevivalTurn, Subscriber};
use crate::wire::envelope::Field;
use crate::wire::{Id, Refusal, SessionId};

/// What the ids begin with under which backends are asked to bring sessions back.
const REVIVES: &str = "\"sessile-revive-";
/// How much of a server's words a refusal holds.
const WORDS_MAX: usize = 512;

impl Switch<'_> {
    /// Brings a session back, and keeps the frame until it is there.
    pub(super) fn revive(&mut self, session: &SessionId, frame: Frame) {
        let (balancer, known, of) = (self.balancer.clone(), self.known(), session.clone());
        let job = self.send_out(|number| job::revive(&balancer, number, of, known));
        self.table.begin_revival(session, job);
        self.wait(job, frame);
    }

    /// The backend on which a session was being brought back has gone, too.
    pub(super) fn revive_again(&mut self, job: u64) {
        let Some((session, reviving)) = self.table.revived_by(job) else { return };
        if !reviving.try_again() {
            let message = "the session could not be brought back: its servers went away one after the other";
            let refused = Refused::later(Refusal::ReviveFailed, message, &self.config);
            return self.fail_revival(job, &refused);
        }
        let (balancer, known) = (self.balancer.clone(), self.known());
        self.send_out(|_| job::revive(&balancer, job, session, known));
    }

    /// A session that is to be brought back has a home: what opens it is sent there.
    pub(super) fn has_home(&mut self, job: u64, placed: Result<(Placed, Option<RevivalTurn>), Refused>) {
        if self.table.revived_by(job).is_none() {
            // It was given up meanwhile.
            return;
        }
        let (Placed { opened, backend, attachment, reason }, turn) = match placed {
            Ok(placed) => placed,
            Err(refused) => return self.fail_revival(job, &refused),
        };
        let (Some(attachment), Some(at)) = (attachment, self.at_home(&backend, opened)) else {
            // The upstream that it was to use has been lost meanwhile.
            return self.revive_again(job);
        };
        if let Some(upstream) = self.upstreams.get(at) {
            attachment.subscribe(Subscriber::Inbox(Arc::clone(upstream.inbox())));
        }
        let Some((session, reviving)) = self.table.revived_by(job) else { return };
        // Another client may have brought it back, or opened it anew: what is said of it from now on is in one journal.
        let before = Arc::clone(reviving.opening().journal());
        let journal = attachment.journal(|| before);
        reviving.opening().set_journal(journal);
        reviving.opens(at, attachment, turn);
        let tries = reviving.tries();
        let frame = reviving.opening().resume(&own_id(job, tries, 0), &session);
        self.record.placed(Some(session), backend.name(), reason.label());
        self.push_up(at, frame.into());
        let patience = self.config.timeouts.rehome;
        self.waiting.watch(Box::pin(async move {
            tokio::time::sleep(patience).await;
            Event::Unrevived { job, tries }
        }));
        self.barred = true;
    }

    /// Notes what a backend answers that is to bring a session back, if that is what it answers.
    pub(super) fn has_answered_revival(&mut self, at: At, id: &Id, frame: &Frame) -> bool {
        let Some((job, tries, number)) = own_parts(id) else { return false };
        let Some((session, reviving)) = self.table.revived_by(job) else { return true };
        let is_opening = number == 0;
        let envelope = &frame.envelope;
        let is_it = matches!(&envelope.result_session, Field::Is(opened) if *opened == session);
        let is_good = !envelope.is_error && (is_it || !is_opening);
        let next = match reviving.answered(at, tries, is_opening, is_good) {
            Next::Settle => {
                let mut number: usize = 0;
                let mut id = || {
                    number = number.saturating_add(1);
                    own_id(job, tries, number)
                };
                let frames = reviving.opening().settings(&mut id, &session);
                let next = reviving.settles(frames.len());
                for frame in frames {
                    self.push_up(at, frame.into());
                }
                self.barred = true;
                next
            }
            next => next,
        };
        match next {
            Next::Wait | Next::Settle => {}
            Next::Done => self.has_revived(job),
            Next::Fail => {
                let words = frame.error_message();
                let said = words.as_deref().unwrap_or("its server answered with another");
                let creates = match is_not_stored(&session, envelope.error_code, said) {
                    true => self.waiting.take_those(job, |frame| frame.left == 0 && frame.envelope.creates()),
                    false => Vec::new(),
                };
                let said: String = said.chars().take(WORDS_MAX).collect();
                let message = format!("the session could not be brought back: {said}");
                let refused = Refused { refusal: Refusal::ReviveFailed, message, retry_after: None };
                self.fail_revival(job, &refused);
                self.create_anew(&session, creates);
            }
        }
        true
    }

    /// A session is back: what has waited for it goes on.
    fn has_revived(&mut self, job: u64) {
        let Some((session, revived)) = self.table.end_revival(job) else { return };
        let Revived { at, attachment, opening, resent, why, is_whole, took } = revived;
        let result = if is_whole { "whole" } else { "partial" };
        let ms = took.as_millis();
        tracing::info!(%session, why = why.label(), result, ms, "a session was brought back");
        self.balancer.metrics.revivals.ended(why.label(), result, took);
        let (attachment, opening) = (Some(attachment), Some(opening));
        self.table.bind(session, Binding::Bound { at, attachment, attached: true, flights: 0, opening });
        self.flush(job, at);
        // Its upstream may have had its part of this round.
        self.barred = true;
        for id in resent {
            self.sent_again(&id);
        }
    }

    /// A session is not coming back: what has waited for it is refused, and the client's next frame tries again.
    fn fail_revival(&mut self, job: u64, refused: &Refused) {
        let session = self.table.revived_by(job).map(|(session, _)| session);
        let Some((why, took)) = self.table.fail_revival(job) else { return };
        let (reason, why) = (refused.refusal.label(), why.label());
        if let Some(session) = session {
            tracing::warn!(%session, why, reason, "a session could not be brought back");
        }
        self.balancer.metrics.revivals.ended(why, "failed", took);
        self.unplaced(job, refused);
    }

    /// A session is stored nowhere, and the client has asked to create it: that is a new one.
    fn create_anew(&mut self, session: &SessionId, creates: Vec<Frame>) {
        if !creates.is_empty() {
            self.table.is_gone(session);
        }
        for create in creates {
            let plan = self.view().plan(&create);
            self.act(plan, create);
        }
    }

    /// The backend that is to bring a session back has had its time.
    pub(super) fn revival_overdue(&mut self, job: u64, tries: u8) {
        let Some((_, reviving)) = self.table.revived_by(job) else { return };
        if reviving.tries() != tries {
            return;
        }
        if let Some(upstream) = reviving.at().and_then(|at| self.upstreams.get(at)) {
            upstream.backend().hasten_probe();
        }
        let message = "the session could not be brought back: its server did not answer in time";
        let refused = Refused::later(Refusal::ReviveFailed, message, &self.config);
        self.fail_revival(job, &refused);
    }

    /// A backend has said that it does not have the session: nothing has happened, and the request is sent once more as soon as
    /// the session is back.
    pub(super) fn denied(&mut self, at: At, frame: Frame) {
        let Some(id) = &frame.envelope.id else { return };
        let Some(flight) = self.table.withdraw(id) else { return };
        self.balancer.metrics.requests_in_flight.dec();
        let body = flight.note.as_ref().and_then(|note| note.kept.as_ref().ok()?.body());
        let (Some(session), Some(again)) = (&flight.session, body.map(Frame::again)) else { return };
        self.table.deny(at, session);
        let plan = self.view().plan(&again);
        self.act(plan, again);
        self.sent_again(id);
    }

    /// A request has been sent once more, or is to be: not a third time.
    fn sent_again(&mut self, id: &Id) {
        if let Some(flight) = self.table.flight_mut(id) {
            if let Some(note) = &mut flight.note {
                note.again = false;
            }
        } else if let Some(job) = self.waiting.job_of(id)
            && let Some((_, reviving)) = self.table.revived_by(job)
        {
            reviving.note_resent(id.clone());
        }
    }
}

/// The id under which a backend is asked: to open the session for number 0, else to set something.
fn own_id(job: u64, tries: u8, number: usize) -> String {
    format!("{REVIVES}{job:x}-{tries:x}-{number:x}\"")
}

/// What such an id is made of.
fn own_parts(id: &Id) -> Option<(u64, u8, u64)> {
    let parts = str::from_utf8(id.raw()).ok()?.strip_prefix(REVIVES)?.strip_suffix('"')?;
    let mut parts = parts.split('-').map(|part| u64::from_str_radix(part, 16).ok());
    let (job, tries, number) = (parts.next()??, parts.next()??, parts.next()??);
    Some((job, u8::try_from(tries).ok()?, number))
}
