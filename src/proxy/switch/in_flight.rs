//! A request of the client on its way.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::runtime::account::{Account, HeldMap, Owns};
use crate::session::{Asks, Kept, Unmovable};
use crate::wire::method::{Effect, Timed};
use crate::wire::{Id, Method, SessionId};

/// A backend may have so many requests in flight for each one that there would still be room for.
const SHARE: usize = 3;

/// An upstream, by a number never used twice on a connection.
pub(super) type At = u64;

/// No upstream: the whole fleet.
pub(super) const NOWHERE: At = 0;

/// A request of the client that waits for its answer.
#[derive(Debug)]
pub(super) struct InFlight {
    pub at: At,
    pub session: Option<SessionId>,
    pub effect: Effect,
    /// Its answer will name a session.
    pub born: bool,
    /// It deletes a session by another method than the client has called.
    pub deletes: bool,
    /// The beginning of its answer has passed.
    pub begun: bool,
    pub class: Timed,
    /// What its answer will say of turns.
    pub asks: Asks,
    pub since: Since,
    /// Its session's name is the one that the table of sessions holds.
    pub shared: bool,
    /// What is to be made of it when it has been answered, beside the rest. Counted with what is kept to bring sessions back.
    pub note: Option<Box<Note>>,
}

/// A request that is to be said again, or might be.
#[derive(Debug)]
pub(super) struct Note {
    pub method: &'static Method,
    /// The request, or why it is not kept.
    pub kept: Result<Kept, Unmovable>,
    /// It is sent once more should the server say that it does not have the session.
    pub again: bool,
}

/// A moment, in as few bytes as will do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since(u64);

/// The moment that others are counted from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Since {
    pub(super) fn now() -> Self {
        Self(u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn elapsed(self) -> Duration {
        Duration::from_nanos(Self::now().0.saturating_sub(self.0))
    }
}

impl InFlight {
    /// A request that leaves now.
    pub(super) fn new(at: At, session: Option<SessionId>, effect: Effect, born: bool, class: Timed) -> Self {
        let (deletes, begun, shared, asks) = (false, false, false, Asks::Nothing);
        Self {
            at,
            session,
            effect,
            born,
            deletes,
            begun,
            class,
            asks,
            since: Since::now(),
            shared,
            note: None,
        }
    }
}

impl Owns for InFlight {
    fn owns(&self) -> usize {
        self.session.as_ref().filter(|_| !self.shared).map_or(0, Owns::owns)
    }
}

/// The requests in flight of one client, by their ids, and how many of them are on each upstream.
///
/// A backend that answers nothing must not take the room of the others: what is in flight to it is a share of what is left
/// over. So there is room for requests to another, however many backends have all that they may.
#[derive(Debug)]
pub(super) struct InFlightTable {
    by_id: HeldMap<Id, InFlight>,
    by_upstream: Vec<(At, usize)>,
}

impl InFlightTable {
    pub(super) fn new(account: &Account) -> Self {
        Self { by_id: HeldMap::new(account), by_upstream: Vec::new() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.by_id.bytes()
    }

    /// Bytes they would take with one more, which owns `owned`.
    pub(super) fn bytes_with(&self, owned: usize) -> usize {
        self.by_id.bytes_with(1, owned)
    }

    /// Bytes that there must be room for, so that one more, which owns `owned`, is within the share of an upstream.
    pub(super) fn bytes_with_share(&self, at: At, owned: usize) -> usize {
        let entries = self.on(at).checked_div(SHARE).unwrap_or_default().saturating_add(1);
        self.by_id.bytes_with(entries, entries.saturating_mul(owned))
    }

    /// How many are on an upstream.
    fn on(&self, at: At) -> usize {
        self.by_upstream.iter().find(|(upstream, _)| *upstream == at).map_or(0, |(_, flights)| *flights)
    }

    pub(super) fn insert(&mut self, id: Id, flight: InFlight) {
        match self.by_upstream.iter_mut().find(|(upstream, _)| *upstream == flight.at) {
            Some((_, flights)) => *flights = flights.saturating_add(1),
            None => self.by_upstream.push((flight.at, 1)),
        }
        self.by_id.insert(id, flight);
    }

    pub(super) fn remove(&mut self, id: &Id) -> Option<InFlight> {
        let flight = self.by_id.remove(id)?;
        self.landed(flight.at);
        Some(flight)
    }

    /// Takes out those that `takes`.
    pub(super) fn extract(&mut self, takes: impl Fn(&InFlight) -> bool) -> Vec<(Id, InFlight)> {
        let taken = self.by_id.extract(|_, flight| takes(flight));
        for (_, flight) in &taken {
            self.landed(flight.at);
        }
        taken
    }

    fn landed(&mut self, at: At) {
        let known = self.by_upstream.iter().position(|(upstream, _)| *upstream == at);
        if let Some((place, (_, flights))) = known.and_then(|at| Some((at, self.by_upstream.get_mut(at)?))) {
            *flights = flights.saturating_sub(1);
            if *flights == 0 {
                self.by_upstream.swap_remove(place);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.by_id.clear();
        self.by_upstream = Vec::new();
    }

    pub(super) fn get(&self, id: &Id) -> Option<&InFlight> {
        self.by_id.get(id)
    }

    /// The same, to be changed in anything but where it is.
    pub(super) fn get_mut(&mut self, id: &Id) -> Option<&mut InFlight> {
        self.by_id.get_mut(id)
    }

    pub(super) fn contains_key(&self, id: &Id) -> bool {
        self.by_id.contains_key(id)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Id, &InFlight)> {
        self.by_id.iter()
    }
}
