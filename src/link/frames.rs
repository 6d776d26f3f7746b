//! Whole frames, for the conversations that sessile itself holds with a backend.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncRead;

use crate::net;
use crate::wire::{Envelope, Head, Scan};

/// Longest frame taken in an own conversation; most answers have a few hundred bytes, lists of sessions more.
const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A frame that is too long to be taken, while it is read past.
#[derive(Debug)]
pub(super) struct Passing {
    scan: Scan,
    body_left: usize,
}

/// What has come of a conversation in which no frame may end it by its length.
#[derive(Debug)]
pub(super) enum Came {
    /// A body.
    Body(BytesMut),
    /// A body that was too long to be kept: what it said of itself, if that was sound.
    TooLong(Option<Envelope>),
}

/// The next body, or that there was one too long. Cancel-safe: what has been read stays in `unread`, and how far it has
/// come through a long body in `passing`.
///
/// # Errors
/// The socket's, `UnexpectedEof` at its end, `InvalidData` for what is no frame.
pub(super) async fn next_of_any_length<R: AsyncRead + Unpin>(
    reader: &mut R,
    unread: &mut BytesMut,
    passing: &mut Option<Passing>,
) -> io::Result<Came> {
    loop {
        if let Some(mut long) = passing.take() {
            let piece = unread.split_to(long.body_left.min(unread.len()));
            long.scan.feed(&piece);
            long.body_left = long.body_left.saturating_sub(piece.len());
            if long.body_left == 0 {
                return Ok(Came::TooLong(long.scan.finish().ok()));
            }
            *passing = Some(long);
        } else if let Some(head) = head(unread)? {
            if head.frame_bytes() > FRAME_BYTES_MAX {
                unread.advance(head.head_bytes);
                *passing = Some(Passing { scan: Scan::default(), body_left: head.body_bytes });
                continue;
            }
            if unread.len() >= head.frame_bytes() {
                unread.advance(head.head_bytes);
                return Ok(Came::Body(unread.split_to(head.body_bytes)));
            }
        }
        more(reader, unread).await?;
    }
}

/// The body of the next frame. Cancel-safe: what has been read stays in `unread`.
///
/// # Errors
/// The socket's, `UnexpectedEof` at its end, `InvalidData` for what is no frame or too long.
pub(super) async fn next_body<R: AsyncRead + Unpin>(
    reader: &mut R,
    unread: &mut BytesMut,
) -> io::Result<BytesMut> {
    loop {
        if let Some(head) = head(unread)? {
            if head.frame_bytes() > FRAME_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
            }
            if unread.len() >= head.frame_bytes() {
                unread.advance(head.head_bytes);
                return Ok(unread.split_to(head.body_bytes));
            }
        }
        more(reader, unread).await?;
    }
}

fn head(unread: &[u8]) -> io::Result<Option<Head>> {
    Head::read(unread).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))
}

async fn more<R: AsyncRead + Unpin>(reader: &mut R, unread: &mut BytesMut) -> io::Result<()> {
    match net::fill(reader, unread, net::READ_BYTES_MAX).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &str) -> Vec<u8> {
        format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn a_body_too_long_is_passed_over_and_what_follows_is_taken() {
        let long = format!(r#"{{"id":7,"result":{{"x":"{}"}}}}"#, "x".repeat(FRAME_BYTES_MAX));
        let junk = "[".repeat(FRAME_BYTES_MAX);
        let bytes = [frame(&long), frame("{}"), frame(&junk), frame(r#"{"id":8}"#)].concat();
        let (mut reader, mut unread, mut passing) = (bytes.as_slice(), BytesMut::new(), None);
        let mut held = 0;
        let mut said = Vec::new();
        for _ in 0..4 {
            let came = next_of_any_length(&mut reader, &mut unread, &mut passing).await.unwrap();
            held = held.max(unread.capacity());
            said.push(match came {
                Came::Body(body) => String::from_utf8(body.to_vec()).unwrap(),
                Came::TooLong(envelope) => {
                    let id = envelope.and_then(|envelope| envelope.id);
                    format!("long {:?}", id.map(|id| String::from_utf8(id.raw().to_vec()).unwrap()))
                }
            });
        }
        assert_eq!(said, ["long Some(\"7\")", "{}", "long None", r#"{"id":8}"#]);
        assert!(held < 1 << 20, "{held} bytes of it were held");
        let end = next_of_any_length(&mut reader, &mut unread, &mut passing).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }
}
