//! Who has which session: the rule that a live session never moves, kept in one table.
//!
//! A session ID is free, claimed or owned. The first opening to name a free ID *leads*: it alone asks the fleet and
//! chooses. Openings that name it meanwhile wait, then join what the leader found. From then on the session belongs to
//! the connections attached through this balancer, until the last of them lets go of its [`Attachment`]. What becomes of
//! a session its attachments are told, and nobody else. What frames say of a session its attachments tell: whether a turn runs,
//! and when it was used last.
//!
//! Locks are per shard and per session, taken in this order and never held across an await.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use tokio_util::sync::CancellationToken;

use super::attached::{Attached, Holder};
use super::inbox::Subscriber;
use super::journal::Journal;
use super::turn::{Activity, Sign};
use super::usage::{Notes, Usage};
use crate::fleet::Backend;
use crate::wire::SessionId;

const SHARDS: usize = 64;

/// The table.
#[derive(Debug)]
pub struct Directory {
    shards: Vec<Mutex<Shard>>,
    hash: RandomState,
    owned: AtomicUsize,
    /// The next number, to tell the attachments of one session apart.
    attachments: AtomicU32,
    gauge: IntGauge,
}

#[derive(Debug, Default)]
struct Shard {
    /// IDs that are being placed, and what is cancelled when that is over: made when somebody waits for it.
    claimed: HashMap<SessionId, Option<CancellationToken>>,
    /// Boxed, because a table that grows has room for twice as many entries as it holds.
    owned: HashMap<SessionId, Arc<Entry>>,
}

/// A session that somebody is attached to.
#[derive(Debug)]
struct Entry {
    directory: Arc<Directory>,
    id: SessionId,
    backend: Arc<Backend>,
    attached: Mutex<Attached>,
    /// That every connection must let go of it is noted under the lock of `attached`.
    notes: Notes,
}

