//! Who has which session: the rule that a live session never moves, kept in one table.
//!
//! A session ID is free, claimed or owned. The first opening to name a free ID *leads*: it alone asks the fleet and
//! chooses. Openings that name it meanwhile wait, then join what the leader found. From then on the session belongs to
//! the connections attached through this balancer, until the last of them lets go of its [`Hold`].
//!
//! Locks are per shard and never held across an await.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use crate::alarm::Alarm;
use crate::wire::SessionId;

const SHARDS: usize = 64;

/// Boxed, because a table that grows has room for twice as many as are in it.
type Shard = HashMap<SessionId, Box<Session>>;

/// The table.
#[derive(Debug)]
pub struct Owners {
    shards: Vec<Mutex<Shard>>,
    hash: RandomState,
    owned: AtomicUsize,
    /// Tells the holds of one session apart.
    holds: AtomicU64,
    gauge: IntGauge,
}

#[derive(Debug)]
struct Session {
    state: State,
    /// Cancelled when this state ends: the claim settled or dropped, the owner gone. Made when somebody waits for that.
    over: Option<CancellationToken>,
}

impl Session {
    /// What says when this state has ended.
    fn over(&mut self) -> CancellationToken {
        self.over.get_or_insert_default().clone()
    }

    /// This state has ended.
    fn end(self) {
        if let Some(over) = self.over {
            over.cancel();
        }
    }
}

#[derive(Debug)]
enum State {
    Claimed,
    Owned { backend: Arc<Backend>, holders: Vec<Holder>, evicting: bool },
}

/// One hold, and whom to tell when the session must leave.
#[derive(Debug)]
struct Holder {
    number: u64,
    alarm: Arc<Alarm>,
}

/// What naming a session gives.
#[derive(Debug)]
pub enum Claim {
    /// Nobody has it: find it a home.
    Lead(Lead),
    /// It is owned, and this opening is now attached.
    Join(Hold),
    /// It is being claimed or evicted: wait for the token, then claim again.
    Wait(CancellationToken),
}

/// The exclusive right to place a session; dropped without settling, the ID is free again.
#[derive(Debug)]
pub struct Lead {
    owners: Arc<Owners>,
    id: SessionId,
    settled: bool,
}

/// One connection's part in owning a session.
#[derive(Debug)]
pub struct Hold {
    owners: Arc<Owners>,
    id: SessionId,
    backend: Arc<Backend>,
    number: u64,
    alarm: Arc<Alarm>,
}

