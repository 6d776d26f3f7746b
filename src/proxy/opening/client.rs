//! The client's side of an opening: bytes in, whole frames out, within bounds of bytes and time.
//!
//! Between frames nothing is held: a client may idle there for hours. A frame that has begun must be whole within
//! `timeouts.opening`. The one frame that may be larger than `limits.opening_bytes` is one that names its session early;
//! it is given out in part, and its scan goes with it.
//!
//! It does not read by `frames`: a frame is looked into before it is whole, so that one that is faulty or too much is refused
//! at once and by its id, and the buffer is what the account of the client is charged for.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::{Instant, timeout_at};

use crate::close::{At, By, Close, Why};
use crate::config::Limits;
use crate::frames::send_by;
use crate::link::StateFrame;
use crate::net::{self, Stream};
use crate::proxy::inlet;
use crate::proxy::relay::tap::Rest;
use crate::runtime::account::{Account, Charge, FREE_BYTES, Held, Owns};
use crate::wire::{Envelope, Head, Id, Scan, envelope, frame};

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 16 * 1024;
/// Bytes that an opening may read though `limits.opening_memory` is used up: a refusal needs an id.
const SPARE_BYTES: usize = 1024;
const NO_MEMORY: &str = "limits.opening_memory is used up by what connections hold";

/// The client's socket and what came from it.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    unread: BytesMut,
    /// For `unread`. What else its account holds is kept elsewhere on this client's behalf.
    charge: Charge,
    begun: Option<Begun>,
    /// By when the frame that has begun (or the first of all) must be whole.
    due: Option<Instant>,
    patience: Duration,
    limits: Limits,
}

/// A frame whose head is there.
#[derive(Debug)]
struct Begun {
    head: Head,
    scan: Scan,
    /// Body bytes scanned.
    scanned: usize,
}

/// What came from the client.
#[derive(Debug)]
pub struct Frame {
    /// Head and body, or their beginning if `rest` says so.
    pub bytes: Held<Bytes>,
    /// Where in `bytes` the body begins.
    pub body_at: usize,
    /// The envelope; of a partial frame, what is known so far.
    pub envelope: Envelope,
    /// What is still to come of a partial frame.
    pub rest: Option<Box<Rest>>,
}

impl Frame {
    /// The frame that is sent in place of a request, if one is to be.
    pub fn instead(request: &Envelope, account: &Account) -> Option<Self> {
        Some(Self::own(inlet::Frame::instead(request)?, account))
    }

    /// A state frame as the client sent it, to be sent again.
    pub fn of_state(state: &StateFrame, account: &Account) -> Self {
        Self::own(inlet::Frame::of_state(state), account)
    }

    /// A frame of sessile's own making.
    fn own(frame: inlet::Frame, account: &Account) -> Self {
        let inlet::Frame { bytes, body_at, envelope, .. } = frame;
        let held = bytes.len();
        Self { bytes: account.hold_anyway(bytes, held), body_at, envelope, rest: None }
    }
}

/// Why there is no next frame.
#[derive(Debug)]
pub enum OpeningFault {
    /// FIN.
    End,
    /// The socket failed.
    Io(io::Error),
    /// The first or a begun frame was not whole in time; the id, if it is known.
    Timeout(Option<Id>),
    /// A bound was met; the id, if it is known.
    Limit(&'static str, Option<Id>),
    /// No frame.
    Head(frame::HeadFault),
    /// No request.
    Body(envelope::BodyFault, Option<Id>),
}

impl OpeningFault {
    /// How the connection ends because of it.
    pub fn close(&self) -> Close {
        let (by, why) = match self {
            Self::End => (By::Client, Why::Fin),
            Self::Io(error) => return Close::io(By::Client, At::Opening, error),
            Self::Timeout(_) => (By::Client, Why::Timeout),
            Self::Limit(..) => (By::Balancer, Why::Limit),
            Self::Head(_) | Self::Body(..) => (By::Client, Why::Malformed),
        };
        Close::new(by, At::Opening, why)
    }
}

impl Client {
    /// A client that has sent nothing; its first frame is due within `patience`.
    pub fn new(stream: Stream, account: &Account, limits: Limits, patience: Duration) -> Self {
        let due = Instant::now().checked_add(patience);
        let (unread, charge) = (BytesMut::new(), account.charge());
        Self { stream, unread, charge, begun: None, due, patience, limits }
    }

    /// The next frame must be whole within `patience`, if that is sooner.
    pub fn hurry(&mut self, patience: Duration) {
        self.due = self.due.min(Instant::now().checked_add(patience));
    }

    /// The next frame. Cancel-safe.
    ///
    /// # Errors
    /// See [`OpeningFault`].
    pub async fn frame(&mut self) -> Result<Frame, OpeningFault> {
        loop {
            if let Some(frame) = self.complete()? {
                return Ok(frame);
            }
            // Only now, because what has come may hold the id that a refusal needs; and what may do so is always taken.
            if let Err(fault) = self.account()
                && self.unread.len() >= SPARE_BYTES
            {
                return Err(fault);
            }
            match self.due {
                Some(due) => match timeout_at(due, self.fill()).await {
                    Ok(filled) => filled?,
                    Err(_) => return Err(OpeningFault::Timeout(self.begun_id())),
                },
                None => self.fill().await?,
            }
            if self.due.is_none() {
                self.due = Instant::now().checked_add(self.patience);
            }
        }
    }

