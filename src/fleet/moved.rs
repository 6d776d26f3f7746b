//! Sessions that went on elsewhere while a server was not up.
//!
//! A server that was cut off may still hold them, in the state they had then, through connections whose end it has not
//! seen. A client that was sent there would find a session without its newest turns. So the server is told to close
//! them before it counts as up again. A frozen server then reads what it had not read yet: a session may be opened
//! there *after* that closing. So a session stays in the list, the server is asked about it, and it leaves when it was
//! denied twice in a row.
//!
//! A session that is placed on this server again leaves the list, and no closing of it begins from then on. One that has
//! been sent may still overtake what the client sends, so the placement waits for its answer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::wire::SessionId;

/// Bytes of the IDs that are remembered of one server: room for 4,096 UUIDs.
const BYTES_MAX: usize = 256 * 1024;
/// What an ID costs beside its text.
const ENTRY_BYTES: usize = 28;

/// The sessions that moved off one server.
#[derive(Debug, Default)]
pub struct Moved {
    known: Mutex<Known>,
    /// Notified when no closing of some session is in flight any more.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Known {
    sessions: HashMap<SessionId, Entry>,
    bytes: usize,
    /// How many sessions were left out for lack of room.
    left_out: usize,
    /// How often the server was asked about some of them.
    rounds: u32,
}

#[derive(Debug, Default)]
struct Entry {
    /// The server was told to close it after it was last placed elsewhere.
    told: bool,
    /// A closing of it was sent and may not have run.
    closing: bool,
    /// The server denied it when it was asked last.
    denied: bool,
    /// The round in which it was asked last.
    asked: u32,
}

impl Moved {
    /// A session was placed on another server while this one was not up. If there is no room, those that the server was
    /// told to close are dropped. The others stay: they moved first, and are the likeliest to be still here.
    pub fn note(&self, session: &SessionId) {
        let mut known = self.known();
        if let Some(entry) = known.sessions.get_mut(session) {
            (entry.told, entry.denied) = (false, false);
        } else if known.make_room(cost(session)) {
            known.bytes = known.bytes.saturating_add(cost(session));
            known.sessions.insert(session.clone(), Entry::default());
        } else {
            known.left_out = known.left_out.saturating_add(1);
        }
    }

    /// A session is being placed on this server: its copy will be the valid one. Waits until no closing of it is in
    /// flight, that is, until the server has answered.
    pub async fn came_back(&self, session: &SessionId) {
        loop {
            let settled = self.settled.notified();
            {
                let mut known = self.known();
                if !known.sessions.get(session).is_some_and(|entry| entry.closing) {
                    known.remove(session);
                    return;
                }
            }
            settled.await;
        }
    }

    /// Begins the closing of up to `most` that the server has not been told to close yet.
    pub fn close_untold(&self, most: usize) -> Vec<SessionId> {
        let mut known = self.known();
        let untold = known.sessions.iter_mut().filter(|(_, entry)| !entry.told).take(most);
        let begun = untold.map(|(session, entry)| {
            entry.closing = true;
            session.clone()
        });
        begun.collect()
    }

    /// Begins to close one that is here although the server was told to close it. False: it must not be closed, because
    /// it was placed here again.
    pub fn close_again(&self, session: &SessionId) -> bool {
        let mut known = self.known();
        let Some(entry) = known.sessions.get_mut(session) else { return false };
        (entry.closing, entry.denied) = (true, false);
        true
    }

    /// The server has answered that.
    pub fn closed(&self, session: &SessionId) {
        if let Some(entry) = self.known().sessions.get_mut(session) {
            *entry = Entry { told: true, closing: false, denied: false, asked: entry.asked };
        }
        self.settled.notify_waiters();
    }

    /// No answer will come: the server is to be told again.
    pub fn unclosed(&self, session: &SessionId) {
        if let Some(entry) = self.known().sessions.get_mut(session) {
            entry.told = false;
        }
    }

    /// The connection was lost, and every answer that was due with it.
    pub fn lost(&self) {
        for entry in self.known().sessions.values_mut() {
            entry.told &= !entry.closing;
            entry.denied = false;
        }
    }

    /// Closings had no answer in time, and are not waited for any longer. They count as told, and may still run.
    pub fn give_up_closing(&self) {
        for entry in self.known().sessions.values_mut().filter(|entry| entry.closing) {
            entry.told = true;
        }
    }

