//! The sessions of one client, and whose memory they take.
//!
//! Those that the client is attached to are as many as servers have opened for it: they have an account of their own, which
//! may hold far more than a client's share. One that the client has only named, because it is being placed or requests about it are in
//! flight, costs the client nothing but the name: it is held like the request that names it.

use std::hash::Hash;

use super::in_flight::At;
use super::revival::{Lost, Reviving};
use crate::runtime::account::{Account, HeldMap, Owns};
use crate::session::{Attachment, Opening, Sign};
use crate::wire::SessionId;

/// What a session takes in the directory.
const OWNER_BYTES: usize = 160;

/// Where a session of this client is.
#[derive(Debug)]
pub(super) enum Binding {
    /// Being placed by this job.
    Placing(u64),
    /// On this upstream.
    Bound {
        at: At,
        attachment: Option<Attachment>,
        attached: bool,
        flights: usize,
        /// How to open it again, if that is known.
        opening: Option<Box<Opening>>,
    },
    /// Its backend has gone. It is brought back for the client's next frame.
    Lost(Box<Lost>),
    /// It is being brought back.
    Reviving(Box<Reviving>),
}

impl Binding {
    /// On this upstream, and not attached yet.
    pub(super) fn bound(at: At, attachment: Option<Attachment>) -> Self {
        Self::Bound { at, attachment, attached: false, flights: 0, opening: None }
    }

    /// Whether the client has a part in it.
    fn is_attached(&self) -> bool {
        matches!(self, Self::Bound { attached: true, .. } | Self::Lost(_) | Self::Reviving(_))
    }

    /// Whether it is on this upstream.
    pub(super) fn is_on(&self, upstream: At) -> bool {
        matches!(self, Self::Bound { at, .. } if *at == upstream)
    }
}

/// The same whether it is held or not: there is room for it to be.
impl Owns for Binding {
    fn owns(&self) -> usize {
        OWNER_BYTES
    }
}

type Held = HeldMap<SessionId, Binding>;

/// Two tables, each of other sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    attached: Held,
    /// Boxed: most of the time there are none.
    named: Option<Box<Held>>,
    /// For those that are only named.
    account: Account,
}

impl Sessions {
    /// None yet.
    pub(super) fn new(account: &Account) -> Self {
        Self { attached: HeldMap::new(&account.apart()), named: None, account: account.clone() }
    }

    /// Whose memory those take that the client is attached to.
    pub(super) fn account(&self) -> &Account {
        self.attached.account()
    }

    /// Bytes that one more would take, being attached, which owns so many.
    pub(super) fn more_attached(&self, owns: usize) -> usize {
        self.attached.bytes_with(1, owns).saturating_sub(self.attached.bytes())
    }

    /// Bytes of those that are only named.
    pub(super) fn named_bytes(&self) -> usize {
        self.named.as_ref().map_or(0, |named| named.bytes())
    }

    /// Bytes that one more would take, being named: nothing, if it is there. The table's own growth comes to that.
    pub(super) fn more_named(&self, session: &SessionId) -> usize {
        if self.contains_key(session) {
            return 0;
        }
        let entry = size_of::<(SessionId, Binding)>();
        session.owns().saturating_add(OWNER_BYTES).saturating_add(entry)
    }

    /// Puts one in, in place of what is there of it.
    pub(super) fn insert(&mut self, session: SessionId, binding: Binding) {
        if binding.is_attached() {
            self.remove_named(&session);
            self.attached.insert(session, binding);
        } else {
            self.attached.remove(&session);
            self.insert_named(session, binding);
        }
    }

    fn insert_named(&mut self, session: SessionId, binding: Binding) {
        let account = &self.account;
        self.named.get_or_insert_with(|| Box::new(HeldMap::new(account))).insert(session, binding);
    }

    fn remove_named(&mut self, session: &SessionId) -> Option<Binding> {
        self.take_named(session).map(|(_, binding)| binding)
    }

    fn take_named(&mut self, session: &SessionId) -> Option<(SessionId, Binding)> {
        let taken = self.named.as_mut()?.take(session);
        self.named.take_if(|named| named.is_empty());
        taken
    }

    /// From now on the client is attached to a session, or is not; whether it is bound at all.
    pub(super) fn set_attached(&mut self, session: &SessionId, is: bool) -> bool {
        let Some(Binding::Bound { attached, .. }) = self.get(session) else { return false };
        if *attached == is {
            return true;
        }
        let taken = if is { self.take_named(session) } else { self.attached.take(session) };
        if let Some((key, mut binding)) = taken {
            if let Binding::Bound { attached, opening, .. } = &mut binding {
                *attached = is;
                opening.take_if(|_| !is);
            }
            // The other table has none of that name.
            if is {
                self.attached.insert(key, binding);
            } else {
                self.insert_named(key, binding);
            }
        }
        true
    }

    /// One more request about a session is in flight, which says this of it: whether it could be brought back;
    /// `None` if it is not bound.
    pub(super) fn depart(&mut self, session: &SessionId, sign: Sign) -> Option<bool> {
        let Some(Binding::Bound { flights, attachment, opening, .. }) = self.get_mut(session) else {
            return None;
        };
        *flights = flights.saturating_add(1);
        note(attachment, sign);
        Some(opening.is_some())
    }

