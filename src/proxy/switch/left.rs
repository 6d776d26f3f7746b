//! Sessions that a client has left on upstreams that stay, until their backends have answered that.

use super::in_flight::At;
use crate::runtime::account::{Account, HeldMap, Owns};

/// Bounds them: seven eighths of a power of two, as a table is full then. What a further one sends is passed on.
const LEFT_MAX: usize = 14 * 1024;
/// What they may take in any case, however much the client or others hold.
const LEFT_BYTES_FREE: usize = 4 * 1024;

/// Sessions that the client has left on upstreams that stay, until their backends have answered that: by the hash of both.
#[derive(Debug)]
pub(super) struct Left(HeldMap<u64, Leaving>);

#[derive(Clone, Copy, Debug)]
struct Leaving {
    at: At,
    /// How many answers are due.
    answers: u32,
}

impl Owns for Leaving {
    fn owns(&self) -> usize {
        0
    }
}

impl Left {
    /// None.
    pub(super) fn new(account: &Account) -> Self {
        Self(HeldMap::new(account))
    }

    /// One more: its backend will answer once more.
    pub(super) fn add(&mut self, key: u64, at: At) {
        let answers = self.0.get(&key).map_or(0, |leaving| leaving.answers).saturating_add(1);
        let has_room = || self.0.len() < LEFT_MAX && self.0.has_room_for_one(LEFT_BYTES_FREE);
        if answers > 1 || has_room() {
            self.0.insert(key, Leaving { at, answers });
        }
    }

    /// The backend of an upstream has answered one.
    pub(super) fn answered(&mut self, key: u64, at: At) {
        let Some(leaving) = self.0.get_mut(&key).filter(|leaving| leaving.at == at) else { return };
        leaving.answers = leaving.answers.saturating_sub(1);
        if leaving.answers == 0 {
            self.0.remove(&key);
        }
    }

    /// Whether one of them is there.
    pub(super) fn has(&self, key: u64) -> bool {
        self.0.contains_key(&key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An upstream is lost.
    pub(super) fn forget(&mut self, at: At) {
        self.0.extract(|_, leaving| leaving.at == at);
    }
}