    /// Up to `most` of those that the server was told to close, to be asked about: each in its turn.
    pub fn to_ask(&self, most: usize) -> Vec<SessionId> {
        let mut known = self.known();
        known.rounds = known.rounds.saturating_add(1);
        let round = known.rounds;
        let mut told: Vec<_> = known.sessions.iter_mut().filter(|(_, entry)| entry.told).collect();
        if let Some(last) = most.checked_sub(1).filter(|last| *last < told.len()) {
            told.select_nth_unstable_by_key(last, |(_, entry)| entry.asked);
        }
        let asked = told.into_iter().take(most).map(|(session, entry)| {
            entry.asked = round;
            session.clone()
        });
        asked.collect()
    }

    /// The server's answer about one. Denied twice in a row, it leaves the list; any other answer, or none, starts the
    /// count anew.
    pub fn heard(&self, session: &SessionId, denied: bool) {
        let mut known = self.known();
        let Some(entry) = known.sessions.get_mut(session).filter(|entry| entry.told) else { return };
        if denied && entry.denied {
            known.remove(session);
            drop(known);
            self.settled.notify_waiters();
        } else {
            entry.denied = denied;
        }
    }

    /// How many there was no room for since this was asked last.
    pub fn take_left_out(&self) -> usize {
        std::mem::take(&mut self.known().left_out)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.known().sessions.is_empty()
    }

