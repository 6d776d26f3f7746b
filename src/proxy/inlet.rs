//! One peer's frames as they come in: whole while they are small, in pieces when they are not.
//!
//! A large frame is let through as soon as its envelope says where it must go, and is scanned to its end while it passes.
//! So memory is bounded whatever the length that a head announces.

use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};

use super::tap::Walk;
use crate::close::By;
use crate::net::{self, Stream};
use crate::wire::envelope::{self, Field};
use crate::wire::{Envelope, Head, Id, Scan, frame};

/// Frames up to this size are waited for.
pub(super) const WHOLE_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Inlet {
    /// Whose bytes these are.
    of: By,
    unread: BytesMut,
    begun: Option<Begun>,
}

/// Scans are boxed: most of the time no frame has begun, and most connections are idle.
#[derive(Debug)]
enum Begun {
    /// Not known yet where it goes.
    Undecided { head: Head, scan: Box<Scan>, scanned: usize },
    /// On its way.
    Passing { scan: Box<Scan>, left: usize },
    /// Of no use to anybody.
    Skipping { left: usize },
}

/// What came in.
#[derive(Debug)]
pub(super) enum Piece {
    /// A frame, or the beginning of one.
    Frame(Frame),
    /// More of the frame that has begun.
    More { bytes: Bytes, end: Option<Envelope> },
}

/// A frame.
#[derive(Debug)]
pub(super) struct Frame {
    /// Head and as much of the body as is there.
    pub bytes: Bytes,
    /// Where in `bytes` the body begins.
    pub body_at: usize,
    /// The envelope; of a beginning, what is known so far.
    pub envelope: Envelope,
    /// Body bytes still to come, in [`Piece::More`].
    pub left: usize,
}

/// Why a peer's bytes cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Head(#[from] frame::Fault),
    #[error("{0}")]
    Body(envelope::Fault, Option<Id>),
    /// Found behind what has been passed on; the rest of the frame will be skipped.
    #[error("{0}")]
    Midway(envelope::Fault),
    #[error("nothing in the first bytes of a large frame says where it must go")]
    Undecided(Option<Id>),
}

impl Frame {
    /// The part of the body that is there.
    pub(super) fn body(&self) -> &[u8] {
        self.bytes.get(self.body_at..).unwrap_or_default()
    }

    /// The frame with `id` in place of the JSON text at `old`; a new head says the new length.
    pub(super) fn with_id(&self, old: &Id, id: &[u8]) -> Bytes {
        let span = old.span();
        let body = self.body();
        let before = body.get(..span.start).unwrap_or_default();
        let after = body.get(span.end..).unwrap_or_default();
        let length =
            (before.len().saturating_add(id.len()).saturating_add(after.len())).saturating_add(self.left);
        let head = format!("Content-Length: {length}\r\n\r\n");
        let mut bytes =
            BytesMut::with_capacity(head.len().saturating_add(body.len()).saturating_add(id.len()));
        for part in [head.as_bytes(), before, id, after] {
            bytes.extend_from_slice(part);
        }
        bytes.freeze()
    }
}

impl Inlet {
    /// Goes on from bytes read earlier.
    pub(super) fn new(of: By, unread: BytesMut) -> Self {
        Self { of, unread, begun: None }
    }

    /// Goes on in the middle of a stream whose frames somebody else has followed so far.
    pub(super) fn resumed(of: By, followed: Walk) -> Self {
        let Walk { head, left, .. } = followed;
        Self { of, unread: head, begun: (left > 0).then_some(Begun::Skipping { left }) }
    }

    /// Whether a frame has begun and is not whole.
    pub(super) fn is_midway(&self) -> bool {
        !self.unread.is_empty() || self.begun.is_some()
    }

