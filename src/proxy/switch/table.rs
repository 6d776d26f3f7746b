//! The books of one client: its sessions, the requests in flight in both directions, and what each answer changes.
//!
//! Client ids pass unchanged, so answers find their way by themselves; what is kept of them is for the day a backend is
//! lost. Ids of server requests overlap between backends and are rewritten to numbers unique on this connection.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Instant;

use super::method::Effect;
use crate::fleet::Hold;
use crate::metrics::{Class, Outcome};
use crate::wire::{Id, SessionId};

/// Requests in flight from one client, and its sessions; a further one is refused.
const FLIGHTS_MAX: usize = 4096;
const SESSIONS_MAX: usize = 16 * 1024;
/// Server requests the client has not answered, and sessions it has lost: beyond, the oldest knowledge goes.
const REMEMBERED_MAX: usize = 4096;

/// An upstream, by a number never used twice on a connection.
pub(super) type At = u64;

/// No upstream: the whole fleet.
pub(super) const NOWHERE: At = 0;

/// Where a session of this client is.
#[derive(Debug)]
pub(super) enum Seat {
    /// Being placed by this errand.
    Placing(u64),
    /// On this upstream.
    Seated { at: At, hold: Option<Hold>, attached: bool, flights: usize },
}

/// A request of the client that waits for its answer.
#[derive(Debug)]
pub(super) struct Flight {
    pub at: At,
    pub session: Option<SessionId>,
    pub effect: Effect,
    /// Its answer will name a session.
    pub born: bool,
    /// The beginning of its answer has passed.
    pub begun: bool,
    pub class: Class,
    pub since: Instant,
}

/// A server request that waits for the client's answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub at: At,
    pub id: Id,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub sessions: HashMap<SessionId, Seat>,
    pub flights: HashMap<Id, Flight>,
    asked: BTreeMap<u64, Asked>,
    asked_last: u64,
    /// Which upstream made an inference request.
    inferences: HashMap<SessionId, At>,
    /// The keys of `inferences`, the oldest first.
    inferences_by_age: VecDeque<SessionId>,
    /// Sessions whose backend was lost: what follows needs a resume first.
    lost: HashSet<SessionId>,
    /// Sessions that the client has named and is through with: what is broadcast about them may still be news to it.
    past: HashSet<SessionId>,
    /// Requests that were answered for an upstream which may still answer them, and whether that would name a session.
    stranded: HashMap<(At, Id), bool>,
}

/// What a lost upstream leaves behind.
#[derive(Debug, Default)]
pub(super) struct Wreck {
    /// Requests without an answer.
    pub ids: Vec<Id>,
    /// Sessions that were attached there.
    pub sessions: Vec<SessionId>,
}

impl Table {
    /// Whether one client asks for too much.
    pub(super) fn is_full(&self) -> bool {
        self.flights.len().saturating_add(self.stranded.len()) >= FLIGHTS_MAX
            || self.sessions.len() >= SESSIONS_MAX
    }

    /// The session that this errand was to place will not be.
    pub(super) fn forget(&mut self, errand: u64) {
        self.sessions.retain(|_, seat| !matches!(seat, Seat::Placing(number) if *number == errand));
    }

    /// Notes a request on its way.
    pub(super) fn depart(&mut self, id: Id, flight: Flight) {
        if let Some(session) = &flight.session
            && let Some(Seat::Seated { flights, .. }) = self.sessions.get_mut(session)
        {
            *flights = flights.saturating_add(1);
        }
        self.flights.insert(id, flight);
    }

    /// Notes an answer; the flight it ended.
    pub(super) fn arrive(&mut self, id: &Id, outcome: Outcome) -> Option<Flight> {
        let flight = self.flights.remove(id)?;
        if self.flights.is_empty() {
            // An idle client keeps no room for them.
            self.flights = HashMap::new();
        }
        if let Some(session) = &flight.session {
            self.settle(session, if outcome == Outcome::Success { flight.effect } else { Effect::None });
        }
        Some(flight)
    }

    fn settle(&mut self, session: &SessionId, effect: Effect) {
        let Some(Seat::Seated { attached, flights, .. }) = self.sessions.get_mut(session) else { return };
        *flights = flights.saturating_sub(1);
        match effect {
            Effect::Attach => *attached = true,
            Effect::Detach => *attached = false,
            Effect::None => {}
        }
        self.release(session);
    }

    /// Lets go of a session that this client neither holds nor waits for.
    pub(super) fn release(&mut self, session: &SessionId) {
        if matches!(self.sessions.get(session), Some(Seat::Seated { attached: false, flights: 0, .. })) {
            self.sessions.remove(session);
            if self.past.len() >= REMEMBERED_MAX {
                self.past.clear();
            }
            self.past.insert(session.clone());
        }
    }

    /// Whether the client has ever named this session.
    pub(super) fn has_named(&self, session: &SessionId) -> bool {
        self.sessions.contains_key(session) || self.past.contains(session)
    }

    /// The answer to a request has begun.
    pub(super) fn begin(&mut self, id: &Id) {
        if let Some(flight) = self.flights.get_mut(id) {
            flight.begun = true;
        }
    }

