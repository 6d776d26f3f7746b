//! The books of one client: its sessions, the requests in flight in both directions, and what each answer changes.
//!
//! Client ids pass unchanged, so answers need no table to find their way; requests are kept so that they can be answered when
//! their backend is lost.

mod revivals;
mod room;

use super::in_flight::{At, InFlight, InFlightTable, Note};
use super::left::Left;
use super::memories::Memories;
use super::revival::Why;
use super::server_requests::ServerRequests;
pub(super) use super::sessions::Binding;
use super::sessions::Sessions;
use crate::metrics::Outcome;
use crate::runtime::account::Account;
use crate::session::{Attachment, Sign};
use crate::wire::envelope::Field;
use crate::wire::method::Effect;
use crate::wire::{Envelope, Id, SessionId};
pub(super) use revivals::KeptAccount;
use revivals::Revivals;

/// Sessions of one client; one more is refused.
const SESSIONS_MAX: usize = 16 * 1024;
/// What one more may own: its name, and its place in the directory.
const SESSION_BYTES_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Table {
    sessions: Sessions,
    flights: InFlightTable,
    asked: ServerRequests,
    memories: Memories,
    /// What is on its way of bringing sessions back. Boxed: few clients are doing that.
    revivals: Option<Box<Revivals>>,
    account: Account,
}

/// What a lost upstream leaves behind.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    /// Requests without an answer, and whether their sessions can be brought back.
    pub ids: Vec<(Id, bool)>,
    /// Sessions that were attached there, and whose client is told.
    pub sessions: Vec<SessionId>,
    /// Jobs that were bringing sessions back there.
    pub reviving: Vec<u64>,
}

/// What a session leaves behind that has to leave an upstream.
pub(super) struct Evicted {
    /// Requests without an answer, and whether the session can be brought back.
    pub ids: Vec<(Id, bool)>,
    /// The client is told.
    pub is_told: bool,
    /// Its key among those that the client has left.
    pub key: u64,
}

impl Table {
    /// Nothing yet.
    pub(super) fn new(account: &Account) -> Self {
        Self {
            sessions: Sessions::new(account),
            flights: InFlightTable::new(account),
            asked: ServerRequests::new(account),
            memories: Memories::default(),
            revivals: None,
            account: account.clone(),
        }
    }

    /// Whose memory takes what comes with sessions that servers have opened.
    pub(super) fn sessions_account(&self) -> &Account {
        self.sessions.account()
    }

    /// Where a session of this client is.
    pub(super) fn binding(&self, session: &SessionId) -> Option<&Binding> {
        self.sessions.get(session)
    }

    /// Whether this is a session of this client.
    pub(super) fn has(&self, session: &SessionId) -> bool {
        self.sessions.contains_key(session)
    }

    /// A session is there from now on.
    pub(super) fn bind(&mut self, session: SessionId, binding: Binding) {
        self.sessions.insert(session, binding);
    }

    /// The client has opened a session there, or come to another in doing so.
    pub(super) fn attach(&mut self, at: At, session: SessionId, attachment: Option<Attachment>) {
        match self.sessions.get(&session) {
            Some(binding) if binding.is_on(at) => {
                self.sessions.set_attached(&session, true);
            }
            // It is being placed: that brings the attachment.
            Some(Binding::Placing(_)) => {}
            _ => self
                .bind(session, Binding::Bound { at, attachment, attached: true, flights: 0, opening: None }),
        }
    }

    /// The client has no part in a session, whatever it has asked for.
    pub(super) fn detach(&mut self, session: &SessionId) {
        self.sessions.set_attached(session, false);
    }

    /// The request of this client with this id that is in flight.
    pub(super) fn flight(&self, id: &Id) -> Option<&InFlight> {
        self.flights.get(id)
    }

    /// Whether a request of this client with this id is in flight.
    pub(super) fn is_in_flight(&self, id: &Id) -> bool {
        self.flights.contains_key(id)
    }

    /// The ids of the requests in flight.
    pub(super) fn ids_in_flight(&self) -> Vec<Id> {
        self.flights.iter().map(|(id, _)| id).cloned().collect()
    }

    /// How many requests are in flight.
    pub(super) fn flights_len(&self) -> usize {
        self.flights.len()
    }

    /// Forgets them, which gives back their memory: whoever counts them does so first.
    pub(super) fn forget_flights(&mut self) {
        self.flights.clear();
    }