    /// Whether the rest of a frame is still to be passed on.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.begun, Some(Begun::Passing { .. }))
    }

    /// Bytes held of a frame that is not known to go anywhere yet.
    pub(super) fn held(&self) -> usize {
        self.unread.len()
    }

    /// Gives up the frame that has begun, and skips what is still to come of it: its id, if that is known. Without one
    /// nobody could be told, so nothing is given up.
    pub(super) fn give_up(&mut self) -> Option<Id> {
        let Some(Begun::Undecided { head, scan, .. }) = &self.begun else { return None };
        let id = scan.so_far().id.clone()?;
        let left = head.frame_bytes().saturating_sub(self.unread.len());
        self.unread = BytesMut::new();
        self.begun = Some(Begun::Skipping { left });
        Some(id)
    }

    /// Reads once; 0 at the end.
    pub(super) fn poll_fill(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        net::poll_hear(self.of, stream, cx, &mut self.unread, net::READ_BYTES_MAX)
    }

    /// What the bytes at hand make, if anything. `bytes_max` bounds the search for where a large frame must go.
    ///
    /// # Errors
    /// See [`Fault`].
    pub(super) fn next(&mut self, bytes_max: usize) -> Result<Option<Piece>, Fault> {
        match self.begun.take() {
            Some(Begun::Passing { scan, left }) => self.pass(scan, left),
            Some(Begun::Skipping { left }) => {
                let skipped = left.min(self.unread.len());
                self.unread.advance(skipped);
                self.relax();
                if left > skipped {
                    self.begun = Some(Begun::Skipping { left: left.saturating_sub(skipped) });
                    return Ok(None);
                }
                self.next(bytes_max)
            }
            Some(Begun::Undecided { head, scan, scanned }) => self.decide(head, scan, scanned, bytes_max),
            None => {
                if self.unread.is_empty() {
                    return Ok(None);
                }
                match Head::read(&self.unread)? {
                    Some(head) if self.unread.len() >= head.frame_bytes() => self.whole(head),
                    Some(head) => self.decide(head, Box::default(), 0, bytes_max),
                    None => Ok(None),
                }
            }
        }
    }

    /// The usual frame: all there at once.
    fn whole(&mut self, head: Head) -> Result<Option<Piece>, Fault> {
        let body = self.unread.get(head.head_bytes..head.frame_bytes()).unwrap_or_default();
        let envelope = Scan::whole(body).map_err(|(fault, id)| Fault::Body(fault, id))?;
        Ok(Some(Piece::Frame(self.take(head.frame_bytes(), head, envelope, 0))))
    }

    fn decide(
        &mut self,
        head: Head,
        mut scan: Box<Scan>,
        scanned: usize,
        bytes_max: usize,
    ) -> Result<Option<Piece>, Fault> {
        let there = self.unread.len().min(head.frame_bytes());
        let body = self.unread.get(head.head_bytes..there).unwrap_or_default();
        scan.feed(body.get(scanned..).unwrap_or_default());
        let scanned = body.len();
        let left = head.body_bytes.saturating_sub(scanned);
        if left == 0 {
            let envelope = scan.finish().map_err(|(fault, id)| Fault::Body(fault, id))?;
            return Ok(Some(Piece::Frame(self.take(there, head, envelope, 0))));
        }
        if let Some(fault) = scan.fault() {
            return Err(Fault::Body(fault, scan.finish().err().and_then(|(_, id)| id)));
        }
        if head.frame_bytes() > WHOLE_BYTES_MAX
            && is_decided(self.of, scan.so_far(), there >= WHOLE_BYTES_MAX)
        {
            let envelope = scan.so_far().clone();
            self.begun = Some(Begun::Passing { scan, left });
            return Ok(Some(Piece::Frame(self.take(there, head, envelope, left))));
        }
        if there >= bytes_max {
            return Err(Fault::Undecided(scan.so_far().id.clone()));
        }
        self.begun = Some(Begun::Undecided { head, scan, scanned });
        Ok(None)
    }

    fn take(&mut self, bytes: usize, head: Head, envelope: Envelope, left: usize) -> Frame {
        // To split costs more than to give all away.
        let all = bytes == self.unread.len();
        let bytes = if all { std::mem::take(&mut self.unread) } else { self.unread.split_to(bytes) };
        Frame { bytes: bytes.freeze(), body_at: head.head_bytes, envelope, left }
    }

    fn pass(&mut self, mut scan: Box<Scan>, left: usize) -> Result<Option<Piece>, Fault> {
        let bytes = self.unread.split_to(left.min(self.unread.len())).freeze();
        self.relax();
        scan.feed(&bytes);
        let left = left.saturating_sub(bytes.len());
        if let Some(fault) = scan.fault() {
            self.begun = (left > 0).then_some(Begun::Skipping { left });
            return Err(Fault::Midway(fault));
        }
        if left == 0 {
            let end = scan.finish().map_err(|(fault, _)| Fault::Midway(fault))?;
            return Ok(Some(Piece::More { bytes, end: Some(end) }));
        }
        self.begun = Some(Begun::Passing { scan, left });
        Ok((!bytes.is_empty()).then_some(Piece::More { bytes, end: None }))
    }

    fn relax(&mut self) {
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
        }
    }
}

/// Whether what is known of a large frame says where it must go. A client's request goes by its session, and its id is
/// what its answer is known by; either may be its last key, so both have to be waited for. What a backend sends goes to the client in any case; only whether an id must
/// be changed has to be known, and an event's missing id shows when much has come without one.
fn is_decided(of: By, envelope: &Envelope, much_seen: bool) -> bool {
    let answers = envelope.method.is_none() && envelope.is_answer;
    match of {
        By::Backend => answers || envelope.method.is_some() && (envelope.id.is_some() || much_seen),
        _ => {
            envelope.id.is_some()
                && (answers || envelope.method.is_some() && envelope.session != Field::Absent)
        }
    }
}
