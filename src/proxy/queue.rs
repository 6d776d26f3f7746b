//! Bytes that a socket has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::net::TcpStream;

/// Pieces written with one call.
const SLICES: usize = 16;

/// A queue in front of a socket. What fills it looks at [`len`](Queue::len) first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    pub(super) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes = self.bytes.saturating_add(piece.len());
            self.pieces.push_back(piece);
        }
    }

    /// The oldest piece, to go another way.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.bytes = self.bytes.saturating_sub(piece.len());
        Some(piece)
    }

    /// Bytes waiting.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes what the socket takes; ready when nothing is left, with whether anything moved.
    pub(super) fn poll_flush(&mut self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut moved = false;
        while !self.is_empty() {
            if stream.poll_write_ready(cx)?.is_pending() {
                return if moved { Poll::Ready(Ok(true)) } else { Poll::Pending };
            }
            match self.write(stream) {
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            moved = true;
        }
        // An idle connection holds no memory for what it once had to say.
        if self.pieces.capacity() > SLICES {
            self.pieces = VecDeque::new();
        }
        Poll::Ready(Ok(moved))
    }

    /// One call; the plain one for the usual single piece, which the kernel makes less of.
    fn write(&self, stream: &TcpStream) -> io::Result<usize> {
        if let (1, Some(only)) = (self.pieces.len(), self.pieces.front()) {
            return stream.try_write(only);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
        }
        stream.try_write_vectored(slices.get(..self.pieces.len().min(SLICES)).unwrap_or_default())
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes = self.bytes.saturating_sub(written);
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > written {
                piece.advance(written);
                return;
            }
            written = written.saturating_sub(piece.len());
            self.pieces.pop_front();
        }
    }
}
