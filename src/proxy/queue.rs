//! Bytes that a socket has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use crate::net::{Sealed, Stream};

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
                Poll::Ready(written) => self.advance(written?),
                Poll::Pending if moved => return Poll::Ready(Ok(true)),
                Poll::Pending => return Poll::Pending,
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
        Poll::Ready(Ok(moved))
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
            (1, Some(only)) => socket.try_write(only),
            _ => self.with_slices(|slices| socket.try_write_vectored(slices)),
        }
    }

    fn poll_seal(&self, sealed: &mut Sealed, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.with_slices(|slices| Pin::new(sealed).poll_write_vectored(cx, slices))
    }

    fn with_slices<T>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut slices = [IoSlice::new(&[]); SLICES];
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
        }
        write(slices.get(..self.pieces.len().min(SLICES)).unwrap_or_default())
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
