//! One connection of a client to a backend: what is queued for it, and what has come of its frames.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use super::QUEUE_BYTES_MAX;
use super::births::Kept;
use super::fate::Rest;
use super::slow::Intake;
use super::stall::Pace;
use crate::balancer::Balancer;
use crate::close::By;
use crate::fleet::{Backend, Leased};
use crate::link::Link;
use crate::net::Stream;
use crate::place::InUse;
use crate::proxy::inlet::{Inlet, InletFault, Piece};
use crate::proxy::queue::{Queue, Queued};
use crate::runtime::account::Account;
use crate::session::Inbox;
use crate::wire::{Id, SessionId};

/// One connection of one client to one backend.
pub(super) struct Upstream {
    stream: Leased,
    inlet: Inlet,
    out: Queue,
    /// The client is in the middle of a large frame to this backend.
    midway: bool,
    /// There was nothing to read when it was looked at last, its client having as much as its share.
    dry: bool,
    /// Frames that wait for the end of that one.
    behind: Queue,
    /// What its sessions tell.
    inbox: Arc<Inbox>,
    /// While it is, no other is dialled for this client.
    _in_use: Option<InUse>,
    /// Broadcasts that wait for a birth.
    kept: Kept,
    /// What becomes of the rest of a large frame from this backend.
    rest: Rest,
    /// Since when nothing moves.
    pace: Pace,
    /// What the backend takes while the client waits for that.
    intake: Intake,
}

impl Upstream {
    pub(super) fn new(link: Link, in_use: Option<InUse>, balancer: &Balancer, account: &Account) -> Self {
        let Link { stream, unread } = link;
        Self {
            stream,
            inlet: Inlet::new(By::Backend, unread, account.charge())
                .gathering(balancer.frame_memory.account().charge()),
            out: Queue::new(account),
            midway: false,
            dry: false,
            behind: Queue::new(account),
            inbox: Arc::default(),
            _in_use: in_use,
            kept: Kept::new(account),
            rest: Rest::default(),
            pace: Pace::default(),
            intake: Intake::default(),
        }
    }

    /// What of it outlasts its client.
    pub(super) fn into_parts(self) -> (Leased, Inlet, Queue) {
        (self.stream, self.inlet, self.out)
    }

    /// Whether its bytes go under TLS.
    pub(super) fn is_sealed(&self) -> bool {
        matches!(&*self.stream, Stream::Sealed(_))
    }

