//! A standing connection's frames: short ones as they are, long ones counted, or skipped where there is no room.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncRead;

use super::{FRAME_BYTES_MAX, Piece, Pieces, more};
use crate::close::By;
use crate::net::READ_BYTES_MAX;
use crate::runtime::account::{Budget, Charge};
use crate::wire::{Envelope, Scan};

/// Up to this length a frame is read together with what comes before and after it, and not counted.
const SMALL_BYTES_MAX: usize = READ_BYTES_MAX;

/// The frames of a standing connection, which no frame may end by its length.
#[derive(Debug, Default)]
pub struct Reader {
    unread: BytesMut,
    pieces: Pieces,
    /// A long frame of which some has come.
    begun: Option<Begun>,
    /// What long bodies are counted against.
    memory: Option<Arc<Budget>>,
}

#[derive(Debug)]
enum Begun {
    /// It is kept.
    Kept { body: BytesMut, charge: Option<Charge> },
    /// It is too long to be kept: only its envelope is read.
    Passed { scan: Box<Scan> },
}

/// What was received.
#[derive(Debug)]
pub enum ReceivedBody {
    /// A body. A long one is counted for as long as anything of it is held.
    Body(Bytes),
    /// A body that was too long to be kept: its envelope, if that was sound.
    TooLong(Option<Envelope>),
}

/// A body and what it is counted as.
struct Counted {
    body: BytesMut,
    _charge: Charge,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Reader {
    /// Takes long bodies only while there is room for them in `memory`.
    pub fn counted(memory: Arc<Budget>) -> Self {
        Self { memory: Some(memory), ..Self::default() }
    }

    /// Whether everything that was received has been returned.
    pub fn is_empty(&self) -> bool {
        self.unread.is_empty() && self.pieces.left() == 0
    }

    /// The next body, or the envelope of one that was too long. Cancel-safe: what has been read stays here.
    ///
    /// # Errors
    /// The socket's, `UnexpectedEof` at its end, `InvalidData` for what is no frame.
    pub async fn next<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> io::Result<ReceivedBody> {
        loop {
            while let Some(piece) = self.pieces.take(&mut self.unread, SMALL_BYTES_MAX)? {
                if let Some(came) = self.add(piece) {
                    return Ok(came);
                }
            }
            more(reader, &mut self.unread).await?;
        }
    }

    /// The body that this piece completes, if it does.
    fn add(&mut self, piece: Piece) -> Option<ReceivedBody> {
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            None if piece.bytes.len().saturating_add(piece.left) <= SMALL_BYTES_MAX => {
                return Some(ReceivedBody::Body(piece.into_body().freeze()));
            }
            None => self.begin(&piece),
        };
        match &mut begun {
            Begun::Kept { body, .. } => body.extend_from_slice(piece.body()),
            Begun::Passed { scan } => scan.feed(piece.body()),
        }
        if piece.left > 0 {
            self.begun = Some(begun);
            return None;
        }
        Some(match begun {
            Begun::Kept { body, charge: None } => ReceivedBody::Body(body.freeze()),
            Begun::Kept { body, charge: Some(charge) } => {
                ReceivedBody::Body(Bytes::from_owner(Counted { body, _charge: charge }))
            }
            Begun::Passed { scan } => ReceivedBody::TooLong(scan.finish().ok()),
        })
    }

    /// Begins with the long frame of which this is the first piece.
    fn begin(&self, first: &Piece) -> Begun {
        let body_bytes = first.body().len().saturating_add(first.left);
        let charge = match &self.memory {
            Some(memory) => {
                let mut charge = memory.charge();
                charge.resize(body_bytes).then_some(Some(charge))
            }
            None => Some(None),
        };
        match charge.filter(|_| first.head_bytes.saturating_add(body_bytes) <= FRAME_BYTES_MAX) {
            Some(charge) => Begun::Kept { body: BytesMut::with_capacity(body_bytes), charge },
            None => Begun::Passed { scan: Box::new(Scan::of(By::Backend)) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply;

    fn frame(body: &str) -> Vec<u8> {
        reply::frame(body.as_bytes())
    }

    /// What `bytes` are, in a few words, and the most that was held of them.
    async fn told(mut frames: Reader, bytes: Vec<u8>, count: usize) -> (Vec<String>, usize) {
        let mut reader = bytes.as_slice();
        let mut held = 0;
        let mut said = Vec::new();
        for _ in 0..count {
            let came = frames.next(&mut reader).await.unwrap();
            held = held.max(frames.unread.capacity());
            said.push(match came {
                ReceivedBody::Body(body) if body.len() > 100 => format!("{} bytes", body.len()),
                ReceivedBody::Body(body) => String::from_utf8(body.to_vec()).unwrap(),
                ReceivedBody::TooLong(envelope) => {
                    let id = envelope.and_then(|envelope| envelope.id);
                    format!("long {:?}", id.map(|id| String::from_utf8(id.raw().to_vec()).unwrap()))
                }
            });
        }
        let end = frames.next(&mut reader).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        (said, held)
    }

    #[tokio::test]
    async fn a_body_too_long_is_passed_over_and_what_follows_is_taken() {
        let long =
            format!(r#"{{"jsonrpc":"2.0","id":7,"result":{{"x":"{}"}}}}"#, "x".repeat(FRAME_BYTES_MAX));
        let junk = "[".repeat(FRAME_BYTES_MAX);
        let bytes = [frame(&long), frame("{}"), frame(&junk), frame(r#"{"id":8}"#)].concat();
        let (said, held) = told(Reader::default(), bytes, 4).await;
        assert_eq!(said, ["long Some(\"7\")", "{}", "long None", r#"{"id":8}"#]);
        assert!(held < 1 << 20, "{held} bytes of it were held");
    }

    #[tokio::test]
    async fn long_bodies_are_counted_while_they_are_held_and_passed_over_without_room() {
        let budget = Budget::for_tests(0, Some(1_000_000));
        let mut other = budget.charge();
        assert!(other.resize(500_000));
        let body = |bytes: usize| format!(r#"{{"jsonrpc":"2.0","id":1,"result":"{}"}}"#, "x".repeat(bytes));
        let bytes = [frame(&body(300_000)), frame("{}"), frame(&body(600_000)), frame("{}")].concat();
        let (said, _) = told(Reader::counted(Arc::clone(&budget)), bytes, 4).await;
        assert_eq!(said, ["300036 bytes", "{}", "long Some(\"1\")", "{}"]);
        let bytes = frame(&body(400_000));
        let mut frames = Reader::counted(Arc::clone(&budget));
        let ReceivedBody::Body(whole) = frames.next(&mut bytes.as_slice()).await.unwrap() else {
            panic!("too long")
        };
        let part = whole.slice(10..20);
        drop((whole, frames));
        let free = |bytes| budget.charge().resize(bytes);
        assert!(!free(200_000), "a part of it keeps it");
        drop(part);
        assert!(free(200_000));
    }
}
