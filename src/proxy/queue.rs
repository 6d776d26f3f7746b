//! Bytes that a socket has not taken yet.
//!
//! A piece is often a slice of a buffer that holds others as well, or has grown to twice of what it holds. So what has to wait
//! is copied aside, however long it is. Then what the queue is charged is what it takes, until the last byte of a piece has gone.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use crate::net::{READ_BYTES_MAX, SEALED_BYTES_MAX, Sealed, Stream};
use crate::runtime::account::{Account, Charge, allocated};

/// Pieces written with one call.
const SLICES: usize = 16;
/// What has to wait is put together to pieces of about so many bytes.
const TOGETHER_BYTES: usize = 32 * 1024;

/// Bytes to be written, and who counts them.
#[derive(Debug)]
pub(super) struct Queued {
    bytes: Bytes,
    counted: Counted,
}

#[derive(Debug)]
enum Counted {
    /// The queue that it is in: so much is allocated for it, as far as is known.
    Here(usize),
    /// Somebody else, for as long as these are the bytes that are held.
    Elsewhere { _charge: Option<Charge> },
}

impl Queued {
    /// Bytes that are counted already, by `charge` or by what holds them. They are never copied.
    pub(super) fn counted(bytes: Bytes, charge: Option<Charge>) -> Self {
        Self { bytes, counted: Counted::Elsewhere { _charge: charge } }
    }

    /// How many bytes are left of it.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn is_counted_here(&self) -> bool {
        matches!(self.counted, Counted::Here(_))
    }

    /// What the queue is charged for it.
    fn takes(&self) -> usize {
        match self.counted {
            Counted::Here(allocated) => allocated.saturating_add(size_of::<Self>()),
            Counted::Elsewhere { .. } => 0,
        }
    }
}

impl From<Bytes> for Queued {
    fn from(bytes: Bytes) -> Self {
        let counted = Counted::Here(allocated(bytes.len()));
        Self { bytes, counted }
    }
}

impl From<Vec<u8>> for Queued {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

/// A queue in front of a socket. What fills it looks at [`len`](Queue::len) first.
#[derive(Debug)]
pub(super) struct Queue {
    pieces: VecDeque<Queued>,
    bytes: usize,
    /// How many of the last pieces may be slices of larger buffers.
    loose: usize,
    /// What TLS has taken since the socket last had everything.
    sealed: usize,
    charge: Charge,
}

impl Queue {
    /// An empty one.
    pub(super) fn new(account: &Account) -> Self {
        Self { pieces: VecDeque::new(), bytes: 0, loose: 0, sealed: 0, charge: account.charge() }
    }

    pub(super) fn push(&mut self, piece: impl Into<Queued>) {
        let piece = piece.into();
        if piece.len() > 0 {
            self.bytes = self.bytes.saturating_add(piece.len());
            self.charge.force(self.charge.bytes().saturating_add(piece.takes()));
            self.pieces.push_back(piece);
            self.loose = self.loose.saturating_add(1);
        }
    }

    /// The same with what will not be written for a while.
    pub(super) fn push_aside(&mut self, piece: impl Into<Queued>) {
        self.push(piece);
        self.tighten();
    }

    /// The oldest piece, to go another way.
    pub(super) fn pop(&mut self) -> Option<Queued> {
        let piece = self.pieces.pop_front()?;
        self.bytes = self.bytes.saturating_sub(piece.len());
        self.discharge(piece.takes());
        self.loose = self.loose.min(self.pieces.len());
        Some(piece)
    }

    /// Bytes waiting.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Bytes that the peer has not taken, those that are sealed already among them.
    pub(super) fn owed(&self) -> usize {
        self.bytes.saturating_add(self.unsent())
    }

    /// What TLS may hold of it.
    fn unsent(&self) -> usize {
        self.sealed.min(SEALED_BYTES_MAX)
    }

    /// Charges what TLS holds.
    fn settle_sealed(&mut self, stream: &Stream, sealed: usize) {
        let before = self.unsent();
        self.sealed = if stream.has_unsent() { self.sealed.saturating_add(sealed) } else { 0 };
        let charged = self.charge.bytes().saturating_sub(before).saturating_add(self.unsent());
        self.charge.force(charged);
    }