    /// Reads what is there.
    async fn fill(&mut self) -> Result<(), OpeningFault> {
        let held = self.unread.len();
        let wanted = self
            .begun
            .as_ref()
            .map_or(READ_BYTES, |begun| begun.head.frame_bytes().saturating_sub(held).clamp(1, READ_BYTES));
        let read = net::read_and_ack(By::Client, &mut self.stream, &mut self.unread, wanted)
            .await
            .map_err(OpeningFault::Io)?;
        if self.unread.len() <= FREE_BYTES && self.unread.capacity() > FREE_BYTES {
            // Spare room in the buffer is charged too: without this, a small frame might exceed what is always granted.
            self.unread = BytesMut::from(&*self.unread);
        }
        if read == 0 { Err(OpeningFault::End) } else { Ok(()) }
    }

    /// The frame at the front of `unread`, if it is whole or as long as a partial one may get.
    fn complete(&mut self) -> Result<Option<Frame>, OpeningFault> {
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            None => match Head::read(&self.unread).map_err(OpeningFault::Head)? {
                Some(head) => Begun { head, scan: Scan::default(), scanned: 0 },
                None => {
                    self.relax();
                    return Ok(None);
                }
            },
        };
        let body = self.unread.get(begun.head.head_bytes..).unwrap_or_default();
        let body = body.get(..begun.head.body_bytes.min(body.len())).unwrap_or_default();
        begun.scan.feed(body.get(begun.scanned..).unwrap_or_default());
        begun.scanned = body.len();
        let left = begun.head.body_bytes.saturating_sub(begun.scanned);
        if left == 0 {
            let envelope = begun.scan.finish().map_err(|(fault, id)| OpeningFault::Body(fault, id))?;
            return Ok(Some(self.take(begun.head, envelope, None)));
        }
        if let Some(fault) = begun.scan.fault() {
            return Err(OpeningFault::Body(fault, begun.scan.finish().err().and_then(|(_, id)| id)));
        }
        if self.unread.len().saturating_add(self.kept()) < self.limits.opening_bytes {
            self.begun = Some(begun);
            return Ok(None);
        }
        let envelope = begun.scan.so_far().clone();
        if envelope.session == envelope::Field::Absent || envelope.method.is_none() {
            let message = "no session ID within limits.opening_bytes of the frame";
            return Err(OpeningFault::Limit(message, envelope.id));
        }
        let rest = Box::new(Rest { decided: envelope.clone(), scan: begun.scan, bytes: left });
        Ok(Some(self.take(begun.head, envelope, Some(rest))))
    }

    fn take(&mut self, head: Head, envelope: Envelope, rest: Option<Box<Rest>>) -> Frame {
        let bytes = self.split(head.frame_bytes().min(self.unread.len()));
        self.charge.force(self.unread.capacity().saturating_add(bytes.len()));
        let charge = self.charge.split(bytes.len());
        let bytes = Held::of(bytes, charge);
        self.due = if self.unread.is_empty() { None } else { Instant::now().checked_add(self.patience) };
        self.relax();
        Frame { bytes, body_at: head.head_bytes, envelope, rest }
    }

    /// Takes bytes from the front. Neither part keeps the room of the other: the smaller one is copied.
    fn split(&mut self, bytes: usize) -> Bytes {
        let (front, rest) = self.unread.split_at(bytes.min(self.unread.len()));
        if front.len() < rest.len() {
            let front = Bytes::copy_from_slice(front);
            self.unread.advance(front.len());
            return front;
        }
        let rest = BytesMut::from(rest);
        self.unread.truncate(bytes);
        std::mem::replace(&mut self.unread, rest).freeze()
    }

    /// Gives memory back while nothing is begun.
    fn relax(&mut self) {
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
            self.charge.force(0);
            self.charge.tell();
        }
    }

    fn account(&mut self) -> Result<(), OpeningFault> {
        if self.charge.resize(self.unread.capacity()) {
            self.charge.tell();
            return Ok(());
        }
        Err(OpeningFault::Limit(NO_MEMORY, self.begun_id()))
    }

    /// The id of the frame that has begun, as far as it is known.
    fn begun_id(&self) -> Option<Id> {
        self.begun.as_ref().and_then(|begun| begun.scan.so_far().id.clone())
    }

    /// What the connection holds.
    pub fn held_by(&self) -> &Account {
        self.charge.account()
    }

    /// Bytes that are not in `unread`: state frames, frames held back.
    fn kept(&self) -> usize {
        self.held_by().bytes().saturating_sub(self.charge.bytes())
    }

    /// Counts a frame that is kept, and the id that is owed an answer, for what they take beside its bytes.
    ///
    /// # Errors
    /// [`OpeningFault::Limit`] if the opening or all openings hold too much then.
    pub fn keep(&mut self, id: Option<&Id>) -> Result<Charge, OpeningFault> {
        let id = id.map_or(0, |id| id.owns().saturating_add(size_of::<Id>()));
        let mut charge = self.held_by().charge();
        if !charge.resize(id.saturating_add(size_of::<Held<Bytes>>())) {
            return Err(OpeningFault::Limit(NO_MEMORY, None));
        }
        if self.kept() > self.limits.opening_bytes {
            return Err(OpeningFault::Limit("the opening holds more than limits.opening_bytes", None));
        }
        Ok(charge)
    }

    /// Room left for frames that must wait.
    pub fn room(&self) -> usize {
        self.limits.opening_bytes.saturating_sub(self.kept())
    }

    /// Sends bytes to the client, within the time a frame may take.
    ///
    /// # Errors
    /// The close that a client means that is gone or does not read.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Close> {
        let close = |error: &io::Error| Close::io(By::Client, At::Opening, error);
        let due = Instant::now().checked_add(self.patience);
        send_by(&mut self.stream, bytes, due).await.map_err(|error| close(&error))
    }

    /// The socket and the bytes not yet used, the opening being over.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.unread)
    }
}
