//! Whole frames, for the conversations that sessile itself holds with a backend.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::wire::Head;

/// Longest frame taken in an own conversation; answers have a few hundred bytes.
const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The body of the next frame. Cancel-safe: what has been read stays in `unread`.
///
/// # Errors
/// The socket's, `UnexpectedEof` at its end, `InvalidData` for what is no frame or too long.
pub(super) async fn next_body<R: AsyncRead + Unpin>(
    reader: &mut R,
    unread: &mut BytesMut,
) -> io::Result<BytesMut> {
    loop {
        let head = Head::read(unread).map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
        if let Some(head) = head {
            if head.frame_bytes() > FRAME_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
            }
            if unread.len() >= head.frame_bytes() {
                unread.advance(head.head_bytes);
                return Ok(unread.split_to(head.body_bytes));
            }
        }
        if reader.read_buf(unread).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
