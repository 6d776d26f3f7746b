//! The books of one client: its sessions, the requests in flight in both directions, and what each answer changes.
//!
//! Client ids pass unchanged, so answers find their way by themselves; what is kept of them is for the day a backend is
//! lost. Ids of server requests overlap between backends and are rewritten to numbers unique on this connection.

use super::in_flight::{At, InFlight, InFlightTable};
use super::left::Left;
use crate::metrics::Outcome;
use crate::runtime::account::{Account, HeldMap, Owns, Recent};
use crate::session::Attachment;
use crate::wire::method::Effect;
use crate::wire::{Id, SessionId};

/// Sessions of one client; one more is refused.
const SESSIONS_MAX: usize = 16 * 1024;
/// What one more may own: its name, and its place in the directory.
const SESSION_BYTES_MAX: usize = 1024;
/// What server requests that the client has not answered may take: beyond, the oldest is given up.
const ASKED_BYTES_MAX: usize = 96 * 1024;
/// How many of the sessions that a client has left last are remembered, and of the inferences begun last: at least so many, and
/// at most twice as many, at which a table is full.
const PAST_MAX: usize = 448;
const INFERENCES_MAX: usize = 896;
/// Sessions whose backend was lost: seven eighths of a power of two, as a table is full then.
const LOST_MAX: usize = 14 * 1024;
/// What a session takes in the directory.
const OWNER_BYTES: usize = 160;

/// Where a session of this client is.
#[derive(Debug)]
pub(super) enum Binding {
    /// Being placed by this job.
    Placing(u64),
    /// On this upstream.
    Bound { at: At, attachment: Option<Attachment>, attached: bool, flights: usize },
}

/// The same whether it is held or not: there is room for it to be.
impl Owns for Binding {
    fn owns(&self) -> usize {
        OWNER_BYTES
    }
}

/// A server request that waits for the client's answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub at: At,
    pub id: Id,
}

impl Owns for Asked {
    fn owns(&self) -> usize {
        self.id.owns()
    }
}

#[derive(Debug)]
pub(super) struct Table {
    pub sessions: HeldMap<SessionId, Binding>,
    pub flights: InFlightTable,
    asked: HeldMap<u64, Asked>,
    /// No number below is among them.
    asked_first: u64,
    asked_last: u64,
    /// What few clients come to need.
    memories: Option<Box<Memories>>,
    pub account: Account,
}

/// What is remembered of what is over. Names are known by their hashes.
#[derive(Debug)]
struct Memories {
    /// Which upstream made an inference request.
    inferences: Recent<At>,
    /// Sessions whose backend was lost: what follows needs a resume first.
    lost: HeldMap<u64, ()>,
    /// Sessions that the client has named and is through with: what is broadcast about them may still be news to it.
    past: Recent<()>,
    /// Requests that were answered for an upstream which may still answer them.
    stranded: HeldMap<u64, Stranded>,
    /// Sessions that it has left on upstreams that stay.
    left: Left,
}

/// Such a request: for whom, and whether its answer would name a session.
#[derive(Debug)]
struct Stranded {
    at: At,
    born: bool,
}

impl Owns for Stranded {
    fn owns(&self) -> usize {
        0
    }
}

/// What a lost upstream leaves behind.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    /// Requests without an answer.
    pub ids: Vec<Id>,
    /// Sessions that were attached there.
    pub sessions: Vec<SessionId>,
}

impl Table {
    /// Nothing yet.
    pub(super) fn new(account: &Account) -> Self {
        Self {
            // They are as many as servers have opened.
            sessions: HeldMap::new(&account.apart()),
            flights: InFlightTable::new(account),
            asked: HeldMap::new(account),
            asked_first: 1,
            asked_last: 0,
            memories: None,
            account: account.clone(),
        }
    }

    fn memories(&mut self) -> &mut Memories {
        let account = &self.account;
        self.memories.get_or_insert_with(|| {
            Box::new(Memories {
                inferences: Recent::new(account, INFERENCES_MAX),
                lost: HeldMap::new(account),
                past: Recent::new(account, PAST_MAX),
                stranded: HeldMap::new(account),
                left: Left::new(account),
            })
        })
    }

    /// Bytes of everything but sessions, those that are lost among them.
    pub(super) fn books(&self) -> usize {
        let memories = self.memories.as_ref().map_or(0, |memories| {
            let Memories { inferences, past, stranded, .. } = &**memories;
            inferences.bytes().saturating_add(past.bytes()).saturating_add(stranded.bytes())
        });
        self.flights.bytes().saturating_add(self.asked.bytes()).saturating_add(memories)
    }

    /// Whether a request of this client that ends its part in the session has no answer yet.
    pub(super) fn is_ending(&self, session: &SessionId) -> bool {
        let ends =
            |flight: &InFlight| flight.effect == Effect::Detach && flight.session.as_ref() == Some(session);
        self.flights.iter().any(|(_, flight)| ends(flight))
    }

