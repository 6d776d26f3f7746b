//! What is remembered of a client's sessions and requests that are over. Names are known by their hashes, and those are made only
//! where there is something to be found. Few clients come to need any of it.

use super::in_flight::At;
use super::left::Left;
use crate::runtime::account::{Account, HeldMap, Owns, Recent};

/// How many of the sessions that a client has left last are remembered, and of the inferences begun last: at least so many, and
/// at most twice as many, at which a table is full.
const PAST_MAX: usize = 448;
const INFERENCES_MAX: usize = 896;
/// Sessions whose backend was lost: seven eighths of a power of two, as a table is full then.
const LOST_MAX: usize = 14 * 1024;
/// What they may take in any case, however much the client or others hold.
const LOST_BYTES_FREE: usize = 4 * 1024;

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Memories(Option<Box<Kinds>>);

#[derive(Debug)]
struct Kinds {
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

impl Memories {
    fn kinds(&mut self, account: &Account) -> &mut Kinds {
        self.0.get_or_insert_with(|| {
            Box::new(Kinds {
                inferences: Recent::new(account, INFERENCES_MAX),
                lost: HeldMap::new(account),
                past: Recent::new(account, PAST_MAX),
                stranded: HeldMap::new(account),
                left: Left::new(account),
            })
        })
    }

    /// Bytes of all of it but the sessions that are lost.
    pub(super) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |kinds| {
            let Kinds { inferences, past, stranded, .. } = &**kinds;
            inferences.bytes().saturating_add(past.bytes()).saturating_add(stranded.bytes())
        })
    }

    /// The client is through with a session.
    pub(super) fn leave(&mut self, account: &Account, session: u64) {
        self.kinds(account).past.insert(session, ());
    }

    /// Whether it was through with this session.
    pub(super) fn knows(&self, session: impl FnOnce() -> u64) -> bool {
        self.0.as_ref().is_some_and(|kinds| kinds.past.get(session()).is_some())
    }

    /// A request was answered in the place of an upstream.
    pub(super) fn strand(&mut self, account: &Account, request: u64, at: At, born: bool) {
        self.kinds(account).stranded.insert(request, Stranded { at, born });
    }

    /// Whether the answer to such a request would name a session. `None` if it is none.
    pub(super) fn stranded(&self, request: impl FnOnce() -> u64) -> Option<bool> {
        let stranded =
            self.0.as_ref().map(|kinds| &kinds.stranded).filter(|stranded| !stranded.is_empty())?;
        stranded.get(&request()).map(|stranded| stranded.born)
    }

    /// Its answer has come.
    pub(super) fn arrive(&mut self, request: u64) {
        if let Some(kinds) = &mut self.0 {
            kinds.stranded.remove(&request);
        }
    }

    /// An upstream has begun an inference.
    pub(super) fn infer(&mut self, account: &Account, request: u64, at: At) {
        self.kinds(account).inferences.insert(request, at);
    }

    /// Which upstream has begun this inference.
    pub(super) fn inference(&self, request: impl FnOnce() -> u64) -> Option<At> {
        self.0.as_ref()?.inferences.get(request()).copied()
    }

    /// A session's backend was lost.
    pub(super) fn lose(&mut self, account: &Account, session: u64) {
        let lost = &mut self.kinds(account).lost;
        if lost.len() < LOST_MAX && lost.has_room_for_one(LOST_BYTES_FREE) {
            lost.insert(session, ());
        }
    }

    /// Whether the session's backend was lost and nothing has brought it back since.
    pub(super) fn is_lost(&self, session: impl FnOnce() -> u64) -> bool {
        let lost = self.0.as_ref().map(|kinds| &kinds.lost).filter(|lost| !lost.is_empty());
        lost.is_some_and(|lost| lost.contains_key(&session()))
    }

    /// A request is on its way that brings a lost session back.
    pub(super) fn revive(&mut self, session: impl FnOnce() -> u64) {
        if let Some(kinds) = self.0.as_mut().filter(|kinds| !kinds.lost.is_empty()) {
            kinds.lost.remove(&session());
        }
    }

    /// What the client has left, if it may have left anything.
    pub(super) fn left(&self) -> Option<&Left> {
        self.0.as_ref().map(|kinds| &kinds.left)
    }

    /// The same, to be changed.
    pub(super) fn left_mut(&mut self, account: &Account) -> &mut Left {
        &mut self.kinds(account).left
    }

    /// An upstream is gone, and will neither answer late nor ask.
    pub(super) fn drop_upstream(&mut self, at: At) {
        if let Some(kinds) = &mut self.0 {
            kinds.stranded.extract(|_, stranded| stranded.at == at);
            kinds.inferences.forget(|upstream| *upstream == at);
            kinds.left.forget(at);
        }
    }
}
