//! Why a frame is not passed on, and what is known of it to refuse it by.

use crate::wire::envelope;
use crate::wire::{Envelope, Id, Scan, frame};

/// Why a frame is not passed on. Of a client, all but the first concern that frame alone: what is left of it is skipped.
#[derive(Debug, thiserror::Error)]
pub enum InletFault {
    /// No head: nothing behind it can be read.
    #[error("{0}")]
    Head(#[from] frame::HeadFault),
    /// No body that all read alike, of which nothing has been passed on.
    #[error("{0}")]
    Body(envelope::BodyFault, Subject),
    /// Found behind what has been passed on.
    #[error("{0}")]
    Midway(envelope::BodyFault, Subject),
    /// Too much has come without it.
    #[error("nothing in the first bytes of a large frame says where it must go")]
    Undecided(Subject),
    /// A server's event that would have said only at its end where it goes: there was no room to hold it, and it was skipped.
    #[error("there was no room for an event that has to be there whole")]
    Unheld,
}

/// What is known of a frame that is not passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its id, if there is exactly one.
    pub id: Option<Id>,
    /// Whether it was taken for an answer. Whoever sent it may have meant a request all the same.
    pub is_answer: bool,
}

impl Subject {
    pub(super) fn of(envelope: &Envelope) -> Self {
        Self { id: envelope.id.clone(), is_answer: envelope.method.is_none() && envelope.is_answer }
    }
}

/// The envelope of a body that is whole.
pub(super) fn sound(scan: Scan) -> Result<Envelope, InletFault> {
    let is_answer = Subject::of(scan.so_far()).is_answer;
    scan.finish().map_err(|(fault, id)| InletFault::Body(fault, Subject { id, is_answer }))
}
