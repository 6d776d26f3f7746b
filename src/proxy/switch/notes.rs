//! What is noted of requests, so that their sessions can be brought back as they are.
//!
//! Only openings, settings that servers forget, and what makes a session unmovable are noted, once they have succeeded. Any other
//! request about a session that could be brought back is kept until it is answered: its server may say that it does not have the
//! session, and then nothing has happened.

use super::Switch;
use super::in_flight::{InFlight, Note};
use super::table::KeptAccount;
use crate::proxy::inlet::Frame;
use crate::session::{Journals, Kept, Opening, Unmovable};
use crate::wire::envelope::Field;
use crate::wire::method::{Class, Effect, Needs};
use crate::wire::{Envelope, Method};

/// What requests of one client may take that may be sent once more: the longest is as long.
const AGAIN_BYTES_MAX: usize = 64 * 1024;

/// What is to be made of a request's success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// It opens the session.
    Opening,
    /// It sets what servers forget.
    Setting,
    /// It changes what cannot be said again.
    Pins,
    /// It only takes values of settings away.
    Overrides,
    Nothing,
}

fn noted(method: &Method) -> Noted {
    match method.class {
        _ if method.effect == Effect::Attach => Noted::Opening,
        Class::Replayed => Noted::Setting,
        Class::Unmovable => Noted::Pins,
        _ if !method.overrides.is_empty() => Noted::Overrides,
        _ => Noted::Nothing,
    }
}

/// Whether a request may be sent once more, should its server not have the session.
fn may_go_again(method: &Method) -> bool {
    method.needs == Needs::Live && method.effect == Effect::None
}

/// What is to be made of a request when it has been answered. Whatever is kept of a client's counts on one account.
pub(super) fn note(
    journals: &Journals,
    mut account: KeptAccount<'_>,
    frame: &Frame,
    could_revive: bool,
) -> Option<Box<Note>> {
    let method = frame.envelope.known()?;
    let (noted, again) = (noted(method), could_revive && may_go_again(method));
    if !again && noted == Noted::Nothing || !journals.is_on() {
        return None;
    }
    let bytes_max = match noted {
        Noted::Opening | Noted::Setting => journals.bytes_max().saturating_add(AGAIN_BYTES_MAX),
        Noted::Pins | Noted::Overrides | Noted::Nothing if again => AGAIN_BYTES_MAX,
        Noted::Pins | Noted::Overrides | Noted::Nothing => 0,
    };
    let account = account.account(|| journals.account());
    let kept = journals.keep(account, frame.body(), frame.left, bytes_max);
    let kept = match noted {
        Noted::Opening | Noted::Setting => kept.map(Kept::wiped),
        Noted::Pins | Noted::Overrides | Noted::Nothing => kept,
    };
    Some(Box::new(Note { method, kept, again }))
}

impl Switch<'_> {
    /// More of the client's large request has come.
    pub(super) fn note_more(&mut self, bytes: &[u8]) {
        if let Some(note) = self.table.begun_note()
            && let Ok(kept) = &mut note.kept
        {
            kept.more(bytes);
        }
    }

    /// A request has succeeded.
    pub(super) fn note_success(&mut self, flight: &InFlight, envelope: &Envelope) {
        let Some(Note { method, kept, .. }) = flight.note.as_deref() else { return };
        let session = match &envelope.result_session {
            Field::Is(session) if noted(method) == Noted::Opening => session,
            _ => match &flight.session {
                Some(session) => session,
                None => return,
            },
        };
        let Some((attachment, opening)) = self.table.opened(session, flight.at) else { return };
        let new = || self.balancer.journals.journal();
        if !method.overrides.is_empty() {
            attachment.journal(new).forget_options(method.overrides);
        }
        let body = kept.as_ref().map_err(|why| *why).and_then(|kept| kept.body().ok_or(Unmovable::Unread));
        match noted(method) {
            Noted::Overrides | Noted::Nothing => {}
            Noted::Pins => attachment.journal(new).pin(Unmovable::Method),
            Noted::Setting => match body {
                Ok(body) => attachment.journal(new).note(method, body, opening),
                Err(why) => attachment.journal(new).pin(why),
            },
            Noted::Opening => {
                let journal = attachment.journal(new);
                match body.and_then(|body| Opening::of(&journal, body)) {
                    Ok(opening) => self.table.set_opening(session, opening),
                    Err(why) => journal.pin(why),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Called;
    use crate::wire::method::all;

    #[test]
    fn every_method_is_noted_by_its_class_and_only_what_needs_a_live_session_goes_again() {
        for method in all().chain(["session.mystery"]) {
            let called = Called::from(method);
            let known = called.known();
            let expected = match method {
                "session.create" | "session.resume" | "sessions.open" | "sessions.connect" => Noted::Opening,
                _ if known.class == Class::Replayed => Noted::Setting,
                _ if known.class == Class::Unmovable => Noted::Pins,
                "session.model.setReasoningEffort" | "session.model.switchTo" => Noted::Overrides,
                _ => Noted::Nothing,
            };
            assert_eq!(noted(known), expected, "{method}");
        }
        for (method, may) in [
            ("session.send", true),
            ("session.getMessages", true),
            ("session.shell.exec", true),
            ("session.create", false),
            ("session.resume", false),
            ("session.detach", false),
            ("session.delete", false),
            ("session.getMetadata", false),
        ] {
            assert_eq!(may_go_again(Called::from(method).known()), may, "{method}");
        }
    }
}
