//! Broadcasts that may be about a session that is being born: created without an ID, so that its server chooses one.
//!
//! `session.lifecycle` comes before the answer that names the session. Until that answer is there, nobody knows whether such
//! an event is about this client's new session or about another client's: it is kept, and goes on or is dropped with the answer.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Switch;
use super::in_flight::At;
use crate::runtime::account::{Account, Charge, Owns, allocated};
use crate::wire::envelope::Field;
use crate::wire::{Envelope, SessionId};

/// Events of one upstream that are kept, and their bytes; beyond, the oldest go.
const EVENTS_MAX: usize = 64;
const BYTES_MAX: usize = 32 * 1024;

/// The events of one upstream.
#[derive(Debug)]
pub(super) struct Kept {
    events: VecDeque<(SessionId, Bytes)>,
    charge: Charge,
}

impl Kept {
    /// None yet.
    pub(super) fn new(account: &Account) -> Self {
        Self { events: VecDeque::new(), charge: account.charge() }
    }

    /// Keeps an event about `session`, if the client's share has room for it.
    pub(super) fn keep(&mut self, session: SessionId, event: &[u8]) {
        let more = takes(&session, event.len());
        while self.events.len() >= EVENTS_MAX
            || self.charge.bytes().saturating_add(more) > BYTES_MAX
            || !self.charge.account().has_share(more)
        {
            let Some((session, event)) = self.events.pop_front() else { return };
            self.discharge(takes(&session, event.len()));
        }
        self.charge.force(self.charge.bytes().saturating_add(more));
        // Copied: what was read with it is not to be kept as well.
        self.events.push_back((session, Bytes::copy_from_slice(event)));
    }

    fn discharge(&mut self, bytes: usize) {
        self.charge.force(self.charge.bytes().saturating_sub(bytes));
    }

    /// Takes the events about the session that was born, in their order.
    pub(super) fn take(&mut self, born: &SessionId) -> Vec<Bytes> {
        let (taken, left) =
            std::mem::take(&mut self.events).into_iter().partition(|(session, _)| session == born);
        self.events = left;
        let taken: VecDeque<(SessionId, Bytes)> = taken;
        let bytes = taken.iter().map(|(session, event)| takes(session, event.len()));
        self.discharge(bytes.fold(0, usize::saturating_add));
        taken.into_iter().map(|(_, event)| event).collect()
    }

    /// Nothing is being born any more.
    pub(super) fn clear(&mut self) {
        self.events = VecDeque::new();
        self.charge.force(0);
    }
}

/// What an event of so many bytes takes.
fn takes(session: &SessionId, bytes: usize) -> usize {
    allocated(bytes).saturating_add(session.owns()).saturating_add(size_of::<(SessionId, Bytes)>())
}

impl Switch<'_> {
    /// The answer to a birth is there: what was kept of its session goes first.
    pub(super) fn tell_birth(&mut self, at: At, answer: &Envelope) {
        let (Field::Is(session), Some(upstream)) = (&answer.result_session, self.upstreams.get_mut(at))
        else {
            return;
        };
        for event in upstream.take_kept(session) {
            self.tell(at, event.into());
        }
    }

    /// An upstream will not name a session any more, if that is so.
    pub(super) fn end_births(&mut self, at: At) {
        if let (false, Some(upstream)) = (self.table.is_bearing(at), self.upstreams.get_mut(at)) {
            upstream.drop_kept();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::account::Budget;

    #[test]
    fn only_so_much_is_kept_and_only_the_born_sessions_is_taken() {
        let id = |number: usize| SessionId::new(&number.to_string());
        let account = Budget::for_tests(0, None).account();
        let mut kept = Kept::new(&account);
        for number in 0..EVENTS_MAX + 2 {
            kept.keep(id(number), b"event");
            kept.keep(id(EVENTS_MAX), b"another");
        }
        assert_eq!(kept.events.len(), EVENTS_MAX);
        assert!(kept.take(&id(0)).is_empty(), "the oldest are gone");
        let ours = kept.take(&id(EVENTS_MAX));
        assert!(ours.iter().filter(|event| **event == b"another"[..]).count() > 10);
        assert!(kept.take(&id(EVENTS_MAX)).is_empty());
        let large = vec![b'x'; BYTES_MAX / 2 + 1];
        kept.keep(id(1), &large);
        kept.keep(id(2), &large);
        assert!(kept.take(&id(1)).is_empty() && kept.take(&id(2)) == [&large[..]]);
        assert_eq!(account.bytes(), 0);
        kept.keep(id(3), &vec![b'x'; BYTES_MAX]);
        assert_eq!((kept.events.len(), account.bytes()), (0, 0), "it has no room");
    }
}
