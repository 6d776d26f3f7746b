//! Sessions of one client whose backends have gone.

use std::collections::BTreeMap;

use super::{Evicted, Table};
use crate::metrics::Outcome;
use crate::proxy::switch::in_flight::{At, InFlight, Note};
use crate::proxy::switch::revival::{Lost, Revived, Reviving, Why};
use crate::proxy::switch::sessions::Binding;
use crate::runtime::account::Account;
use crate::session::{Activity, Attachment, Opening};
use crate::wire::{Id, SessionId};

/// What is on its way of bringing sessions back.
#[derive(Debug, Default)]
pub(super) struct Revivals {
    /// Sessions that are being brought back, by the jobs that their frames wait for.
    by_job: BTreeMap<u64, SessionId>,
    /// For requests that are kept until they are answered, once one is.
    kept: Option<Account>,
    /// The request of which the client has not sent all.
    begun: Option<Id>,
}

/// The account of requests that are kept, made when the first is.
pub(in crate::proxy::switch) struct KeptAccount<'a>(pub(super) &'a mut Option<Box<Revivals>>);

impl KeptAccount<'_> {
    pub(in crate::proxy::switch) fn account(&mut self, new: impl FnOnce() -> Account) -> &Account {
        self.0.get_or_insert_default().kept.get_or_insert_with(new)
    }
}

/// What becomes of a session whose backend has gone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LostSession {
    /// It is brought back at the client's next frame.
    pub(super) revivable: bool,
    /// The client is told, for it may wait for the end of a turn or has to resume the session.
    pub(super) is_told: bool,
}

impl Table {
    /// Whether the client's next frame about a session brings it back.
    pub(in crate::proxy::switch) fn is_revivable(&self, session: &SessionId) -> bool {
        matches!(self.binding(session), Some(Binding::Lost(_) | Binding::Reviving(_)))
    }

    /// The session's backend has gone. If it `is_dead`, or no turn runs there, it can be brought back; if not, what follows of it
    /// needs a resume first.
    pub(super) fn lose(&mut self, session: &SessionId, why: Why, is_dead: bool) -> LostSession {
        let Some(Binding::Bound { attachment, attached, opening, .. }) = self.sessions.remove(session) else {
            return LostSession::default();
        };
        let is_idle = attachment.is_some_and(|attachment| attachment.activity() == Activity::Idle);
        match opening.filter(|_| attached && (is_dead || is_idle)) {
            Some(opening) => {
                self.bind(session.clone(), Binding::Lost(Box::new(Lost { opening, why })));
                LostSession { revivable: true, is_told: !is_idle }
            }
            None => {
                self.note_lost(session);
                LostSession { revivable: false, is_told: attached }
            }
        }
    }

    /// A backend has said that it does not have a session of this client there. Whoever else is attached to it is told.
    pub(in crate::proxy::switch) fn deny(&mut self, at: At, session: &SessionId) {
        let attachment = match self.sessions.get_mut(session) {
            Some(Binding::Bound { at: known, attachment, attached: true, .. }) if *known == at => {
                attachment.take()
            }
            _ => return,
        };
        self.lose(session, Why::Denied, true);
        if let Some(attachment) = attachment {
            drop(attachment.evict());
        }
    }

    /// A session that was lost is to be brought back; what is about it waits for this job.
    pub(in crate::proxy::switch) fn begin_revival(&mut self, session: &SessionId, job: u64) {
        match self.sessions.remove(session) {
            Some(Binding::Lost(lost)) => {
                self.revivals.get_or_insert_default().by_job.insert(job, session.clone());
                self.bind(session.clone(), Binding::Reviving(Box::new(lost.begin(job))));
            }
            Some(binding) => self.bind(session.clone(), binding),
            None => {}
        }
    }

    /// The session that is being brought back by this job.
    pub(in crate::proxy::switch) fn revived_by(&mut self, job: u64) -> Option<(SessionId, &mut Reviving)> {
        let session = self.revivals.as_ref()?.by_job.get(&job)?.clone();
        match self.sessions.get_mut(&session) {
            Some(Binding::Reviving(reviving)) if reviving.job == job => Some((session, reviving)),
            _ => None,
        }
    }

    /// The jobs that bring sessions back on an upstream.
    pub(super) fn revivals_on(&self, at: At) -> Vec<u64> {
        let is_on = |session: &SessionId| match self.binding(session) {
            Some(Binding::Reviving(reviving)) => reviving.at() == Some(at),
            _ => false,
        };
        self.revivals
            .iter()
            .flat_map(|all| &all.by_job)
            .filter(|(_, session)| is_on(session))
            .map(|(job, _)| *job)
            .collect()
    }

