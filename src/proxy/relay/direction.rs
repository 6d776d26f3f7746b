//! One direction of a relay: what it sends before it reads, who looks on, and who counts.
//!
//! A side may be sealed by TLS; then what rustls still holds is seen off before anything more is read. Bytes count when
//! the other side's kernel has them, so the counts are right however the connection ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::splice::{Pipe, Spliced};
use super::tap::{Tap, Tapped};
use crate::close::By;
use crate::fleet::Backend;
use crate::metrics::{BackendSeries, Record};
use crate::net::{self, Stream};
use crate::runtime::account::{Charge, Held};

/// Reads in a row that fill the lent buffer before a direction counts as bulky.
const FULL_READS: u8 = 2;

/// Bytes that a direction may move before others of its thread have their turn.
const TURN_BYTES: u32 = 1024 * 1024;

type Taps<'a> = Vec<Box<dyn Tap + 'a>>;

/// One direction.
pub struct Direction<'a> {
    /// To be sent before anything more is read. Boxed, as the pipe and the taps are: most of the time there are none.
    left: Option<Box<Left>>,
    /// Look at the bytes that follow, if anything does.
    taps: Option<Box<Taps<'a>>>,
    from: By,
    /// Holds bytes, or is about to: nothing may overtake them.
    pipe: Option<Box<Pipe>>,
    full_reads: u8,
    /// Moved since the last time of asking, and in this turn.
    moved: bool,
    turn: u32,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// The end has been read and is still to be passed on.
    Ending,
    Over,
}

/// Bytes to be sent: those of an opening, which are counted as it was, or what was read at once and not taken, which is
/// bounded by that.
#[derive(Debug)]
pub struct Left {
    bytes: Bytes,
    _charge: Option<Charge>,
}

impl From<Bytes> for Left {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, _charge: None }
    }
}

impl From<Held<Bytes>> for Left {
    fn from(held: Held<Bytes>) -> Self {
        let (bytes, charge) = held.into_parts();
        Self { bytes, _charge: Some(charge) }
    }
}

/// Who fails a direction.
pub enum RelayFault {
    /// The side that is read.
    Read(io::Error),
    /// The side that is written.
    Write(io::Error),
    /// The side that is read sent what must not be passed on.
    Malformed,
}

impl<'a> Direction<'a> {
    /// What comes from this side, of which `first` is at hand.
    pub fn new(from: By, first: impl Into<Left>) -> Self {
        let first = first.into();
        let left = (!first.bytes.is_empty()).then(|| Box::new(first));
        let stage = Stage::Open;
        Self { left, taps: None, from, pipe: None, full_reads: 0, moved: false, turn: 0, stage }
    }

    /// Lets `tap` look at everything, from what is at hand on.
    pub fn tap(&mut self, mut tap: impl Tap + 'a) {
        let left = self.left.as_deref().map_or(&[][..], |left| &left.bytes);
        if tap.look(left) == Tapped::More {
            self.tap_rest(tap);
        }
    }

    /// Lets `tap` look at everything behind what is at hand.
    pub fn tap_rest(&mut self, tap: impl Tap + 'a) {
        self.taps.get_or_insert_default().push(Box::new(tap));
    }

