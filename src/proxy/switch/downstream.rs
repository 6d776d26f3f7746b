//! The client's side of a switch: its socket, what has come of its frames, and what it is told.
//!
//! Frames reach the client whole: while one upstream is in the middle of a large one, it is the *speaker*, the others wait, and
//! frames of sessile's own are put aside.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::in_flight::At;
use super::stall::Delay;
use super::waiting::{DEPARTURES_BYTES, FREE_BYTES};
use super::{QUEUE_BYTES_MAX, READ_BYTES_MIN};
use crate::close::By;
use crate::config::Timeouts;
use crate::net::{READ_BYTES_MAX, Stream};
use crate::proxy::inlet::{Inlet, InletFault, Piece};
use crate::proxy::queue::{Queue, Queued};
use crate::runtime::account::Account;
use crate::wire::Id;

/// What a client that does not read may be told in any case, however much it or others hold.
const TOLD_BYTES_FREE: usize = 16 * 1024;

/// The client.
pub(super) struct Downstream {
    socket: Stream,
    inlet: Inlet,
    out: Queue,
    /// Frames of sessile's own that wait for the end of the speaker's. Boxed: most of the time there are none.
    aside: Option<Box<Queue>>,
    /// The upstream that is in the middle of a frame to the client.
    speaker: Option<Box<Delay>>,
    /// Where the rest of the client's large frame goes.
    rest: Option<Target>,
    /// It has sent its last byte.
    ended: bool,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Runs while no byte moves, where the configuration bounds that.
    idle: Option<Pin<Box<Sleep>>>,
}

/// Where the rest of a large frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Upstream(At),
    Job(u64),
    Nowhere,
}

/// Whether more of a frame that has begun may be read.
pub(super) enum Room {
    Is,
    /// When others have gone on their way.
    Later,
    /// No: the request with this id is refused, and the rest of it is skipped.
    Refused(Id),
    /// No, and nothing is known to refuse it by.
    None,
}

impl Downstream {
    /// A client that has sent nothing.
    pub(super) fn new(socket: Stream, account: &Account, timeouts: &Timeouts) -> Self {
        let due = Instant::now().checked_add(timeouts.opening);
        Self {
            socket,
            inlet: Inlet::new(By::Client, BytesMut::new(), account.charge()),
            out: Queue::new(account),
            aside: None,
            speaker: None,
            rest: None,
            ended: false,
            deadline: due.map(|due| Box::pin(sleep_until(due))),
            idle: timeouts.idle.map(|limit| Box::pin(sleep(limit))),
        }
    }

    /// The account of everything that is held for this client.
    pub(super) fn account(&self) -> &Account {
        self.inlet.account()
    }

    /// The socket, to be closed.
    pub(super) fn into_socket(self) -> Stream {
        self.socket
    }
}

/// What comes from it.
impl Downstream {
    /// What has come, as a frame or a piece of one.
    pub(super) fn next(&mut self, bytes_max: usize) -> Result<Option<Piece>, InletFault> {
        self.inlet.next(bytes_max)
    }

    /// Reads once; 0 at the end. What has come is held whether there is room or not, so little is read where there is none.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let account = self.inlet.account();
        let has_room = account.is_within_share(READ_BYTES_MAX) || account.has_room(READ_BYTES_MAX);
        let most = if has_room { READ_BYTES_MAX } else { READ_BYTES_MIN };
        let read = self.inlet.poll_fill(&mut self.socket, cx, most);
        if matches!(read, Poll::Ready(Ok(0))) {
            self.ended = true;
            self.deadline = None;
        }
        read
    }

    /// Whether it has sent its last byte.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Counts a frame that has begun, while others may wait for jobs.
    pub(super) fn count_begun(&mut self, others_wait: bool) -> Room {
        let held = self.inlet.held();
        let granted = self.inlet.settle();
        // What is read next may have to wait as well.
        let ahead = READ_BYTES_MAX.saturating_add(DEPARTURES_BYTES);
        if granted && (!others_wait || self.account().has_room(ahead)) {
            return Room::Is;
        }
        if others_wait {
            // There will be room when they know where they go.
            return Room::Later;
        }
        match self.inlet.give_up() {
            Some(id) => Room::Refused(id),
            None if held <= FREE_BYTES => Room::Is,
            None => Room::None,
        }
    }

    /// What has come and is not looked at waits in a buffer of its own.
    pub(super) fn tighten(&mut self) {
        self.inlet.tighten();
    }

    /// Charges what has come and is not whole.
    pub(super) fn settle(&mut self) {
        self.inlet.settle();
    }

    /// Sets the time that a frame which has begun has to become whole. Between frames a client may idle; what `waits` for
    /// others and is not read cannot come to its end.
    pub(super) fn set_deadline(&mut self, waits: bool, moved: bool, timeouts: &Timeouts) {
        let after = |limit: Duration| Instant::now().checked_add(limit).map(|due| Box::pin(sleep_until(due)));
        if waits && !self.ended {
            self.deadline = None;
        } else if !moved && self.deadline.is_some() {
            // It is running already.
        } else if self.ended {
            // What it has sent has to be taken in time: nobody else would end this.
            self.deadline = self.deadline.take().or_else(|| timeouts.half_close.and_then(after));
        } else if !self.inlet.is_waiting() {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = after(timeouts.opening);
        }
    }

    /// Ready when a frame should have been whole, or when what came before its end should have been taken.
    pub(super) fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.deadline.as_mut().map_or(Poll::Pending, |deadline| deadline.as_mut().poll(cx))
    }

    /// Ready when nothing has moved for as long as this limit allows. Counts anew if something has `moved`.
    pub(super) fn poll_idle(&mut self, moved: bool, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let Some(idle) = &mut self.idle else { return Poll::Pending };
        if let (true, Some(due)) = (moved, Instant::now().checked_add(limit)) {
            idle.as_mut().reset(due);
        }
        idle.as_mut().poll(cx)
    }

    /// Where the rest of its large frame goes.
    pub(super) fn rest(&self) -> Option<Target> {
        self.rest
    }

    /// It goes there from now on; what was said before.
    pub(super) fn set_rest(&mut self, rest: Option<Target>) -> Option<Target> {
        std::mem::replace(&mut self.rest, rest)
    }

    /// What was going there goes nowhere.
    pub(super) fn divert(&mut self, from: Target) {
        if self.rest == Some(from) {
            self.rest = Some(Target::Nowhere);
        }
    }
}