    /// Whether an upstream has been asked for a session that it will name itself.
    pub(super) fn is_bearing(&self, at: At) -> bool {
        self.flights.iter().any(|(_, flight)| flight.born && flight.at == at)
    }

    /// The sessions that the client is attached to, wherever.
    pub(super) fn attached(&self) -> Vec<SessionId> {
        let is_attached = |binding: &Binding| matches!(binding, Binding::Bound { attached: true, .. });
        let attached = self.sessions.iter().filter(|(_, binding)| is_attached(binding));
        attached.map(|(session, _)| session.clone()).collect()
    }

    /// Whether the client is attached to any session.
    pub(super) fn is_attached(&self) -> bool {
        self.sessions.iter().any(|(_, binding)| matches!(binding, Binding::Bound { attached: true, .. }))
    }

    /// Why this client may not have one more session, if it may not. One that it only asks about comes and goes with the
    /// request.
    pub(super) fn may_not_settle(&self) -> Option<&'static str> {
        if self.sessions.len() >= SESSIONS_MAX {
            return Some("this client has as many sessions as it may have: let go of one first");
        }
        let more = self.sessions.bytes_with(1, SESSION_BYTES_MAX).saturating_sub(self.sessions.bytes());
        let has_room = self.sessions.account().has_room(more);
        (!has_room).then_some("there is no room for more sessions now: limits.opening_memory is used up")
    }

    /// The session that this job was to place will not be.
    pub(super) fn forget(&mut self, job: u64) {
        self.sessions.extract(|_, binding| matches!(binding, Binding::Placing(number) if *number == job));
    }

    /// Notes a request on its way.
    pub(super) fn depart(&mut self, id: Id, mut flight: InFlight) {
        if let Some(session) = &flight.session
            && let Some(Binding::Bound { flights, .. }) = self.sessions.get_mut(session)
        {
            *flights = flights.saturating_add(1);
            flight.session = self.sessions.key(session).cloned();
            flight.shared = true;
        }
        self.flights.insert(id, flight);
    }

    /// Notes an answer; the flight it ended.
    pub(super) fn arrive(&mut self, id: &Id, outcome: Outcome) -> Option<InFlight> {
        let flight = self.flights.remove(id)?;
        if let Some(session) = &flight.session {
            self.settle(session, if outcome == Outcome::Success { flight.effect } else { Effect::None });
        }
        Some(flight)
    }

    fn settle(&mut self, session: &SessionId, effect: Effect) {
        let Some(Binding::Bound { attached, flights, .. }) = self.sessions.get_mut(session) else { return };
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
        if matches!(self.sessions.get(session), Some(Binding::Bound { attached: false, flights: 0, .. })) {
            self.sessions.remove(session);
            let name = self.sessions.hash_of(session);
            self.memories().past.insert(name, ());
        }
    }

    /// Whether the client has ever named this session.
    pub(super) fn has_named(&self, session: &SessionId) -> bool {
        let name = || self.sessions.hash_of(session);
        let is_past = |memories: &Memories| memories.past.get(name()).is_some();
        self.sessions.contains_key(session) || self.memories.as_deref().is_some_and(is_past)
    }

    /// The answer to a request has begun.
    pub(super) fn begin(&mut self, id: &Id) {
        if let Some(flight) = self.flights.get_mut(id) {
            flight.begun = true;
        }
    }

    /// Takes off those of the requests on an upstream that are not being answered; should it answer them after all, that is
    /// too late.
    pub(super) fn strand(&mut self, at: At, those: impl Fn(&InFlight) -> bool) -> Vec<Id> {
        let is_stranded = |flight: &InFlight| flight.at == at && !flight.begun && those(flight);
        let stranded = self.flights.extract(is_stranded);
        for (id, flight) in &stranded {
            let key = self.sessions.hash_of((at, id));
            self.memories().stranded.insert(key, Stranded { at, born: flight.born });
        }
        stranded.into_iter().map(|(id, _)| id).collect()
    }

    /// Of an answer that comes after the client was told that none would: whether it may name a session. `None` if it is in
    /// time.
    pub(super) fn late(&self, at: At, id: &Id) -> Option<bool> {
        let stranded = &self.memories.as_ref()?.stranded;
        if stranded.is_empty() {
            return None;
        }
        stranded.get(&self.sessions.hash_of((at, id))).map(|stranded| stranded.born)
    }

    /// Notes such an answer.
    pub(super) fn arrive_late(&mut self, at: At, id: &Id) {
        let key = self.sessions.hash_of((at, id));
        if let Some(memories) = &mut self.memories {
            memories.stranded.remove(&key);
        }
    }

    /// The request with this id will not attach the client to the session that it names.
    pub(super) fn misses(&mut self, id: &Id) {
        if let Some(flight) = self.flights.get_mut(id) {
            flight.effect = Effect::None;
        }
    }

    /// A new number for a server request.
    pub(super) fn ask(&mut self, at: At, id: Id) -> u64 {
        self.asked_last = self.asked_last.saturating_add(1);
        self.asked.insert(self.asked_last, Asked { at, id });
        self.asked_last
    }

    /// Gives up the oldest server request, if there are more of them than may be.
    pub(super) fn give_up_oldest(&mut self) -> Option<Asked> {
        while self.asked.bytes() > ASKED_BYTES_MAX && self.asked_first <= self.asked_last {
            let oldest = self.asked.remove(&self.asked_first);
            self.asked_first = self.asked_first.saturating_add(1);
            if oldest.is_some() {
                return oldest;
            }
        }
        None
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
        self.asked.extract(|_, asked| asked.at == at).into_iter().map(|(_, asked)| asked.id).collect()
    }

    /// The number that stands for a server request.
    pub(super) fn number_of(&self, at: At, id: &Id) -> Option<u64> {
        self.asked.iter().find(|(_, asked)| asked.at == at && asked.id == *id).map(|(number, _)| *number)
    }

    /// Remembers whose an inference request is.
    pub(super) fn infer(&mut self, request: &SessionId, at: At) {
        let name = self.sessions.hash_of(request);
        self.memories().inferences.insert(name, at);
    }

    /// Whose an inference request is.
    pub(super) fn inference(&self, request: &SessionId) -> Option<At> {
        self.memories.as_ref()?.inferences.get(self.sessions.hash_of(request)).copied()
    }

    /// Whether the session's backend was lost and nothing has brought it back since.
    pub(super) fn is_lost(&self, session: &SessionId) -> bool {
        let lost = self.memories.as_ref().map(|memories| &memories.lost).filter(|lost| !lost.is_empty());
        lost.is_some_and(|lost| lost.contains_key(&self.sessions.hash_of(session)))
    }

    /// A request is on its way that brings a lost session back.
    pub(super) fn revive(&mut self, session: &SessionId) {
        let Some(memories) = self.memories.as_mut().filter(|memories| !memories.lost.is_empty()) else {
            return;
        };
        memories.lost.remove(&self.sessions.hash_of(session));
    }

    /// Whether a session of this client is on an upstream.
    pub(super) fn bindings(&self, at: At) -> bool {
        let there =
            |binding: &Binding| matches!(binding, Binding::Bound { at: upstream, .. } if *upstream == at);
        self.sessions.iter().any(|(_, binding)| there(binding))
    }

    /// Takes the sessions that the client is attached to on an upstream, the client having gone.
    pub(super) fn leave(&mut self, at: At) -> Vec<(SessionId, Option<Attachment>)> {
        let there =
            |binding: &Binding| matches!(binding, Binding::Bound { at: upstream, .. } if *upstream == at);
        let left = self.sessions.extract(|_, binding| there(binding));
        let attached = |(session, binding)| match binding {
            Binding::Bound { attachment, attached: true, .. } => Some((session, attachment)),
            Binding::Bound { .. } | Binding::Placing(_) => None,
        };
        left.into_iter().filter_map(attached).collect()
    }

    /// What the client has left, if it may have left anything.
    pub(super) fn left(&self) -> Option<&Left> {
        self.memories.as_ref().map(|memories| &memories.left)
    }

    /// The same, to be changed.
    pub(super) fn left_mut(&mut self) -> &mut Left {
        &mut self.memories().left
    }

    /// What follows of this session needs a resume first.
    pub(super) fn note_lost(&mut self, session: &SessionId) {
        let name = self.sessions.hash_of(session);
        let lost = &mut self.memories().lost;
        if lost.len() < LOST_MAX {
            lost.insert(name, ());
        }
    }

    /// Takes everything that hangs on an upstream off the books.
    pub(super) fn drop_upstream(&mut self, at: At) -> Dropped {
        let ids = self.flights.extract(|flight| flight.at == at).into_iter().map(|(id, _)| id).collect();
        self.asked.extract(|_, asked| asked.at == at);
        if let Some(memories) = &mut self.memories {
            memories.stranded.extract(|_, stranded| stranded.at == at);
            memories.inferences.forget(|upstream| *upstream == at);
            memories.left.forget(at);
        }
        let there =
            |binding: &Binding| matches!(binding, Binding::Bound { at: upstream, .. } if *upstream == at);
        let mut sessions = Vec::new();
        for (session, binding) in self.sessions.extract(|_, binding| there(binding)) {
            self.note_lost(&session);
            if matches!(binding, Binding::Bound { attached: true, .. }) {
                sessions.push(session);
            }
        }
        Dropped { ids, sessions }
    }
}

/// The number that stands for a server request, in a client's answer.
fn number(id: &Id) -> Option<u64> {
    str::from_utf8(id.raw()).ok()?.parse().ok()
}