    /// Whether its end has been passed on.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether bytes have moved since the last time of asking.
    pub fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Moves what can be moved now. Ready once: at the end, passed on if `passes_end`.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        passes_end: bool,
        tally: Tally<'_>,
    ) -> Poll<Result<(), RelayFault>> {
        if self.stage == Stage::Over {
            return Poll::Pending;
        }
        self.turn = 0;
        loop {
            if self.turn >= TURN_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            while let Some(left) = &mut self.left {
                let written =
                    ready!(Pin::new(&mut *to).poll_write(cx, &left.bytes)).map_err(RelayFault::Write)?;
                if written == 0 {
                    return Poll::Ready(Err(RelayFault::Write(io::ErrorKind::WriteZero.into())));
                }
                left.bytes.advance(written);
                if left.bytes.is_empty() {
                    self.left = None;
                }
                self.passed(written, tally);
            }
            if to.has_unsent() {
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(RelayFault::Write)?;
            }
            if self.pipe.is_some() {
                ready!(self.poll_pipe(cx, from, to, tally))?;
            } else if self.stage == Stage::Open {
                ready!(self.poll_copy(cx, from, to, tally))?;
            }
            if self.stage == Stage::Ending && self.left.is_none() {
                if passes_end && Pin::new(&mut *to).poll_shutdown(cx).is_pending() {
                    return Poll::Pending;
                }
                // A peer that is gone already has no use for a FIN, so how that went does not matter.
                self.stage = Stage::Over;
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Reads once and writes it at once; what is not taken is left.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        tally: Tally<'_>,
    ) -> Poll<Result<(), RelayFault>> {
        net::lend(|buffer| {
            let room = buffer.len();
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *from).poll_read(cx, &mut read)).map_err(RelayFault::Read)?;
            let bytes = read.filled();
            if bytes.is_empty() {
                self.stage = Stage::Ending;
                return Poll::Ready(Ok(()));
            }
            net::acknowledge_read(self.from, from, bytes);
            self.tapped(bytes)?;
            let written = match Pin::new(&mut *to).poll_write(cx, bytes) {
                Poll::Ready(written) => written.map_err(RelayFault::Write)?,
                Poll::Pending => 0,
            };
            self.passed(written, tally);
            let left = bytes.get(written..).unwrap_or_default();
            if !left.is_empty() {
                self.left = Some(Box::new(Bytes::copy_from_slice(left).into()));
            }
            self.full_reads = if bytes.len() == room { self.full_reads.saturating_add(1) } else { 0 };
            let plain = matches!((&*from, &*to), (Stream::Plain(_), Stream::Plain(_)));
            if plain && self.full_reads >= FULL_READS && self.taps.is_none() {
                self.pipe = Pipe::borrow().map(Box::new);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Moves bytes through the pipe for as long as there are many; the pipe is given back when there are none.
    fn poll_pipe(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
        tally: Tally<'_>,
    ) -> Poll<Result<(), RelayFault>> {
        let Some(mut pipe) = self.pipe.take() else { return Poll::Ready(Ok(())) };
        while self.turn < TURN_BYTES {
            match pipe.poll_drain(cx, to.socket()) {
                Poll::Ready(Ok(0)) => {}
                Poll::Ready(Ok(drained)) => {
                    self.passed(drained, tally);
                    continue;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(RelayFault::Write(error))),
                Poll::Pending => {
                    self.pipe = Some(pipe);
                    return Poll::Pending;
                }
            }
            match pipe.fill(from.socket()).map_err(RelayFault::Read)? {
                Spliced::Some => {}
                Spliced::Nothing => {
                    // One more full read, and it is bulky again.
                    self.full_reads = FULL_READS.saturating_sub(1);
                    pipe.give_back();
                    return Poll::Ready(Ok(()));
                }
                Spliced::End => {
                    self.stage = Stage::Ending;
                    pipe.give_back();
                    return Poll::Ready(Ok(()));
                }
            }
        }
        self.pipe = Some(pipe);
        Poll::Ready(Ok(()))
    }

    fn tapped(&mut self, bytes: &[u8]) -> Result<(), RelayFault> {
        let Some(taps) = &mut self.taps else { return Ok(()) };
        let mut sound = true;
        taps.retain_mut(|tap| {
            let tapped = tap.look(bytes);
            sound &= tapped != Tapped::Fault;
            tapped == Tapped::More
        });
        if taps.is_empty() {
            self.taps = None;
        }
        if sound { Ok(()) } else { Err(RelayFault::Malformed) }
    }

    fn passed(&mut self, bytes: usize, tally: Tally<'_>) {
        self.moved |= bytes > 0;
        self.turn = self.turn.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        tally.add(self.from, bytes);
    }
}

/// Where carried bytes are counted.
#[derive(Clone, Copy)]
pub struct Tally<'a> {
    record: &'a Record,
    series: &'a BackendSeries,
}

impl<'a> Tally<'a> {
    /// Of a connection to `backend`.
    pub fn new(record: &'a Record, backend: &'a Backend) -> Self {
        Self { record, series: backend.series() }
    }

    fn add(self, from: By, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if from == By::Client {
            self.record.add_to_backend(bytes);
            self.series.bytes_to_backend.inc_by(bytes);
        } else {
            self.record.add_to_client(bytes);
            self.series.bytes_to_client.inc_by(bytes);
        }
    }
}