/// What it is told.
impl Downstream {
    /// Queues bytes, in the middle of the speaker's frame or between frames.
    pub(super) fn push(&mut self, piece: Queued) {
        self.out.push(piece);
    }

    /// Puts a frame of sessile's own aside while there is a speaker; gives it back if there is none.
    pub(super) fn put_aside(&mut self, piece: Queued) -> Option<Queued> {
        if self.speaker.is_none() {
            return Some(piece);
        }
        let account = self.inlet.account();
        self.aside.get_or_insert_with(|| Box::new(Queue::new(account))).push_aside(piece);
        None
    }

    /// A frame that was put aside and may be queued now.
    pub(super) fn next_aside(&mut self) -> Option<Queued> {
        if self.speaker.is_some() {
            return None;
        }
        let next = self.aside.as_mut()?.pop();
        if next.is_none() {
            self.aside = None;
        }
        next
    }

    /// Writes what the client takes; ready when nothing is left, with whether anything moved.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.out.poll_flush(&mut self.socket, cx)
    }

    /// Whether it has taken all that was queued.
    pub(super) fn has_taken_all(&self) -> bool {
        self.out.is_empty() && !self.socket.has_unsent()
    }

    /// Whether nothing is queued.
    pub(super) fn is_clear(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether so much is queued that nothing more is read for it.
    pub(super) fn is_full(&self) -> bool {
        self.out.len() >= QUEUE_BYTES_MAX
    }

    /// Whether it takes so little of what it is told that it may not ask for more: what answers its frames on the spot counts
    /// in its share like everything else.
    pub(super) fn is_unread(&self) -> bool {
        let aside = self.aside.as_ref().map_or(0, |aside| aside.len());
        let owed = self.out.owed().saturating_add(aside);
        let has_room = || owed < QUEUE_BYTES_MAX && self.account().has_room(READ_BYTES_MAX);
        owed >= TOLD_BYTES_FREE && !has_room()
    }

    /// An upstream begins a frame of which only a part is there.
    pub(super) fn begin_frame(&mut self, speaker: At) {
        self.speaker = Some(Box::new(Delay::by(speaker)));
    }

    /// The speaker's frame has ended.
    pub(super) fn end_frame(&mut self) {
        self.speaker = None;
    }

    /// The upstream that is in the middle of a frame.
    pub(super) fn speaker(&self) -> Option<At> {
        self.speaker.as_ref().map(|speaker| speaker.at())
    }

    /// Whether this upstream is in the middle of a frame.
    pub(super) fn hears(&self, at: At) -> bool {
        self.speaker() == Some(at)
    }

    /// Whether this upstream has to wait for the end of another's frame.
    pub(super) fn hears_another(&self, at: At) -> bool {
        self.speaker().is_some_and(|speaker| speaker != at)
    }

    /// For how long others have waited for this upstream's frame, if they have.
    pub(super) fn delay_by(&mut self, at: At) -> Option<&mut Delay> {
        self.speaker.as_deref_mut().filter(|speaker| speaker.at() == at)
    }

    /// The speaker is to blame for what others wait as long as the client has taken what there is.
    pub(super) fn blame_speaker(&mut self) {
        if let Some(speaker) = &mut self.speaker {
            speaker.blame(self.out.is_empty() && !self.socket.has_unsent());
        }
    }
}
