//! Who has which session: the rule that a live session never moves, kept in one table.
//!
//! A session ID is free, claimed or owned. The first opening to name a free ID *leads*: it alone asks the fleet and
//! chooses. Openings that name it meanwhile wait, then join what the leader found. From then on the session belongs to
//! the connections attached through this balancer, until the last of them lets go of its [`Attachment`].
//!
//! Locks are per shard and never held across an await.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use tokio_util::sync::CancellationToken;

use crate::fleet::Backend;
use crate::runtime::stop_flag::StopFlag;
use crate::wire::SessionId;

const SHARDS: usize = 64;

/// Boxed, because a table that grows has room for twice as many entries as it holds.
type Shard = HashMap<SessionId, Box<Session>>;

/// The table.
#[derive(Debug)]
pub struct Directory {
    shards: Vec<Mutex<Shard>>,
    hash: RandomState,
    owned: AtomicUsize,
    /// The next number, to tell the attachments of one session apart.
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

/// One attachment, and which connection to tell when the session must leave.
#[derive(Debug)]
struct Holder {
    number: u64,
    stop_flag: Arc<StopFlag>,
}

/// What naming a session gives.
#[derive(Debug)]
pub enum Claim {
    /// Nobody has it: place it.
    Lead(PlacementGuard),
    /// It is owned, and this opening is now attached.
    Join(Attachment),
    /// It is being claimed or evicted: wait for the token, then claim again.
    Wait(CancellationToken),
}

/// What a session is that was opened on a server without a claim.
#[derive(Debug)]
pub enum Adopted {
    /// Attached, on the server where it was opened.
    Held(Attachment),
    /// Another opening is placing it, which will find it where it is.
    Claimed,
    /// It is owned on this other server: what was opened is a second copy.
    Elsewhere(Arc<Backend>),
}

/// The exclusive right to place a session; dropped without settling, the ID is free again.
#[derive(Debug)]
pub struct PlacementGuard {
    directory: Arc<Directory>,
    id: SessionId,
    settled: bool,
}

/// One connection's part in owning a session.
#[derive(Debug)]
pub struct Attachment {
    directory: Arc<Directory>,
    id: SessionId,
    backend: Arc<Backend>,
    number: u64,
    stop_flag: Arc<StopFlag>,
}

impl Directory {
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
                Claim::Lead(PlacementGuard { directory: Arc::clone(self), id: id.clone(), settled: false })
            }
            Entry::Occupied(mut entry) => {
                let session = entry.get_mut();
                match &mut session.state {
                    State::Owned { backend, holders, evicting: false } => {
                        let (holder, attachment) = self.attach(id, backend);
                        holders.push(holder);
                        Claim::Join(attachment)
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

    /// A session was opened on `backend` without a claim. Two names of one server count as one.
    pub fn adopt(self: &Arc<Self>, id: &SessionId, backend: &Arc<Backend>) -> Adopted {
        match self.claim(id) {
            Claim::Lead(lead) => Adopted::Held(lead.settle(backend)),
            Claim::Join(attachment) if attachment.backend().address() == backend.address() => {
                Adopted::Held(attachment)
            }
            Claim::Join(attachment) => Adopted::Elsewhere(Arc::clone(attachment.backend())),
            Claim::Wait(_) => Adopted::Claimed,
        }
    }

    fn attach(self: &Arc<Self>, id: &SessionId, backend: &Arc<Backend>) -> (Holder, Attachment) {
        let number = self.holds.fetch_add(1, Ordering::Relaxed);
        let stop_flag = Arc::<StopFlag>::default();
        let (directory, id, backend) = (Arc::clone(self), id.clone(), Arc::clone(backend));
        (
            Holder { number, stop_flag: Arc::clone(&stop_flag) },
            Attachment { directory, id, backend, number, stop_flag },
        )
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

impl PlacementGuard {
    /// The session is at `backend` now.
    pub fn settle(mut self, backend: &Arc<Backend>) -> Attachment {
        self.settled = true;
        let (holder, attachment) = self.directory.attach(&self.id, backend);
        let state = State::Owned { backend: Arc::clone(backend), holders: vec![holder], evicting: false };
        let owned = Box::new(Session { state, over: None });
        if let Some(claimed) = self.directory.shard(&self.id).insert(self.id.clone(), owned) {
            claimed.end();
        }
        self.directory.owned.fetch_add(1, Ordering::Relaxed);
        self.directory.gauge.inc();
        backend.session_added();
        attachment
    }
}

impl Drop for PlacementGuard {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if let Some(claimed) = self.directory.shard(&self.id).remove(&self.id) {
            claimed.end();
        }
    }
}

impl Attachment {
    /// Which session.
    pub fn session(&self) -> &SessionId {
        &self.id
    }

    /// Where the session is.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Set when the session must leave its backend: close the connection.
    pub fn stop_flag(&self) -> &Arc<StopFlag> {
        &self.stop_flag
    }

    /// Sets `stop_flag` from now on.
    pub fn set_stop_flag(&mut self, stop_flag: &Arc<StopFlag>) {
        if self.stop_flag.is_set() {
            stop_flag.set();
        }
        let mut shard = self.directory.shard(&self.id);
        if let Some(session) = shard.get_mut(&self.id)
            && let State::Owned { holders, evicting, .. } = &mut session.state
        {
            if *evicting {
                stop_flag.set();
            }
            for holder in holders.iter_mut().filter(|holder| holder.number == self.number) {
                holder.stop_flag = Arc::clone(stop_flag);
            }
        }
        drop(shard);
        self.stop_flag = Arc::clone(stop_flag);
    }

    /// Makes every connection of the session close, this one included, because its backend is down and another will
    /// take the session. The token is cancelled when all have let go.
    pub fn evict(self) -> CancellationToken {
        let mut shard = self.directory.shard(&self.id);
        let Some(session) = shard.get_mut(&self.id) else { return CancellationToken::new() };
        if let State::Owned { holders, evicting, .. } = &mut session.state {
            *evicting = true;
            for holder in holders {
                holder.stop_flag.set();
            }
        }
        session.over()
    }

    /// Gives up this attachment before it is dropped, which then does nothing more.
    pub fn let_go(&self) {
        let mut shard = self.directory.shard(&self.id);
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
        self.directory.owned.fetch_sub(1, Ordering::Relaxed);
        self.directory.gauge.dec();
        self.backend.session_removed();
    }
}

impl Drop for Attachment {
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
        Backend::new(name, &format!("{name}:1"), series).0
    }

    fn directory() -> Arc<Directory> {
        Directory::new(IntGauge::new("g", "g").unwrap())
    }

    fn lead(directory: &Arc<Directory>, id: &SessionId) -> PlacementGuard {
        match directory.claim(id) {
            Claim::Lead(lead) => lead,
            other => panic!("expected to lead, got {other:?}"),
        }
    }

    fn join(directory: &Arc<Directory>, id: &SessionId) -> Attachment {
        match directory.claim(id) {
            Claim::Join(attachment) => attachment,
            other => panic!("expected to join, got {other:?}"),
        }
    }

    fn wait(directory: &Arc<Directory>, id: &SessionId) -> CancellationToken {
        match directory.claim(id) {
            Claim::Wait(over) => over,
            other => panic!("expected to wait, got {other:?}"),
        }
    }

    #[test]
    fn a_session_is_owned_until_the_last_hold_is_dropped() {
        let (directory, a, id) = (directory(), backend("a"), SessionId::new("s"));
        let leader = lead(&directory, &id);
        let over = wait(&directory, &id);
        assert!(directory.find(&id).is_none());
        let first = leader.settle(&a);
        assert!(over.is_cancelled());
        let second = join(&directory, &id);
        assert!(Arc::ptr_eq(second.backend(), &a));
        assert_eq!((directory.len(), a.sessions()), (1, 1));
        drop(first);
        assert!(directory.find(&id).is_some());
        drop(second);
        assert_eq!((directory.len(), a.sessions()), (0, 0));
        drop(lead(&directory, &id));
    }

    #[test]
    fn a_leader_that_fails_frees_the_session_and_wakes_who_waits() {
        let (directory, id) = (directory(), SessionId::new("s"));
        let leader = lead(&directory, &id);
        let over = wait(&directory, &id);
        drop(leader);
        assert!(over.is_cancelled());
        drop(lead(&directory, &id));
    }

    #[test]
    fn an_evicted_session_is_free_when_all_have_let_go() {
        let (directory, a, b, id) = (directory(), backend("a"), backend("b"), SessionId::new("s"));
        let first = lead(&directory, &id).settle(&a);
        let mut second = join(&directory, &id);
        let stop_flag = Arc::default();
        second.set_stop_flag(&stop_flag);
        let over = join(&directory, &id).evict();
        assert!(stop_flag.is_set());
        assert!(first.stop_flag().is_set());
        assert!(!wait(&directory, &id).is_cancelled(), "nobody joins a session that is being evicted");
        drop(first);
        assert!(!over.is_cancelled());
        drop(second);
        assert!(over.is_cancelled());
        let attachment = lead(&directory, &id).settle(&b);
        assert!(!attachment.stop_flag().is_set());
    }

    #[test]
    fn a_hold_let_go_of_twice_counts_once() {
        let (directory, a, b, id) = (directory(), backend("a"), backend("b"), SessionId::new("s"));
        let first = lead(&directory, &id).settle(&a);
        first.let_go();
        assert_eq!((directory.len(), a.sessions()), (0, 0));
        let next = lead(&directory, &id).settle(&b);
        drop(first);
        assert!(Arc::ptr_eq(&directory.find(&id).unwrap(), &b), "another's by now");
        assert_eq!((directory.len(), a.sessions(), b.sessions()), (1, 0, 1));
        drop(next);
    }

    #[test]
    fn a_born_session_is_adopted_once() {
        let (directory, a, b, id) = (directory(), backend("a"), backend("b"), SessionId::new("s"));
        let Adopted::Held(first) = directory.adopt(&id, &a) else { panic!("nobody has it") };
        let Adopted::Held(second) = directory.adopt(&id, &a) else { panic!("it is there") };
        assert!(matches!(directory.adopt(&id, &b), Adopted::Elsewhere(_)));
        drop((first, second));
        assert!(matches!(directory.adopt(&id, &b), Adopted::Held(_)));
    }
}