    /// Bytes of everything but the sessions that the client is attached to, and those that are lost.
    pub(super) fn books(&self) -> usize {
        let flights = self.flights.bytes().saturating_add(self.sessions.named_bytes());
        flights.saturating_add(self.asked.bytes()).saturating_add(self.memories.bytes())
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
        self.sessions.attached().cloned().collect()
    }

    /// Whether the client is attached to any session.
    pub(super) fn is_attached(&self) -> bool {
        self.sessions.attached().next().is_some()
    }

    /// Why this client may not have one more session, if it may not. One that it only asks about comes and goes with the
    /// request.
    pub(super) fn may_not_settle(&self) -> Option<&'static str> {
        if self.sessions.len() >= SESSIONS_MAX {
            return Some("this client has as many sessions as it may have: let go of one first");
        }
        let has_room = self.sessions.account().has_room(self.sessions.more_attached(SESSION_BYTES_MAX));
        (!has_room).then_some("there is no room for more sessions now: limits.opening_memory is used up")
    }

    /// The session that this job was to place will not be.
    pub(super) fn forget(&mut self, job: u64) {
        self.sessions.extract(|binding| matches!(binding, Binding::Placing(number) if *number == job));
    }

    /// Notes a request on its way.
    pub(super) fn depart(&mut self, id: Id, flight: InFlight) {
        self.depart_noting(id, flight, |_, _| None);
    }

    /// The same with a note, given whether its session could be brought back and the account of what is kept.
    pub(super) fn depart_noting(
        &mut self,
        id: Id,
        mut flight: InFlight,
        note: impl FnOnce(bool, KeptAccount<'_>) -> Option<Box<Note>>,
    ) {
        let mut could_revive = false;
        if let Some(session) = &flight.session
            && let Some(could) = self.sessions.depart(session, flight.asks.sent())
        {
            could_revive = could;
            flight.session = self.sessions.key(session).cloned();
            flight.shared = true;
        }
        flight.note = note(could_revive, KeptAccount(&mut self.revivals));
        self.flights.insert(id, flight);
    }

    /// Notes an answer; the flight it ended.
    pub(super) fn arrive(&mut self, id: &Id, outcome: Outcome) -> Option<InFlight> {
        let flight = self.flights.remove(id)?;
        if let Some(session) = &flight.session {
            let is_error = outcome != Outcome::Success;
            let effect = if is_error { Effect::None } else { flight.effect };
            self.settle(session, effect, flight.asks.answered(is_error));
        }
        Some(flight)
    }

    fn settle(&mut self, session: &SessionId, effect: Effect, sign: Sign) {
        if !self.sessions.arrive(session, sign) {
            return;
        }
        if effect != Effect::None {
            self.sessions.set_attached(session, effect == Effect::Attach);
        }
        self.release(session);
    }

    /// Takes note of what a server says of a session.
    pub(super) fn note_said(&mut self, at: At, envelope: &Envelope) {
        if let (Field::Is(session), Some(sign)) = (&envelope.session, Sign::of_server(envelope)) {
            self.sessions.note(at, session, sign);
        }
    }

    /// Takes note of a client's frame about a session that waits for no answer.
    pub(super) fn note_used(&mut self, at: At, session: &SessionId) {
        self.sessions.note(at, session, Sign::Nothing);
    }

    /// Lets go of a session that this client neither holds nor waits for.
    pub(super) fn release(&mut self, session: &SessionId) {
        if matches!(self.sessions.get(session), Some(Binding::Bound { attached: false, flights: 0, .. })) {
            self.sessions.remove(session);
            let name = self.sessions.hash_of(session);
            self.memories.leave(&self.account, name);
        }
    }

    /// Whether the client has ever named this session.
    pub(super) fn has_named(&self, session: &SessionId) -> bool {
        self.has(session) || self.memories.knows(|| self.sessions.hash_of(session))
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
            self.memories.strand(&self.account, key, at, flight.born);
        }
        stranded.into_iter().map(|(id, _)| id).collect()
    }

    /// Of an answer that comes after the client was told that none would: whether it may name a session. `None` if it is in
    /// time.
    pub(super) fn late(&self, at: At, id: &Id) -> Option<bool> {
        self.memories.stranded(|| self.sessions.hash_of((at, id)))
    }

    /// Notes such an answer.
    pub(super) fn arrive_late(&mut self, at: At, id: &Id) {
        self.memories.arrive(self.sessions.hash_of((at, id)));
    }

    /// The request with this id will not attach the client to the session that it names.
    pub(super) fn misses(&mut self, id: &Id) {
        if let Some(flight) = self.flights.get_mut(id) {
            flight.effect = Effect::None;
        }
    }

    /// What servers have asked the client.
    pub(super) fn asked(&self) -> &ServerRequests {
        &self.asked
    }

    /// The same, to be changed.
    pub(super) fn asked_mut(&mut self) -> &mut ServerRequests {
        &mut self.asked
    }

    /// Remembers whose an inference request is.
    pub(super) fn infer(&mut self, request: &SessionId, at: At) {
        let name = self.sessions.hash_of(request);
        self.memories.infer(&self.account, name, at);
    }

    /// Whose an inference request is.
    pub(super) fn inference(&self, request: &SessionId) -> Option<At> {
        self.memories.inference(|| self.sessions.hash_of(request))
    }

    /// Whether the session's backend was lost and nothing has brought it back since.
    pub(super) fn is_lost(&self, session: &SessionId) -> bool {
        self.memories.is_lost(|| self.sessions.hash_of(session))
    }

    /// A request is on its way that brings a lost session back.
    pub(super) fn revive(&mut self, session: &SessionId) {
        self.memories.revive(|| self.sessions.hash_of(session));
    }

    /// Whether a session of this client is on an upstream.
    pub(super) fn bindings(&self, at: At) -> bool {
        self.sessions.iter().any(|(_, binding)| binding.is_on(at))
    }

    /// Takes the sessions that the client is attached to on an upstream, the client having gone.
    pub(super) fn leave(&mut self, at: At) -> Vec<(SessionId, Option<Attachment>)> {
        let left = self.sessions.extract(|binding| binding.is_on(at));
        let attached = |(session, binding)| match binding {
            Binding::Bound { attachment, attached: true, .. } => Some((session, attachment)),
            _ => None,
        };
        left.into_iter().filter_map(attached).collect()
    }

    /// What the client has left, if it may have left anything.
    pub(super) fn left(&self) -> Option<&Left> {
        self.memories.left()
    }

    /// The same, to be changed.
    pub(super) fn left_mut(&mut self) -> &mut Left {
        self.memories.left_mut(&self.account)
    }

    /// What follows of this session needs a resume first.
    fn note_lost(&mut self, session: &SessionId) {
        let name = self.sessions.hash_of(session);
        self.memories.lose(&self.account, name);
    }

    /// Takes a session that has to leave an upstream off the books; `None`: it has left already.
    pub(super) fn evict(&mut self, at: At, session: &SessionId) -> Option<Evicted> {
        match self.sessions.get(session)? {
            Binding::Bound { at: known, attachment: Some(attachment), .. }
                if *known == at && attachment.is_leaving() => {}
            _ => return None,
        }
        let is_about = |flight: &InFlight| flight.session.as_ref() == Some(session);
        let ids = self.strand(at, is_about);
        // An answer that has begun comes to its end, and changes nothing.
        for (id, flight) in self.flights.extract(|flight| flight.at == at && is_about(flight)) {
            self.flights.insert(
                id,
                InFlight { session: None, effect: Effect::None, shared: false, note: None, ..flight },
            );
        }
        Some(self.leaves(at, session, ids))
    }

    /// Whether a frame of an upstream is about a session that the client has left there.
    pub(super) fn has_left(&self, at: At, envelope: &Envelope) -> bool {
        let Some(left) = self.left().filter(|left| !left.is_empty()) else { return false };
        let Field::Is(session) = &envelope.session else { return false };
        left.has(self.sessions.hash_of((at, session)))
    }

    /// Forgets everything that depends on an upstream. If it `is_dead`, all that is attached there can be brought back.
    pub(super) fn drop_upstream(&mut self, at: At, is_dead: bool) -> Dropped {
        let reviving = self.revivals_on(at);
        let mut sessions = self.sessions.on(at);
        sessions.retain(|session| self.lose(session, Why::Loss, is_dead).is_told);
        let flights = self.flights.extract(|flight| flight.at == at);
        let revivable =
            |flight: &InFlight| flight.session.as_ref().is_some_and(|session| self.is_revivable(session));
        let ids = flights.into_iter().map(|(id, flight)| (id, revivable(&flight))).collect();
        drop(self.asked.take_of(at));
        self.memories.drop_upstream(at);
        Dropped { ids, sessions, reviving }
    }
}