    /// Takes off the requests on an upstream that name no session and are not being answered; should it answer them after
    /// all, that is too late.
    pub(super) fn strand(&mut self, at: At) -> Vec<Id> {
        let is_stranded = |flight: &Flight| flight.at == at && flight.session.is_none() && !flight.begun;
        let stranded = self.flights.extract_if(|_, flight| is_stranded(flight));
        let stranded: Vec<(Id, bool)> = stranded.map(|(id, flight)| (id, flight.born)).collect();
        self.stranded.extend(stranded.iter().map(|(id, born)| ((at, id.clone()), *born)));
        stranded.into_iter().map(|(id, _)| id).collect()
    }

    /// Whether an answer comes after the client was told that none would.
    pub(super) fn is_too_late(&self, at: At, id: &Id) -> bool {
        !self.stranded.is_empty() && self.stranded.contains_key(&(at, id.clone()))
    }

    /// Notes such an answer: whether it may name a session. `None` if it is in time.
    pub(super) fn arrive_late(&mut self, at: At, id: &Id) -> Option<bool> {
        if self.stranded.is_empty() { None } else { self.stranded.remove(&(at, id.clone())) }
    }

    /// A new number for a server request.
    pub(super) fn ask(&mut self, at: At, id: Id) -> u64 {
        self.asked_last = self.asked_last.saturating_add(1);
        self.asked.insert(self.asked_last, Asked { at, id });
        if self.asked.len() > REMEMBERED_MAX {
            self.asked.pop_first();
        }
        self.asked_last
    }

    /// The server request that the client's answer with this id is for.
    pub(super) fn asked(&mut self, id: &Id) -> Option<Asked> {
        self.asked.remove(&number(id)?)
    }

    /// Who made that request.
    pub(super) fn asker(&self, id: &Id) -> Option<At> {
        self.asked.get(&number(id)?).map(|asked| asked.at)
    }

    /// Takes the requests of an upstream that the client has not answered.
    pub(super) fn unanswered(&mut self, at: At) -> Vec<Id> {
        self.asked.extract_if(.., |_, asked| asked.at == at).map(|(_, asked)| asked.id).collect()
    }

    /// The number that stands for a server request.
    pub(super) fn number_of(&self, at: At, id: &Id) -> Option<u64> {
        self.asked.iter().find(|(_, asked)| asked.at == at && asked.id == *id).map(|(number, _)| *number)
    }

    /// Remembers whose an inference request is.
    pub(super) fn infer(&mut self, request: SessionId, at: At) {
        if self.inferences.insert(request.clone(), at).is_none() {
            self.inferences_by_age.push_back(request);
        }
        if self.inferences_by_age.len() > REMEMBERED_MAX
            && let Some(oldest) = self.inferences_by_age.pop_front()
        {
            self.inferences.remove(&oldest);
        }
    }

    /// Whose an inference request is.
    pub(super) fn inference(&self, request: &SessionId) -> Option<At> {
        self.inferences.get(request).copied()
    }

    /// Whether the session's backend was lost and nothing has brought it back since. `revived` brings it back.
    pub(super) fn is_lost(&mut self, session: &SessionId, revived: bool) -> bool {
        if revived {
            self.lost.remove(session);
        }
        self.lost.contains(session)
    }

    /// Whether a session of this client is on an upstream.
    pub(super) fn seats(&self, at: At) -> bool {
        let there = |seat: &Seat| matches!(seat, Seat::Seated { at: upstream, .. } if *upstream == at);
        self.sessions.values().any(there)
    }

    /// Takes the sessions that the client is attached to on an upstream, the client having gone.
    pub(super) fn leave(&mut self, at: At) -> Vec<(SessionId, Option<Hold>)> {
        let there = |seat: &Seat| matches!(seat, Seat::Seated { at: upstream, .. } if *upstream == at);
        let left = self.sessions.extract_if(|_, seat| there(seat));
        let attached = |(session, seat)| match seat {
            Seat::Seated { hold, attached: true, .. } => Some((session, hold)),
            Seat::Seated { .. } | Seat::Placing(_) => None,
        };
        left.filter_map(attached).collect()
    }

    /// Takes everything that hangs on an upstream off the books.
    pub(super) fn wreck(&mut self, at: At) -> Wreck {
        let ids = self.flights.extract_if(|_, flight| flight.at == at).map(|(id, _)| id).collect();
        self.asked.retain(|_, asked| asked.at != at);
        self.stranded.retain(|(upstream, _), _| *upstream != at);
        self.inferences.retain(|_, upstream| *upstream != at);
        self.inferences_by_age.retain(|request| self.inferences.contains_key(request));
        let there = |seat: &Seat| matches!(seat, Seat::Seated { at: upstream, .. } if *upstream == at);
        let mut sessions = Vec::new();
        for (session, seat) in self.sessions.extract_if(|_, seat| there(seat)) {
            if self.lost.len() < SESSIONS_MAX {
                self.lost.insert(session.clone());
            }
            if matches!(seat, Seat::Seated { attached: true, .. }) {
                sessions.push(session);
            }
        }
        Wreck { ids, sessions }
    }
}

/// The number that stands for a server request, in a client's answer.
fn number(id: &Id) -> Option<u64> {
    str::from_utf8(id.raw()).ok()?.parse().ok()
}