    /// The job that brings a session back on an upstream that it has to leave.
    pub(in crate::proxy::switch) fn evicts_revival(&self, at: At, session: &SessionId) -> Option<u64> {
        match self.binding(session) {
            Some(Binding::Reviving(reviving)) if reviving.must_leave(at) => Some(reviving.job),
            _ => None,
        }
    }

    fn take_reviving(&mut self, job: u64) -> Option<(SessionId, Reviving)> {
        let session = self.revivals.as_mut()?.by_job.remove(&job)?;
        match self.sessions.remove(&session) {
            Some(Binding::Reviving(reviving)) if reviving.job == job => Some((session, *reviving)),
            Some(binding) => {
                self.bind(session, binding);
                None
            }
            None => None,
        }
    }

    /// A session is not coming back now; why it was to, and how long that took.
    pub(in crate::proxy::switch) fn fail_revival(&mut self, job: u64) -> Option<(Why, std::time::Duration)> {
        let (session, reviving) = self.take_reviving(job)?;
        let (lost, took) = reviving.fail();
        let why = lost.why;
        self.bind(session, Binding::Lost(Box::new(lost)));
        Some((why, took))
    }

    /// A session that was lost is nowhere any more: what follows of it needs a create, or a resume, first.
    pub(in crate::proxy::switch) fn is_gone(&mut self, session: &SessionId) {
        if matches!(self.binding(session), Some(Binding::Lost(_))) {
            self.sessions.remove(session);
            self.note_lost(session);
        }
    }

    /// A session is back. Its attachment and what opens it are in its binding then.
    pub(in crate::proxy::switch) fn end_revival(&mut self, job: u64) -> Option<(SessionId, Revived)> {
        let (session, reviving) = self.take_reviving(job)?;
        Some((session, reviving.end()?))
    }

    /// The client can open a session again in this way.
    pub(in crate::proxy::switch) fn set_opening(&mut self, session: &SessionId, mut new: Opening) {
        if let Some(Binding::Bound { opening, attached: true, .. }) = self.sessions.get_mut(session) {
            if let Some(before) = opening.take()
                && let Err(why) = new.upon(*before)
            {
                return new.journal().pin(why);
            }
            *opening = Some(Box::new(new));
        }
    }

    /// A session's attachment on an upstream, and how it is opened again if that is known.
    pub(in crate::proxy::switch) fn opened(
        &mut self,
        session: &SessionId,
        on: At,
    ) -> Option<(&Attachment, Option<&mut Opening>)> {
        match self.sessions.get_mut(session) {
            Some(Binding::Bound { at, attachment: Some(attachment), opening, .. }) if *at == on => {
                Some((attachment, opening.as_deref_mut()))
            }
            _ => None,
        }
    }

    /// The request that is in flight under this id, to be changed in anything but where it is.
    pub(in crate::proxy::switch) fn flight_mut(&mut self, id: &Id) -> Option<&mut InFlight> {
        self.flights.get_mut(id)
    }

    /// What is noted of the client's large request that is on its way and not whole.
    pub(in crate::proxy::switch) fn begun_note(&mut self) -> Option<&mut Note> {
        let begun = self.revivals.as_ref()?.begun.as_ref()?;
        self.flights.get_mut(begun)?.note.as_deref_mut()
    }

    /// Which request that is from now on; which it was.
    pub(in crate::proxy::switch) fn set_begun(&mut self, id: Option<Id>) -> Option<Id> {
        match (&mut self.revivals, id) {
            (None, None) => None,
            (revivals, id) => std::mem::replace(&mut revivals.get_or_insert_default().begun, id),
        }
    }

    /// Takes out a request that its backend says was about nothing.
    pub(in crate::proxy::switch) fn withdraw(&mut self, id: &Id) -> Option<InFlight> {
        self.arrive(id, Outcome::Error(None))
    }

    /// A session has left an upstream, for it is live elsewhere.
    pub(super) fn leaves(&mut self, at: At, session: &SessionId, ids: Vec<Id>) -> Evicted {
        let LostSession { revivable, is_told } = self.lose(session, Why::Moved, true);
        let key = self.sessions.hash_of((at, session));
        self.left_mut().add(key, at);
        let ids = ids.into_iter().map(|id| (id, revivable)).collect();
        Evicted { ids, is_told, key }
    }
}
