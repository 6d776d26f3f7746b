//! The attachments of one session. Mostly there is one, and then it takes no allocation of its own.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::inbox::Subscriber;
use super::journal::Journal;

/// One of them.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) number: u32,
    /// Whom to tell what becomes of the session; nobody yet while the connection is being made.
    pub(super) subscriber: Option<Subscriber>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Attached {
    holders: Holders,
    /// What not every session has. Boxed: sessions are many.
    more: Option<Box<More>>,
}

#[derive(Debug, Default)]
struct More {
    /// Cancelled when the last has let go. Made when somebody waits for that.
    over: Option<CancellationToken>,
    /// What must be said again to have the session as it is, if any of them could.
    journal: Option<Arc<Journal>>,
}

#[derive(Debug)]
enum Holders {
    One(Holder),
    #[expect(clippy::box_collection, reason = "with room for a whole Vec, the one would take more")]
    Any(Box<Vec<Holder>>),
}

impl Attached {
    /// By one.
    pub(super) fn by(holder: Holder) -> Self {
        Self { holders: Holders::One(holder), more: None }
    }

    /// One more.
    pub(super) fn add(&mut self, holder: Holder) {
        match &mut self.holders {
            Holders::Any(holders) => holders.push(holder),
            Holders::One(_) => {
                let one = std::mem::replace(&mut self.holders, Holders::Any(Box::new(vec![holder])));
                if let (Holders::One(one), Holders::Any(holders)) = (one, &mut self.holders) {
                    holders.insert(0, one);
                }
            }
        }
    }

    /// One less; false if it has gone before.
    pub(super) fn remove(&mut self, number: u32) -> bool {
        match &mut self.holders {
            Holders::One(holder) if holder.number == number => {
                self.holders = Holders::Any(Box::default());
                true
            }
            Holders::One(_) => false,
            Holders::Any(holders) => {
                let before = holders.len();
                holders.retain(|holder| holder.number != number);
                holders.len() < before
            }
        }
    }

    /// The one with this number.
    pub(super) fn find(&mut self, number: u32) -> Option<&mut Holder> {
        let holders = match &mut self.holders {
            Holders::One(holder) => std::slice::from_mut(holder),
            Holders::Any(holders) => holders.as_mut_slice(),
        };
        holders.iter_mut().find(|holder| holder.number == number)
    }

    fn holders(&self) -> &[Holder] {
        match &self.holders {
            Holders::One(holder) => std::slice::from_ref(holder),
            Holders::Any(holders) => holders,
        }
    }

    /// Whether nobody is.
    pub(super) fn is_empty(&self) -> bool {
        self.holders().is_empty()
    }

    /// Whether one of them sees the session's frames: who carries others as well does.
    pub(super) fn is_seen(&self) -> bool {
        self.subscribers().any(|subscriber| matches!(subscriber, Subscriber::Inbox(_)))
    }

    /// Whom to tell.
    pub(super) fn subscribers(&self) -> impl Iterator<Item = &Subscriber> {
        self.holders().iter().filter_map(|holder| holder.subscriber.as_ref())
    }

    /// What says when the last has let go.
    pub(super) fn over(&mut self) -> CancellationToken {
        self.more.get_or_insert_default().over.get_or_insert_default().clone()
    }

    /// The journal of the session: this one, unless it has one.
    pub(super) fn journal(&mut self, new: impl FnOnce() -> Arc<Journal>) -> Arc<Journal> {
        Arc::clone(self.more.get_or_insert_default().journal.get_or_insert_with(new))
    }

    /// The last has let go.
    pub(super) fn end(&mut self) {
        if let Some(over) = self.more.as_mut().and_then(|more| more.over.take()) {
            over.cancel();
        }
    }
}