    /// One less, whose answer says this of it; false if it is not bound.
    pub(super) fn arrive(&mut self, session: &SessionId, sign: Sign) -> bool {
        let Some(Binding::Bound { flights, attachment, .. }) = self.get_mut(session) else { return false };
        *flights = flights.saturating_sub(1);
        note(attachment, sign);
        true
    }

    /// Takes note of what a frame between the client and an upstream says of a session there.
    pub(super) fn note(&mut self, at: At, session: &SessionId, sign: Sign) {
        if let Some(Binding::Bound { at: known, attachment, .. }) = self.get_mut(session)
            && *known == at
        {
            note(attachment, sign);
        }
    }

    pub(super) fn remove(&mut self, session: &SessionId) -> Option<Binding> {
        self.attached.remove(session).or_else(|| self.remove_named(session))
    }

    /// Takes out those that `takes`.
    pub(super) fn extract(&mut self, takes: impl Fn(&Binding) -> bool) -> Vec<(SessionId, Binding)> {
        let mut taken = self.attached.extract(|_, binding| takes(binding));
        if let Some(named) = &mut self.named {
            taken.extend(named.extract(|_, binding| takes(binding)));
        }
        self.named.take_if(|named| named.is_empty());
        taken
    }

    pub(super) fn get(&self, session: &SessionId) -> Option<&Binding> {
        self.attached.get(session).or_else(|| self.named.as_ref()?.get(session))
    }

    pub(super) fn get_mut(&mut self, session: &SessionId) -> Option<&mut Binding> {
        self.attached.get_mut(session).or_else(|| self.named.as_mut()?.get_mut(session))
    }

    pub(super) fn contains_key(&self, session: &SessionId) -> bool {
        self.get(session).is_some()
    }

    /// The name that is held.
    pub(super) fn key(&self, session: &SessionId) -> Option<&SessionId> {
        self.attached.key(session).or_else(|| self.named.as_ref()?.key(session))
    }

    pub(super) fn len(&self) -> usize {
        self.attached.len().saturating_add(self.named.as_ref().map_or(0, |named| named.len()))
    }

    /// Those on an upstream.
    pub(super) fn on(&self, at: At) -> Vec<SessionId> {
        self.iter().filter(|(_, binding)| binding.is_on(at)).map(|(session, _)| session.clone()).collect()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&SessionId, &Binding)> {
        self.attached.iter().chain(self.named.iter().flat_map(|named| named.iter()))
    }

    /// Those that the client is attached to.
    pub(super) fn attached(&self) -> impl Iterator<Item = &SessionId> {
        self.attached.iter().map(|(session, _)| session)
    }

    /// A hash that nobody outside can foresee, and the same for as long as the client is there.
    pub(super) fn hash_of(&self, of: impl Hash) -> u64 {
        self.attached.hash_of(of)
    }
}

/// A session whose ID is too long to be tracked has no attachment.
fn note(attachment: &mut Option<Attachment>, sign: Sign) {
    if let Some(attachment) = attachment {
        attachment.note(sign);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::account::Budget;

    fn bound(attached: bool) -> Binding {
        Binding::Bound { at: 1, attachment: None, attached, flights: 0, opening: None }
    }

    #[test]
    fn what_is_only_named_is_the_clients_and_what_is_attached_is_apart() {
        let budget = Budget::for_tests(0, None);
        let account = budget.account();
        let mut sessions = Sessions::new(&account);
        let ids: Vec<SessionId> = (0..1000).map(|n| SessionId::new(&format!("{n:0>255}"))).collect();
        for (n, id) in ids.iter().enumerate() {
            assert!(sessions.more_named(id) > 255 + OWNER_BYTES);
            sessions.insert(id.clone(), if n % 2 == 0 { Binding::Placing(7) } else { bound(false) });
            assert_eq!((sessions.more_named(id), account.bytes()), (0, sessions.named_bytes()));
        }
        assert!(sessions.named_bytes() > 1000 * (255 + OWNER_BYTES));
        for id in &ids {
            assert!(sessions.get(id).is_some() && sessions.key(id) == Some(id));
            sessions.insert(id.clone(), bound(false));
            assert!(sessions.set_attached(id, true) && sessions.depart(id, Sign::Nothing).is_some());
        }
        assert_eq!((sessions.len(), sessions.attached().count()), (1000, 1000));
        assert_eq!((account.bytes(), sessions.named_bytes()), (0, 0));
        assert!(sessions.account().bytes() > 1000 * (255 + OWNER_BYTES));
        for id in &ids {
            assert!(sessions.set_attached(id, false) && sessions.arrive(id, Sign::Nothing));
            assert!(matches!(sessions.get(id), Some(Binding::Bound { attached: false, flights: 0, .. })));
        }
        assert_eq!(sessions.account().bytes(), 0);
        assert_eq!(sessions.extract(|binding| binding.is_on(1)).len(), 1000);
        assert!(!sessions.set_attached(&ids[0], true) && sessions.remove(&ids[0]).is_none());
        assert_eq!(account.bytes(), 0);
    }
}