    /// Whether more may be queued: up to `bytes_max`, and a part of that however much others hold.
    pub(super) fn has_room(&self, bytes_max: usize) -> bool {
        self.bytes < bytes_max
            && (self.bytes < bytes_max / 4 || self.charge.account().has_room(READ_BYTES_MAX))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes what the peer takes; ready when nothing is left, with whether anything moved.
    pub(super) fn poll_flush(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut moved = false;
        loop {
            let written = match stream {
                _ if self.is_empty() => break,
                Stream::Plain(socket) => self.poll_write(socket, cx),
                Stream::Sealed(sealed) => self.poll_seal(sealed, cx),
            };
            match written {
                Poll::Ready(written) => {
                    let written = written?;
                    self.advance(written);
                    self.settle_sealed(stream, written);
                }
                Poll::Pending => {
                    self.tighten();
                    return if moved { Poll::Ready(Ok(true)) } else { Poll::Pending };
                }
            }
            moved = true;
        }
        // An idle connection holds no memory for what it once had to say.
        self.pieces = VecDeque::new();
        if let Stream::Sealed(sealed) = stream
            && Pin::new(&mut **sealed).poll_flush(cx)?.is_pending()
            && !moved
        {
            return Poll::Pending;
        }
        self.settle_sealed(stream, 0);
        Poll::Ready(Ok(moved))
    }

    /// Copies the pieces that may be slices of larger buffers into buffers of their own, neighbours together.
    fn tighten(&mut self) {
        if self.loose == 0 {
            return;
        }
        let tight = self.pieces.len().saturating_sub(self.loose);
        let mut loose = self.pieces.split_off(tight).into_iter().peekable();
        while let Some(piece) = loose.next() {
            if !piece.is_counted_here() {
                self.pieces.push_back(piece);
                continue;
            }
            let (mut bytes, mut together) = (piece.len(), vec![piece]);
            while let Some(next) = loose
                .next_if(|next| next.is_counted_here() && bytes.saturating_add(next.len()) <= TOGETHER_BYTES)
            {
                bytes = bytes.saturating_add(next.len());
                together.push(next);
            }
            let mut copy = Vec::with_capacity(bytes);
            for piece in together {
                copy.extend_from_slice(&piece.bytes);
            }
            self.pieces.push_back(copy.into());
        }
        self.loose = 0;
        self.pieces.shrink_to(self.pieces.len().saturating_mul(2));
        let takes = self.pieces.iter().map(Queued::takes).fold(self.unsent(), usize::saturating_add);
        self.charge.force(takes);
    }

    fn poll_write(&self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match self.write(socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// One call; the plain one for the usual single piece, which the kernel makes less of.
    fn write(&self, socket: &TcpStream) -> io::Result<usize> {
        match (self.pieces.len(), self.pieces.front()) {
            (1, Some(only)) => socket.try_write(&only.bytes),
            _ => self.with_slices(|slices| socket.try_write_vectored(slices)),
        }
    }

    fn poll_seal(&self, sealed: &mut Sealed, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.with_slices(|slices| Pin::new(sealed).poll_write_vectored(cx, slices))
    }

    fn with_slices<T>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut slices = [IoSlice::new(&[]); SLICES];
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(&piece.bytes);
        }
        write(slices.get(..self.pieces.len().min(SLICES)).unwrap_or_default())
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes = self.bytes.saturating_sub(written);
        let mut takes: usize = 0;
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > written {
                piece.bytes.advance(written);
                break;
            }
            written = written.saturating_sub(piece.len());
            takes = takes.saturating_add(piece.takes());
            self.pieces.pop_front();
        }
        self.loose = self.loose.min(self.pieces.len());
        self.discharge(takes);
    }

    fn discharge(&mut self, bytes: usize) {
        self.charge.force(self.charge.bytes().saturating_sub(bytes));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::account::Budget;
    use proptest::prelude::*;

    fn budget() -> Arc<Budget> {
        Budget::for_tests(0, None)
    }

    /// A slice of so many bytes of a buffer that holds more; it is unique as soon as nothing of the buffer is held.
    fn slice(bytes: usize) -> (Bytes, Bytes) {
        let buffer = Bytes::from(vec![7; bytes.saturating_add(60_000)]);
        (buffer.slice(..bytes), buffer)
    }

    #[test]
    fn what_waits_holds_no_buffer_but_its_own() {
        let account = budget().account();
        let mut queue = Queue::new(&account);
        let buffers: Vec<Bytes> = [100, 20, 60_000, 500]
            .map(|bytes| {
                let (piece, buffer) = slice(bytes);
                queue.push(piece);
                buffer
            })
            .into();
        queue.tighten();
        assert!(buffers.iter().all(Bytes::is_unique));
        assert_eq!((queue.pieces.len(), queue.len()), (3, 100 + 20 + 60_000 + 500));
        let takes = [120, 60_000, 500].map(|bytes| allocated(bytes) + size_of::<Queued>());
        assert_eq!(account.bytes(), takes.iter().sum::<usize>());
        queue.advance(50_000);
        assert_eq!(account.bytes(), takes[1] + takes[2], "a buffer stays as long as a byte of it");
        queue.advance(queue.len() - 1);
        assert_eq!(account.bytes(), takes[2]);
        let (piece, buffer) = slice(9);
        queue.push_aside(piece);
        assert!(buffer.is_unique());
        // What somebody else counts stays as it is: they may wait for it to be gone.
        let (piece, buffer) = slice(9);
        let before = account.bytes();
        queue.push_aside(Queued::counted(piece, None));
        assert!(!buffer.is_unique());
        assert_eq!(account.bytes(), before);
        drop(queue);
        assert_eq!(account.bytes(), 0);
    }

    proptest! {
        #[test]
        fn the_bytes_stay_in_order_and_are_charged(
            steps in prop::collection::vec((0u8..5, 0usize..70_000), 1..40),
        ) {
            let account = budget().account();
            let (mut queue, mut model, mut next) = (Queue::new(&account), Vec::new(), 0u8);
            for (what, bytes) in steps {
                match what {
                    0 | 1 => {
                        next = next.wrapping_add(1);
                        let piece = Bytes::from(vec![next; bytes]);
                        model.extend_from_slice(&piece);
                        if what == 0 { queue.push(piece) } else { queue.push(Queued::counted(piece, None)) }
                    }
                    2 => queue.tighten(),
                    3 => {
                        let written = bytes.min(queue.len());
                        queue.advance(written);
                        model.drain(..written);
                    }
                    _ => if let Some(piece) = queue.pop() {
                        prop_assert_eq!(&piece.bytes[..], &model[..piece.len()]);
                        model.drain(..piece.len());
                    }
                }
                let all: Vec<u8> = queue.pieces.iter().flat_map(|piece| piece.bytes.iter().copied()).collect();
                prop_assert!(all == model && queue.len() == all.len());
                prop_assert_eq!(account.bytes(), queue.pieces.iter().map(Queued::takes).sum::<usize>());
            }
            drop(queue);
            prop_assert_eq!(account.bytes(), 0);
        }
    }
}
