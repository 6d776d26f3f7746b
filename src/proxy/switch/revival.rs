//! A session of a client whose backend has gone, and how far it is brought back: its opening is said again to another backend,
//! then its settings, and then the client's frames go on. Pure.

use std::time::{Duration, Instant};

use super::in_flight::At;
use crate::session::{Attachment, Opening, RevivalTurn};
use crate::wire::Id;

/// How often one that is being brought back may lose its backend once more.
const TRIES_MAX: u8 = 3;

/// Why a session has to be brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The connection to its backend has ended.
    Loss,
    /// Its backend says that it does not have it.
    Denied,
    /// Another client has taken it elsewhere.
    Moved,
}

impl Why {
    /// The metric label.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Denied => "denied",
            Self::Moved => "moved",
        }
    }
}

/// A session that is on no backend of this client.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) opening: Box<Opening>,
    pub(super) why: Why,
}

/// One that is being brought back.
#[derive(Debug)]
pub(super) struct Reviving {
    /// What the client's frames wait for.
    pub(super) job: u64,
    lost: Lost,
    began: Instant,
    tries: u8,
    there: Option<There>,
    /// Requests that wait, and have been sent before.
    resent: Vec<Id>,
}

/// Where it is being brought back.
#[derive(Debug)]
struct There {
    at: At,
    attachment: Attachment,
    _turn: Option<RevivalTurn>,
    /// Settings without an answer; `None` until it has been opened.
    unsettled: Option<usize>,
    /// A setting has failed.
    has_failed: bool,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: more answers are due, or this one is not.
    Wait,
    /// Its settings are to be said.
    Settle,
    /// It is back.
    Done,
    /// It is not coming back.
    Fail,
}

/// One that is back.
#[derive(Debug)]
pub(super) struct Revived {
    pub(super) at: At,
    pub(super) attachment: Attachment,
    pub(super) opening: Box<Opening>,
    pub(super) resent: Vec<Id>,
    pub(super) why: Why,
    /// Everything was said again, and taken.
    pub(super) is_whole: bool,
    pub(super) took: Duration,
}

impl Lost {
    /// It is to be brought back; the client's frames wait for this job.
    pub(super) fn begin(self, job: u64) -> Reviving {
        Reviving { job, lost: self, began: Instant::now(), tries: 1, there: None, resent: Vec::new() }
    }
}

impl Reviving {
    /// How it is opened again.
    pub(super) fn opening(&mut self) -> &mut Opening {
        &mut self.lost.opening
    }

    /// The upstream on which it is being brought back, once that is known.
    pub(super) fn at(&self) -> Option<At> {
        self.there.as_ref().map(|there| there.at)
    }

    /// How often that has been tried, this time included.
    pub(super) fn tries(&self) -> u8 {
        self.tries
    }

    /// Whether it has to leave the backend on which it is being brought back.
    pub(super) fn must_leave(&self, at: At) -> bool {
        self.there.as_ref().is_some_and(|there| there.at == at && there.attachment.is_leaving())
    }

    /// It has a home: what opens it is on its way there.
    pub(super) fn opens(&mut self, at: At, attachment: Attachment, turn: Option<RevivalTurn>) {
        self.there = Some(There { at, attachment, _turn: turn, unsettled: None, has_failed: false });
    }

    /// So many settings are on their way.
    pub(super) fn settles(&mut self, settings: usize) -> Next {
        if let Some(there) = &mut self.there {
            there.unsettled = Some(settings);
        }
        if settings == 0 { Next::Done } else { Next::Wait }
    }

    /// Its backend has answered on this upstream what was sent at this try: what opens it, or a setting.
    pub(super) fn answered(&mut self, at: At, tries: u8, is_opening: bool, is_good: bool) -> Next {
        let is_now = tries == self.tries;
        let Some(there) = self.there.as_mut().filter(|there| is_now && there.at == at) else {
            return Next::Wait;
        };
        match (is_opening, &mut there.unsettled) {
            (true, None) if is_good => Next::Settle,
            (true, None) => Next::Fail,
            (false, Some(unsettled)) if *unsettled > 0 => {
                there.has_failed |= !is_good;
                *unsettled = unsettled.saturating_sub(1);
                if *unsettled == 0 { Next::Done } else { Next::Wait }
            }
            _ => Next::Wait,
        }
    }

    /// It has lost the backend on which it was being brought back; false if that has been tried often enough.
    pub(super) fn try_again(&mut self) -> bool {
        self.there = None;
        let may = self.tries < TRIES_MAX;
        self.tries = self.tries.saturating_add(u8::from(may));
        may
    }

    /// A request waits that has been sent before.
    pub(super) fn note_resent(&mut self, id: Id) {
        self.resent.push(id);
    }

    /// It is not coming back now: the client's next frame is to try again. And how long this took.
    pub(super) fn fail(self) -> (Lost, Duration) {
        (self.lost, self.began.elapsed())
    }

    /// It is back; `None` if it has never been on its way.
    pub(super) fn end(self) -> Option<Revived> {
        let Lost { opening, why } = self.lost;
        let There { at, attachment, has_failed, .. } = self.there?;
        let is_whole = !has_failed && opening.journal().unmovable().is_none();
        let (resent, took) = (self.resent, self.began.elapsed());
        Some(Revived { at, attachment, opening, resent, why, is_whole, took })
    }
}