impl Owners {
    /// An empty table that reports its size.
    pub fn new(gauge: IntGauge) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Arc::new(Self {
            shards,
            hash: RandomState::new(),
            owned: AtomicUsize::new(0),
            holds: AtomicU64::new(0),
            gauge,
        })
    }

    /// Sessions owned now.
    pub fn len(&self) -> usize {
        self.owned.load(Ordering::Relaxed)
    }

    /// Whether no session is owned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names a session.
    pub fn claim(self: &Arc<Self>, id: &SessionId) -> Claim {
        let mut shard = self.shard(id);
        match shard.entry(id.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Box::new(Session { state: State::Claimed, over: None }));
                Claim::Lead(Lead { owners: Arc::clone(self), id: id.clone(), settled: false })
            }
            Entry::Occupied(mut entry) => {
                let session = entry.get_mut();
                match &mut session.state {
                    State::Owned { backend, holders, evicting: false } => {
                        let (holder, hold) = self.hold(id, backend);
                        holders.push(holder);
                        Claim::Join(hold)
                    }
                    _ => Claim::Wait(session.over()),
                }
            }
        }
    }

    /// Where a session is owned, without claiming it.
    pub fn find(&self, id: &SessionId) -> Option<Arc<Backend>> {
        match &self.shard(id).get(id)?.state {
            State::Owned { backend, .. } => Some(Arc::clone(backend)),
            State::Claimed => None,
        }
    }

    /// A session was born on `backend`: the connection that bore it owns it. `None` if it is known already elsewhere.
    pub fn adopt(self: &Arc<Self>, id: &SessionId, backend: &Arc<Backend>) -> Option<Hold> {
        match self.claim(id) {
            Claim::Lead(lead) => Some(lead.settle(backend)),
            Claim::Join(hold) if Arc::ptr_eq(hold.backend(), backend) => Some(hold),
            Claim::Join(_) | Claim::Wait(_) => None,
        }
    }

    fn hold(self: &Arc<Self>, id: &SessionId, backend: &Arc<Backend>) -> (Holder, Hold) {
        let number = self.holds.fetch_add(1, Ordering::Relaxed);
        let alarm = Arc::<Alarm>::default();
        let (owners, id, backend) = (Arc::clone(self), id.clone(), Arc::clone(backend));
        (Holder { number, alarm: Arc::clone(&alarm) }, Hold { owners, id, backend, number, alarm })
    }

    fn shard(&self, id: &SessionId) -> MutexGuard<'_, Shard> {
        let shards = u64::try_from(self.shards.len()).unwrap_or(1).max(1);
        let at = usize::try_from(self.hash.hash_one(id).checked_rem(shards).unwrap_or(0)).unwrap_or(0);
        #[expect(
            clippy::indexing_slicing,
            reason = "a remainder is smaller than its divisor, the number of shards"
        )]
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lead {
    /// The session is at `backend` now.
    pub fn settle(mut self, backend: &Arc<Backend>) -> Hold {
        self.settled = true;
        let (holder, hold) = self.owners.hold(&self.id, backend);
        let state = State::Owned { backend: Arc::clone(backend), holders: vec![holder], evicting: false };
        let owned = Box::new(Session { state, over: None });
        if let Some(claimed) = self.owners.shard(&self.id).insert(self.id.clone(), owned) {
            claimed.end();
        }
        self.owners.owned.fetch_add(1, Ordering::Relaxed);
        self.owners.gauge.inc();
        backend.session_added();
        hold
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if let Some(claimed) = self.owners.shard(&self.id).remove(&self.id) {
            claimed.end();
        }
    }
}

impl Hold {
    /// Which session.
    pub fn session(&self) -> &SessionId {
        &self.id
    }

    /// Where the session is.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Raised when the session must leave its backend: close the connection.
    pub fn alarm(&self) -> &Arc<Alarm> {
        &self.alarm
    }

    /// From now on `alarm` is what is raised then.
    pub fn set_alarm(&mut self, alarm: &Arc<Alarm>) {
        if self.alarm.is_raised() {
            alarm.raise();
        }
        let mut shard = self.owners.shard(&self.id);
        if let Some(session) = shard.get_mut(&self.id)
            && let State::Owned { holders, evicting, .. } = &mut session.state
        {
            if *evicting {
                alarm.raise();
            }
            for holder in holders.iter_mut().filter(|holder| holder.number == self.number) {
                holder.alarm = Arc::clone(alarm);
            }
        }
        drop(shard);
        self.alarm = Arc::clone(alarm);
    }

    /// Makes every connection of the session close, this one included, because its backend is down and another will
    /// take it. The token says when all have let go.
    pub fn evict(self) -> CancellationToken {
        let mut shard = self.owners.shard(&self.id);
        let Some(session) = shard.get_mut(&self.id) else { return CancellationToken::new() };
        if let State::Owned { holders, evicting, .. } = &mut session.state {
            *evicting = true;
            for holder in holders {
                holder.alarm.raise();
            }
        }
        session.over()
    }