impl Entry {
    fn attached(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_leaving(&self) -> bool {
        self.notes.is_leaving()
    }
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
}

/// One connection's part in a session.
#[derive(Debug)]
pub struct Attachment {
    entry: Arc<Entry>,
    number: u32,
    /// Requests that may begin a turn, without an answer yet.
    asked: u32,
}

impl Directory {
    /// An empty table that reports its size.
    pub fn new(gauge: IntGauge) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Arc::new(Self {
            shards,
            hash: RandomState::new(),
            owned: AtomicUsize::new(0),
            attachments: AtomicU32::new(0),
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
        if let Some(entry) = shard.owned.get(id) {
            let mut attached = entry.attached();
            if entry.is_leaving() {
                return Claim::Wait(attached.over());
            }
            let mut number = self.next_number();
            while attached.find(number).is_some() {
                number = self.next_number();
            }
            attached.add(Holder { number, subscriber: None });
            entry.notes.note(&entry.backend, Sign::Nothing);
            return Claim::Join(Attachment { entry: Arc::clone(entry), number, asked: 0 });
        }
        match shard.claimed.entry(id.clone()) {
            Slot::Vacant(slot) => {
                slot.insert(None);
                Claim::Lead(PlacementGuard { directory: Arc::clone(self), id: id.clone() })
            }
            Slot::Occupied(mut slot) => Claim::Wait(slot.get_mut().get_or_insert_default().clone()),
        }
    }

    /// Where a session is owned, without claiming it.
    pub fn find(&self, id: &SessionId) -> Option<Arc<Backend>> {
        self.shard(id).owned.get(id).map(|entry| Arc::clone(&entry.backend))
    }

    /// How a session is used that is owned.
    pub fn usage(&self, id: &SessionId) -> Option<Usage> {
        self.shard(id).owned.get(id).map(|entry| entry.notes.usage())
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

    /// It comes again after four thousand million others.
    fn next_number(&self) -> u32 {
        self.attachments.fetch_add(1, Ordering::Relaxed)
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
    pub fn settle(self, backend: &Arc<Backend>) -> Attachment {
        let Self { directory, id } = &self;
        let number = directory.next_number();
        let entry = Arc::new(Entry {
            directory: Arc::clone(directory),
            id: id.clone(),
            backend: Arc::clone(backend),
            attached: Mutex::new(Attached::by(Holder { number, subscriber: None })),
            notes: Notes::new(),
        });
        // Its own drop ends the claim: nobody can lead in between.
        directory.shard(id).owned.insert(id.clone(), Arc::clone(&entry));
        directory.owned.fetch_add(1, Ordering::Relaxed);
        directory.gauge.inc();
        backend.session_added();
        Attachment { entry, number, asked: 0 }
    }
}

impl Drop for PlacementGuard {
    fn drop(&mut self) {
        let claimed = self.directory.shard(&self.id).claimed.remove(&self.id);
        if let Some(over) = claimed.flatten() {
            over.cancel();
        }
    }
}

impl Attachment {
    /// Which session.
    pub fn session(&self) -> &SessionId {
        &self.entry.id
    }

    /// Where the session is.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.entry.backend
    }

    /// Whether the session must leave its backend: let go of it.
    pub fn is_leaving(&self) -> bool {
        self.entry.is_leaving()
    }

    /// Whether a turn of the session runs.
    pub fn activity(&self) -> Activity {
        self.entry.notes.usage().activity
    }

    /// The journal of the session: this one, unless it has one.
    pub fn journal(&self, new: impl FnOnce() -> Arc<Journal>) -> Arc<Journal> {
        self.entry.attached().journal(new)
    }

    /// From now on `subscriber` is told what becomes of the session, and at once if the session must leave already.
    pub fn subscribe(&self, subscriber: Subscriber) {
        let mut attached = self.entry.attached();
        if self.is_leaving() {
            subscriber.evicted(self.session());
        }
        if let Some(holder) = attached.find(self.number) {
            holder.subscriber = Some(subscriber);
        }
    }

    /// Takes note of what a frame says of the session.
    pub fn note(&mut self, sign: Sign) {
        match sign {
            Sign::Asked => self.asked = self.asked.saturating_add(1),
            // Asked over an attachment before this one, which is over.
            Sign::Accepted | Sign::Refused | Sign::Unanswered if self.asked == 0 => return,
            Sign::Accepted | Sign::Refused | Sign::Unanswered => self.asked = self.asked.saturating_sub(1),
            Sign::Begins | Sign::Ends | Sign::Nothing => {}
        }
        self.entry.notes.note(&self.entry.backend, sign);
    }

    /// Makes every connection of the session let go of it, this one included, because its backend is down and another
    /// will take the session. The token is cancelled when all have let go.
    pub fn evict(self) -> CancellationToken {
        let mut attached = self.entry.attached();
        // Nobody is told twice.
        if self.entry.notes.leave() {
            for subscriber in attached.subscribers() {
                subscriber.evicted(self.session());
            }
        }
        attached.over()
    }

    /// Gives up this attachment before it is dropped, which then does nothing more.
    pub fn let_go(&self) {
        let Entry { directory, id, backend, .. } = &*self.entry;
        let mut shard = directory.shard(id);
        let mut attached = self.entry.attached();
        if !attached.remove(self.number) {
            return;
        }
        if !attached.is_empty() {
            if !attached.is_seen() {
                self.entry.notes.is_unseen(backend);
            }
            return;
        }
        shard.owned.remove(id);
        attached.end();
        drop((attached, shard));
        self.entry.notes.end(backend);
        directory.owned.fetch_sub(1, Ordering::Relaxed);
        directory.gauge.dec();
        backend.session_removed();
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        while self.asked > 0 {
            self.note(Sign::Unanswered);
        }
        self.let_go();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Metrics;
    use crate::runtime::stop_flag::StopFlag;
    use crate::session::{Activity, Inbox};

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
        let second = join(&directory, &id);
        let stop_flag: Arc<StopFlag> = Arc::default();
        second.subscribe(Subscriber::Connection(Arc::clone(&stop_flag)));
        let over = join(&directory, &id).evict();
        assert!(stop_flag.is_set());
        assert!(first.is_leaving());
        let late: Arc<StopFlag> = Arc::default();
        first.subscribe(Subscriber::Connection(Arc::clone(&late)));
        assert!(late.is_set(), "who subscribes later is told as well");
        assert!(!wait(&directory, &id).is_cancelled(), "nobody joins a session that is being evicted");
        drop(first);
        assert!(!over.is_cancelled());
        drop(second);
        assert!(over.is_cancelled());
        let attachment = lead(&directory, &id).settle(&b);
        assert!(!attachment.is_leaving());
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

    #[tokio::test]
    async fn who_is_attached_to_many_sessions_is_told_which_have_to_leave() {
        let (directory, a) = (directory(), backend("a"));
        let inbox: Arc<Inbox> = Arc::default();
        let ids: Vec<SessionId> = ["r", "s", "t"].map(SessionId::new).into();
        let subscribed = |id: &SessionId| {
            let attachment = lead(&directory, id).settle(&a);
            attachment.subscribe(Subscriber::Inbox(Arc::clone(&inbox)));
            attachment
        };
        let mine: Vec<Attachment> = ids.iter().map(subscribed).collect();
        join(&directory, &ids[2]).evict();
        join(&directory, &ids[0]).evict();
        assert_eq!(inbox.evicted().await, [ids[2].clone(), ids[0].clone()]);
        let left: Vec<bool> = mine.iter().map(Attachment::is_leaving).collect();
        assert_eq!(left, [true, false, true]);
        inbox.close();
        assert!(inbox.evicted().await.is_empty(), "nobody waits for what has been closed");
    }

    #[test]
    fn a_backend_knows_how_many_of_its_sessions_are_busy() {
        let (directory, a) = (directory(), backend("a"));
        let of = |backend: &Backend| (backend.sessions(), backend.sessions_busy(), backend.sessions_idle());
        let activity = |id: &SessionId| directory.usage(id).map(|usage| usage.activity);
        let ids = ["r", "s"].map(SessionId::new);
        let [mut r, mut s] = ids.each_ref().map(|id| lead(&directory, id).settle(&a));
        assert_eq!((of(&a), activity(&ids[0])), ((2, 0, 0), Some(Activity::Unknown)));
        r.note(Sign::Asked);
        s.note(Sign::Ends);
        assert_eq!((of(&a), activity(&ids[1])), ((2, 1, 1), Some(Activity::Idle)));
        assert_eq!(directory.usage(&ids[0]).unwrap().unused, Duration::ZERO);
        // Another is attached to the same session.
        let mut other = join(&directory, &ids[0]);
        other.note(Sign::Accepted);
        other.note(Sign::Begins);
        other.note(Sign::Ends);
        assert_eq!((of(&a), activity(&ids[0])), ((2, 1, 1), Some(Activity::Busy)), "its answer is awaited");
        r.note(Sign::Refused);
        assert_eq!((of(&a), activity(&ids[0])), ((2, 0, 2), Some(Activity::Idle)));
        // A client that leaves cannot hear what becomes of its turn; the other does.
        r.note(Sign::Asked);
        other.subscribe(Subscriber::Inbox(Arc::default()));
        drop(r);
        assert_eq!(of(&a), (2, 1, 1));
        other.note(Sign::Ends);
        assert_eq!(of(&a), (2, 0, 2));
        // One that is relayed as bytes sees nothing.
        let relayed = join(&directory, &ids[0]);
        relayed.subscribe(Subscriber::Connection(Arc::default()));
        other.note(Sign::Begins);
        drop(other);
        assert_eq!((of(&a), activity(&ids[0])), ((2, 0, 1), Some(Activity::Unknown)));
        drop(relayed);
        s.note(Sign::Asked);
        s.let_go();
        s.note(Sign::Begins);
        assert_eq!((of(&a), activity(&ids[1])), ((0, 0, 0), None));
        drop(s);
        assert_eq!(of(&a), (0, 0, 0));
    }

    /// Hundreds of thousands are attached at a time.
    #[test]
    fn a_session_takes_little() {
        // Two counts stand before the entry.
        assert!(size_of::<Entry>() + 16 <= 96, "{} bytes", size_of::<Entry>());
        assert!(size_of::<Attachment>() <= 16);
    }
}
