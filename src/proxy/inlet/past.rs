//! Frames that are not passed on, read past to their ends: none of them is held, however long it is.

use super::fault::sound;
use super::{Begun, Inlet, InletFault, Piece, Subject};
use crate::close::By;
use crate::wire::{Envelope, Head, Id, Scan, envelope};

impl Inlet {
    /// What the next frame says of itself once all of it has come, for whoever passes nothing on: none of it is held, however
    /// long it is. One that was on its way already is not told of.
    ///
    /// # Errors
    /// See [`InletFault`].
    pub fn next_envelope(&mut self) -> Result<Option<Envelope>, InletFault> {
        loop {
            match self.begun.take() {
                Some(Begun::Passing { left, .. }) => {
                    self.begun = Some(Begun::Skipping { left, unsaid: 0 });
                }
                Some(Begun::Skipping { left, unsaid }) => {
                    if !self.skip(left, unsaid) {
                        return Ok(None);
                    }
                }
                Some(Begun::Undecided { head, scan, scanned }) => {
                    self.drop_front(head.head_bytes.saturating_add(scanned));
                    let left = head.body_bytes.saturating_sub(scanned);
                    self.begun = Some(Begun::Refused { scan, left });
                }
                Some(Begun::Refused { mut scan, left }) => {
                    let there = left.min(self.unread.len());
                    scan.feed(self.unread.get(..there).unwrap_or_default());
                    self.drop_front(there);
                    if left == there {
                        return sound(*scan).map(Some);
                    }
                    self.begun = Some(Begun::Refused { scan, left: left.saturating_sub(there) });
                    return Ok(None);
                }
                None => {
                    let Some(head) = Head::read(&self.unread)? else { return Ok(None) };
                    self.drop_front(head.head_bytes);
                    let scan = Box::new(Scan::of(self.of));
                    self.begun = Some(Begun::Refused { scan, left: head.body_bytes });
                }
            }
        }
    }

    /// Lets go of what has come of a frame that is of no use; whether that was all of it.
    pub(super) fn skip(&mut self, left: usize, unsaid: usize) -> bool {
        let skipped = left.min(self.unread.len());
        self.drop_front(skipped);
        let left = left.saturating_sub(skipped);
        self.begun = (left > 0).then_some(Begun::Skipping { left, unsaid });
        left == 0
    }

    /// Gives up the frame that has begun, and skips what is still to come of it: its id, if that is known. Without one
    /// nobody could be told, so nothing is given up.
    pub fn give_up(&mut self) -> Option<Id> {
        let Some(Begun::Undecided { head, scan, .. }) = &self.begun else { return None };
        let id = scan.so_far().id.clone()?;
        let left = head.frame_bytes().saturating_sub(self.unread.len());
        self.unread.clear();
        self.relax();
        self.gathered();
        self.begun = Some(Begun::Skipping { left, unsaid: 0 });
        Some(id)
    }

    /// Refuses a frame of which nothing has been passed on, as soon as there is an id to do that on, or at its end.
    pub(super) fn turn_down(&mut self, scan: Box<Scan>, left: usize) -> Result<Option<Piece>, InletFault> {
        let subject = Subject::of(scan.so_far());
        let is_broadcast = self.of == By::Backend && is_broadcast(scan.so_far());
        // Nobody reads on from a backend that is at fault, but everybody's broadcasts may be long without that.
        let reads_on = if self.of == By::Backend {
            is_broadcast && scan.fault().is_none()
        } else {
            subject.id.is_none()
        };
        if left > 0 && reads_on {
            self.begun = Some(Begun::Refused { scan, left });
            return Ok(None);
        }
        self.begun = (left > 0).then_some(Begun::Skipping { left, unsaid: 0 });
        Err(match scan.fault() {
            Some(fault) => InletFault::Body(fault, subject),
            None if is_broadcast => match sound(*scan) {
                Ok(_) => InletFault::Unheld,
                Err(fault) => fault,
            },
            None => InletFault::Undecided(subject),
        })
    }

    /// What has begun is not what it was taken for: what is left of it is skipped.
    pub(super) fn spoilt(
        &mut self,
        fault: envelope::BodyFault,
        decided: Envelope,
        left: usize,
        unsaid: usize,
    ) -> InletFault {
        self.begun = Some(Begun::Skipping { left, unsaid });
        InletFault::Midway(fault, Subject::of(&decided))
    }
}

/// Whether a backend's frame is, as far as is known, an event that every connection gets, and few are concerned by.
fn is_broadcast(envelope: &Envelope) -> bool {
    envelope.id.is_none() && envelope.known().is_some_and(|known| known.broadcast)
}
