//! Reads and writes whole frames on a socket, for all code that talks with a peer itself: greeting, probes and questions
//! on standing connections, the scout of an opening, the demo's client.
//!
//! [`Pieces`] finds the ends of frames in received bytes, without a socket. On top of it there are three ways to read:
//! [`next_body`] is for a conversation in which each answer is awaited, and a frame that is too long ends it;
//! [`next_envelope`] is for answers of which only the envelope matters, and holds no frame; a [`Reader`] is for a standing
//! connection, which no frame may end by its length. A scout forwards pieces as they come. `proxy/opening/client` and
//! `proxy/inlet` look into a frame before it is whole, to decide about it or refuse it, and so read on their own.

mod pieces;
mod reader;

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::time::{Instant, timeout_at};

use crate::close::By;
use crate::net::{self, READ_BYTES_MAX, Stream};
use crate::wire::{Envelope, Scan};

pub use pieces::{Piece, Pieces};
pub use reader::{Reader, ReceivedBody};

/// Longest frame taken whole; most answers have a few hundred bytes, lists of sessions more.
const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes per read of frames that are not kept: bytes of later frames may be among them.
const LITTLE_BYTES: usize = 4 * 1024;

/// The body of the next frame. Cancel-safe: what has been read stays in `unread`.
///
/// # Errors
/// The socket's, `UnexpectedEof` at its end, `InvalidData` for what is no frame or too long.
pub async fn next_body<R: AsyncRead + Unpin>(reader: &mut R, unread: &mut BytesMut) -> io::Result<BytesMut> {
    loop {
        match Pieces::default().take(unread, FRAME_BYTES_MAX)? {
            Some(piece) if piece.left == 0 && piece.bytes.len() <= FRAME_BYTES_MAX => {
                return Ok(piece.into_body());
            }
            Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long")),
            None => more(reader, unread).await?,
        }
    }
}

/// The envelope of a backend's next frame. Nothing of its body is held, whatever its length, and little of what comes
/// after it. Not cancel-safe: what has been read is lost.
///
/// # Errors
/// The socket's, `UnexpectedEof` at its end, `InvalidData` for what is no frame or no message.
pub async fn next_envelope<R: AsyncRead + Unpin>(
    reader: &mut R,
    unread: &mut BytesMut,
) -> io::Result<Envelope> {
    let (mut pieces, mut scan) = (Pieces::default(), Box::new(Scan::of(By::Backend)));
    loop {
        while let Some(piece) = pieces.take(unread, 0)? {
            scan.feed(piece.body());
            if piece.left == 0 {
                return scan.finish().map_err(|(fault, _)| io::Error::new(io::ErrorKind::InvalidData, fault));
            }
        }
        // Copied out, so that the wait does not keep the larger buffer.
        *unread = BytesMut::from(&**unread);
        some(net::fill(reader, unread, LITTLE_BYTES).await?)?;
    }
}

/// Reads once, appending to `unread`. Cancel-safe.
///
/// # Errors
/// The reader's, `UnexpectedEof` at its end.
async fn more<R: AsyncRead + Unpin>(reader: &mut R, unread: &mut BytesMut) -> io::Result<()> {
    some(net::fill(reader, unread, READ_BYTES_MAX).await?)
}

/// The same for a backend whose frames are passed on, which may wait for the acknowledgement: see `net/quickack`.
/// Cancel-safe.
///
/// # Errors
/// The socket's, `UnexpectedEof` at its end.
pub async fn more_and_ack(stream: &mut Stream, unread: &mut BytesMut) -> io::Result<()> {
    some(net::read_and_ack(By::Backend, stream, unread, READ_BYTES_MAX).await?)
}

fn some(read: usize) -> io::Result<()> {
    if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Sends frames, all of them by `due`.
///
/// # Errors
/// The socket's, `TimedOut` if the peer has not taken them by then.
pub async fn send_by(stream: &mut Stream, frames: &[u8], due: Option<Instant>) -> io::Result<()> {
    match due {
        Some(due) => {
            let sent = timeout_at(due, stream.send(frames)).await;
            sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
        None => stream.send(frames).await,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures_util::FutureExt as _;
    use tokio::io::ReadBuf;

    use super::*;
    use crate::wire::reply;

    /// What has come so far, and nothing more.
    struct Stops<'a>(&'a [u8]);

    impl AsyncRead for Stops<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0.is_empty() { Poll::Pending } else { Pin::new(&mut self.0).poll_read(cx, buf) }
        }
    }

    fn frame(body: &str) -> Vec<u8> {
        reply::frame(body.as_bytes())
    }

    #[test]
    fn of_a_frame_that_only_has_to_say_what_it_is_nothing_is_held() {
        let long = format!(r#"{{"jsonrpc":"2.0","method":"m","params":"{}"}}"#, "x".repeat(3_000_000));
        let bytes =
            [frame(&long), frame(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), vec![b'C'; 60_000]].concat();
        for stops in [7, 100, 2_000_000, 3_000_010] {
            let mut unread = BytesMut::new();
            assert!(next_envelope(&mut Stops(&bytes[..stops]), &mut unread).now_or_never().is_none());
            assert!(unread.capacity() <= 100, "{} bytes are held at {stops}", unread.capacity());
        }
        let (mut reader, mut unread) = (Stops(&bytes), BytesMut::new());
        let mut next = || next_envelope(&mut reader, &mut unread).now_or_never().unwrap().unwrap();
        assert_eq!(next().method.as_deref(), Some("m"));
        assert!(next().is_answer);
        assert!((1..=LITTLE_BYTES).contains(&unread.len()) && unread.capacity() <= LITTLE_BYTES);
    }
}