    /// Gives this part up before its time is over. What may come later, its drop included, does nothing.
    pub fn let_go(&self) {
        let mut shard = self.owners.shard(&self.id);
        let Some(session) = shard.get_mut(&self.id) else { return };
        let State::Owned { holders, .. } = &mut session.state else { return };
        holders.retain(|holder| holder.number != self.number);
        if !holders.is_empty() {
            return;
        }
        if let Some(session) = shard.remove(&self.id) {
            session.end();
        }
        drop(shard);
        self.owners.owned.fetch_sub(1, Ordering::Relaxed);
        self.owners.gauge.dec();
        self.backend.session_removed();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.let_go();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn backend(name: &str) -> Arc<Backend> {
        let series = Metrics::new().unwrap().backend(&name.into());
        Backend::new(name, "127.0.0.1:1", series).0
    }

    fn owners() -> Arc<Owners> {
        Owners::new(IntGauge::new("owners", "owners").unwrap())
    }

    fn lead(owners: &Arc<Owners>, id: &SessionId) -> Lead {
        match owners.claim(id) {
            Claim::Lead(lead) => lead,
            other => panic!("expected to lead, got {other:?}"),
        }
    }

    fn join(owners: &Arc<Owners>, id: &SessionId) -> Hold {
        match owners.claim(id) {
            Claim::Join(hold) => hold,
            other => panic!("expected to join, got {other:?}"),
        }
    }

    fn wait(owners: &Arc<Owners>, id: &SessionId) -> CancellationToken {
        match owners.claim(id) {
            Claim::Wait(over) => over,
            other => panic!("expected to wait, got {other:?}"),
        }
    }

    #[test]
    fn a_session_is_owned_until_the_last_hold_is_dropped() {
        let (owners, a, id) = (owners(), backend("a"), SessionId::new("s"));
        let leader = lead(&owners, &id);
        let over = wait(&owners, &id);
        assert!(owners.find(&id).is_none());
        let first = leader.settle(&a);
        assert!(over.is_cancelled());
        let second = join(&owners, &id);
        assert!(Arc::ptr_eq(second.backend(), &a));
        assert_eq!((owners.len(), a.sessions()), (1, 1));
        drop(first);
        assert!(owners.find(&id).is_some());
        drop(second);
        assert_eq!((owners.len(), a.sessions()), (0, 0));
        drop(lead(&owners, &id));
    }

    #[test]
    fn a_leader_that_fails_frees_the_session_and_wakes_who_waits() {
        let (owners, id) = (owners(), SessionId::new("s"));
        let leader = lead(&owners, &id);
        let over = wait(&owners, &id);
        drop(leader);
        assert!(over.is_cancelled());
        drop(lead(&owners, &id));
    }

    #[test]
    fn an_evicted_session_is_free_when_all_have_let_go() {
        let (owners, a, b, id) = (owners(), backend("a"), backend("b"), SessionId::new("s"));
        let first = lead(&owners, &id).settle(&a);
        let mut second = join(&owners, &id);
        let alarm = Arc::default();
        second.set_alarm(&alarm);
        let over = join(&owners, &id).evict();
        assert!(alarm.is_raised());
        assert!(first.alarm().is_raised());
        assert!(!wait(&owners, &id).is_cancelled(), "nobody joins a session that is being evicted");
        drop(first);
        assert!(!over.is_cancelled());
        drop(second);
        assert!(over.is_cancelled());
        let hold = lead(&owners, &id).settle(&b);
        assert!(!hold.alarm().is_raised());
    }

    #[test]
    fn a_hold_let_go_of_twice_counts_once() {
        let (owners, a, b, id) = (owners(), backend("a"), backend("b"), SessionId::new("s"));
        let first = lead(&owners, &id).settle(&a);
        first.let_go();
        assert_eq!((owners.len(), a.sessions()), (0, 0));
        let next = lead(&owners, &id).settle(&b);
        drop(first);
        assert!(Arc::ptr_eq(&owners.find(&id).unwrap(), &b), "another's by now");
        assert_eq!((owners.len(), a.sessions(), b.sessions()), (1, 0, 1));
        drop(next);
    }

    #[test]
    fn a_born_session_is_adopted_once() {
        let (owners, a, b, id) = (owners(), backend("a"), backend("b"), SessionId::new("s"));
        let first = owners.adopt(&id, &a).unwrap();
        let second = owners.adopt(&id, &a).unwrap();
        assert!(owners.adopt(&id, &b).is_none());
        drop((first, second));
        assert!(owners.adopt(&id, &b).is_some());
    }
}