    /// Whether there are some that the server has not been told to close.
    pub fn has_untold(&self) -> bool {
        self.known().sessions.values().any(|entry| !entry.told)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Whether there is room for so many bytes more.
    fn make_room(&mut self, bytes: usize) -> bool {
        while self.bytes.saturating_add(bytes) > BYTES_MAX {
            let told = self.sessions.iter().find(|(_, entry)| entry.told && !entry.closing);
            let Some(told) = told.map(|(session, _)| session.clone()) else { return false };
            self.remove(&told);
        }
        true
    }

    fn remove(&mut self, session: &SessionId) {
        if self.sessions.remove(session).is_some() {
            self.bytes = self.bytes.saturating_sub(cost(session));
        }
        if self.sessions.is_empty() {
            // A table that once was large would stay large.
            self.sessions = HashMap::new();
        }
    }
}

fn cost(session: &SessionId) -> usize {
    session.as_str().len().saturating_add(ENTRY_BYTES)
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Does {
        Note,
        CloseUntold,
        CloseAgain,
        Closed,
        Unclosed,
        Lost,
        GiveUp,
        Ask,
        Denied,
        NotDenied,
        ComesBack,
    }

    /// Where one session stands.
    #[derive(Debug, PartialEq, Eq)]
    enum Stands {
        /// Not in the list.
        Off,
        /// To be closed.
        Untold,
        /// To be asked about.
        Told,
        /// The same, denied once.
        Denied,
        /// A closing of it is on its way: whoever places it here waits.
        Closing,
    }

    async fn after(steps: &[Does]) -> Stands {
        let (moved, session) = (Moved::default(), SessionId::new("s"));
        let all = std::slice::from_ref(&session);
        for step in steps {
            match step {
                Does::Note => moved.note(&session),
                Does::CloseUntold => assert_eq!(moved.close_untold(9), all, "{steps:?}"),
                Does::CloseAgain => drop(moved.close_again(&session)),
                Does::Closed => moved.closed(&session),
                Does::Unclosed => moved.unclosed(&session),
                Does::Lost => moved.lost(),
                Does::GiveUp => moved.give_up_closing(),
                Does::Ask => assert_eq!(moved.to_ask(9), all, "{steps:?}"),
                Does::Denied => moved.heard(&session, true),
                Does::NotDenied => moved.heard(&session, false),
                Does::ComesBack => assert!(poll!(Box::pin(moved.came_back(&session))).is_ready()),
            }
        }
        let stands = {
            let known = moved.known();
            assert_eq!(known.bytes > 0, !known.sessions.is_empty(), "{steps:?}");
            known.sessions.get(&session).map_or(Stands::Off, |entry| match entry {
                Entry { closing: true, .. } => Stands::Closing,
                Entry { told: false, .. } => Stands::Untold,
                Entry { denied: true, .. } => Stands::Denied,
                _ => Stands::Told,
            })
        };
        let comes_back = poll!(Box::pin(moved.came_back(&session))).is_ready();
        assert_eq!(comes_back, stands != Stands::Closing, "{steps:?}");
        stands
    }

    #[tokio::test]
    async fn a_session_leaves_when_it_was_denied_twice_in_a_row_or_came_back() {
        use Does::*;
        const TOLD: [Does; 3] = [Note, CloseUntold, Closed];
        for (told, then, stands) in [
            (false, &[][..], Stands::Off),
            (false, &[Note, Note], Stands::Untold),
            (false, &[Note, ComesBack], Stands::Off),
            (false, &[Note, CloseUntold], Stands::Closing),
            (false, &[Note, Denied, Denied], Stands::Untold),
            (true, &[], Stands::Told),
            (true, &[Note], Stands::Untold),
            (true, &[Ask, Denied], Stands::Denied),
            (true, &[Ask, Denied, Ask, Denied], Stands::Off),
            (true, &[Ask, Denied, Ask, NotDenied], Stands::Told),
            (true, &[Ask, Denied, Ask, NotDenied, Ask, Denied], Stands::Denied),
            (true, &[Ask, Denied, Note, Denied], Stands::Untold),
            (true, &[Ask, Denied, Note, CloseUntold, Closed, Ask, Denied], Stands::Denied),
            (true, &[Ask, Denied, ComesBack, Denied], Stands::Off),
            (true, &[Ask, NotDenied, CloseAgain], Stands::Closing),
            (true, &[Ask, Denied, Ask, CloseAgain, Closed, Ask, Denied], Stands::Denied),
            // It was placed here between the question and the answer.
            (true, &[Ask, ComesBack, CloseAgain], Stands::Off),
            (true, &[Ask, CloseAgain, Note], Stands::Closing),
            (true, &[Ask, CloseAgain, Unclosed, CloseUntold, Closed], Stands::Told),
            (false, &[Note, CloseUntold, Unclosed], Stands::Closing),
            (false, &[Note, CloseUntold, Unclosed, CloseUntold, Closed], Stands::Told),
            (true, &[Ask, CloseAgain, Lost, CloseUntold, Closed], Stands::Told),
            (true, &[Ask, Denied, Lost, Ask, Denied], Stands::Denied),
            // One that a server does not answer is asked about, and what it says then counts.
            (false, &[Note, CloseUntold, GiveUp], Stands::Closing),
            (false, &[Note, CloseUntold, GiveUp, Ask, Denied, Ask, Denied], Stands::Off),
            (false, &[Note, CloseUntold, GiveUp, Ask, CloseAgain, Closed], Stands::Told),
        ] {
            let steps = [if told { &TOLD[..] } else { &[] }, then].concat();
            assert_eq!(after(&steps).await, stands, "{steps:?}");
        }
    }

    #[tokio::test]
    async fn a_session_that_comes_back_waits_for_a_closing_on_its_way_and_is_never_closed_then() {
        let (moved, session) = (Moved::default(), SessionId::new("s"));
        moved.note(&session);
        assert_eq!(moved.close_untold(9).len(), 1);
        let mut coming = Box::pin(moved.came_back(&session));
        assert!(poll!(&mut coming).is_pending());
        moved.unclosed(&session);
        assert!(poll!(&mut coming).is_pending(), "what was written may be read yet");
        moved.closed(&session);
        assert!(poll!(&mut coming).is_ready());
        assert!(moved.is_empty() && !moved.close_again(&session));
        assert!(moved.close_untold(9).is_empty() && moved.to_ask(9).is_empty());
    }

    #[test]
    fn all_are_asked_about_in_turn() {
        let moved = Moved::default();
        for at in 0..10 {
            moved.note(&SessionId::new(&at.to_string()));
        }
        assert!(moved.to_ask(9).is_empty() && moved.has_untold());
        moved.close_untold(10).iter().for_each(|session| moved.closed(session));
        assert!(!moved.has_untold());
        for _ in 0..3 {
            let mut asked: Vec<_> = [4, 3, 3].iter().flat_map(|most| moved.to_ask(*most)).collect();
            asked.sort_by(|one, other| one.as_str().cmp(other.as_str()));
            asked.dedup();
            assert_eq!(asked.len(), 10);
        }
        assert_eq!((moved.to_ask(0).len(), moved.to_ask(99).len()), (0, 10));
    }

    #[tokio::test]
    async fn they_are_bounded_in_bytes_and_the_first_stay_that_are_to_be_closed() {
        let moved = Moved::default();
        let id = |at: usize| SessionId::new(&format!("{at:0>36}"));
        for at in 0..5000 {
            moved.note(&id(at));
            moved.note(&id(0));
        }
        assert_eq!((moved.take_left_out(), moved.take_left_out()), (5000 - 4096, 0));
        moved.came_back(&id(7)).await;
        moved.came_back(&id(4999)).await;
        let begun = moved.close_untold(5000);
        assert_eq!(begun.len(), 4095);
        assert!(!begun.contains(&id(7)) && begun.contains(&id(0)));
        moved.note(&id(7));
        moved.note(&id(5000));
        assert_eq!(moved.take_left_out(), 1, "closings that may not have run stay");
        begun.iter().for_each(|session| moved.closed(session));
        for at in 5000..9096 {
            moved.note(&id(at));
        }
        assert_eq!((moved.take_left_out(), moved.close_untold(5000).len()), (1, 4096));
    }
}