    /// Writes what the backend takes; whether that was something.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let queued = self.out.len();
        let moved = match self.out.poll_flush(&mut self.stream, cx) {
            Poll::Ready(wrote) => wrote?,
            Poll::Pending => false,
        };
        self.intake.took(queued.saturating_sub(self.out.len()));
        self.pace.wrote(moved, self.out.is_empty());
        // What waits behind the client's large frame counts as well.
        if self.out.is_empty() && self.behind.is_empty() {
            self.intake.drained();
        }
        Ok(moved)
    }

    /// What has come, as a frame or a piece of one.
    pub(super) fn next(&mut self, bytes_max: usize) -> Result<Option<Piece>, InletFault> {
        self.inlet.next(bytes_max)
    }

    /// Reads once, `most` bytes at most; 0 at the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        let came = self.inlet.poll_fill(&mut self.stream, cx, most);
        if matches!(came, Poll::Ready(Ok(came)) if came > 0) {
            self.dry = false;
        }
        came
    }

    /// There is nothing to read; whether that is new.
    pub(super) fn run_dry(&mut self) -> bool {
        !std::mem::replace(&mut self.dry, true)
    }

    /// Whether there was nothing to read when it was looked at last, its client having as much as its share.
    pub(super) fn is_dry(&self) -> bool {
        self.dry
    }

    /// Charges what has come and is not whole.
    pub(super) fn settle(&mut self) {
        self.inlet.settle();
    }

    /// After reading: whether something came.
    pub(super) fn note_read(&mut self, moved: bool) {
        self.pace.read(moved, self.inlet.is_midway());
    }

    /// Whether something is to move that may stand still.
    pub(super) fn may_stall(&self) -> bool {
        !self.pace.is_even()
    }

    /// Whether the backend has stood still for so long, in the middle of a frame or before what is queued for it.
    pub(super) fn has_stalled(&self, patience: Duration) -> bool {
        self.pace.has_not_read(patience) || !self.has_room() && self.pace.has_not_written(patience)
    }

    /// Whether it takes nothing for long enough that nobody should wait for room.
    pub(super) fn is_stuck(&self) -> bool {
        self.pace.is_stuck()
    }

    /// There is room for what the client has for it.
    pub(super) fn note_room(&mut self) {
        self.intake.is_free();
    }

    /// Somebody has found no room: is it to blame?
    pub(super) fn note_full(&mut self) {
        if self.owed() > 0 {
            self.intake.is_full();
        }
    }

    /// For how long it has taken less than a queue's worth, though that was waited for.
    pub(super) fn slow_for(&self) -> Duration {
        self.intake.slow_for()
    }

    /// Keeps a broadcast until it is known whether its session is being born for this client.
    pub(super) fn keep(&mut self, session: SessionId, event: &[u8]) {
        self.kept.keep(session, event);
    }

    /// Takes the broadcasts about the session that was born.
    pub(super) fn take_kept(&mut self, born: &SessionId) -> Vec<Bytes> {
        self.kept.take(born)
    }

    /// Nothing is being born here any more.
    pub(super) fn drop_kept(&mut self) {
        self.kept.clear();
    }

    /// What becomes of the rest of the frame that has begun.
    pub(super) fn rest(&self) -> Rest {
        self.rest
    }

    /// That is decided.
    pub(super) fn set_rest(&mut self, rest: Rest) {
        self.rest = rest;
    }

    /// Bytes that are still to follow what the client has of a frame.
    pub(super) fn unsaid(&self) -> usize {
        self.inlet.unsaid()
    }

    /// Whether a frame of the backend has begun and is not whole.
    pub(super) fn is_midway(&self) -> bool {
        self.inlet.is_midway()
    }

    /// The request whose answer has begun and is held until it is whole.
    pub(super) fn answering(&self) -> Option<Id> {
        self.inlet.answering().cloned()
    }

    /// What was read and has to wait does so in a buffer of its own.
    pub(super) fn tighten(&mut self) {
        self.inlet.tighten();
    }

    /// Bytes queued beyond what a queue holds.
    pub(super) fn overflow(&self) -> usize {
        self.out.len().saturating_add(self.behind.len()).saturating_sub(QUEUE_BYTES_MAX)
    }

    pub(super) fn backend(&self) -> &Arc<Backend> {
        self.stream.backend()
    }

    /// What its sessions tell.
    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Whether the backend has taken all that was queued.
    pub(super) fn has_taken_all(&self) -> bool {
        self.out.is_empty() && !self.stream.has_unsent()
    }

    /// Bytes queued.
    pub(super) fn owed(&self) -> usize {
        self.out.owed()
    }

    /// Whether more may be queued for the backend.
    pub(super) fn has_room(&self) -> bool {
        self.out.has_room(QUEUE_BYTES_MAX)
    }

    /// Queues a frame, never inside another.
    pub(super) fn push(&mut self, bytes: impl Into<Queued>) {
        let bytes = bytes.into();
        self.stream
            .backend()
            .series()
            .bytes_to_backend
            .inc_by(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.midway { self.behind.push_aside(bytes) } else { self.out.push(bytes) }
    }

    /// Refuses a request of the backend.
    pub(super) fn refuse(&mut self, frame: Vec<u8>) {
        self.intake.refused(frame.len());
        self.push(frame);
    }

    /// Whether it asks on without taking what it is told about that: it is not read until it does.
    pub(super) fn is_deaf(&self) -> bool {
        self.intake.is_deaf()
    }

    /// The client's large frame has begun, and only more of it may follow.
    pub(super) fn begin(&mut self) {
        self.midway = true;
    }

    /// Queues more of the client's large frame; behind its end, what has waited for that.
    pub(super) fn push_on(&mut self, bytes: Bytes, end: bool) {
        self.midway = false;
        self.push(bytes);
        self.midway = !end;
        while !self.midway {
            let Some(frame) = self.behind.pop() else { break };
            self.out.push(frame);
        }
    }
}
