//! Prompt acknowledgements, for peers that wait for them.
//!
//! Most SDKs and servers leave Nagle's algorithm on: what they write while earlier bytes are unacknowledged waits in
//! their kernel, and this machine's kernel delays an acknowledgement by 40 ms, to send it with other bytes. So a body that
//! is written after its head waits, and so does an answer that is written after an event. Received bytes are therefore
//! acknowledged at once, unless the other side speaks next: then the acknowledgement goes with its bytes.
//!
//! With several requests in flight on one connection this is not enough: the second answer waits behind the first.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use socket2::SockRef;

use super::shared_buffer::{READ_BYTES_MAX, poll_fill};
use super::stream::Stream;
use crate::close::By;
use crate::wire::Head;

/// The method of a call is within so many bytes, since servers put it before the parameters. If one does not, its events
/// are acknowledged late.
const METHOD_WITHIN_BYTES: usize = 64;
const METHOD: &[u8] = b"\"method\"";

/// Reads as [`fill`](super::fill) does, and acknowledges the bytes if the peer may wait for that. Cancel-safe.
///
/// # Errors
/// The socket's.
pub async fn read_and_ack(
    of: By,
    stream: &mut Stream,
    into: &mut BytesMut,
    most: usize,
) -> io::Result<usize> {
    poll_fn(|cx| poll_read_and_ack(of, stream, cx, into, most)).await
}

/// The same, asked once.
pub fn poll_read_and_ack(
    of: By,
    stream: &mut Stream,
    cx: &mut Context<'_>,
    into: &mut BytesMut,
    most: usize,
) -> Poll<io::Result<usize>> {
    let held = into.len();
    let read = ready!(poll_fill(stream, cx, into, most))?;
    acknowledge_read(of, stream, into.get(held..).unwrap_or_default());
    Poll::Ready(Ok(read))
}

/// Acknowledges the bytes of one read of `stream`, if the peer may wait for that.
pub fn acknowledge_read(of: By, stream: &Stream, bytes: &[u8]) {
    if may_wait(of, bytes) {
        acknowledge(stream);
    }
}

/// Acknowledges everything received.
pub fn acknowledge(stream: &Stream) {
    if let Err(error) = SockRef::from(stream.socket()).set_tcp_quickack(true) {
        tracing::debug!(%error, "what came could not be acknowledged at once");
    }
}

/// Whether the peer may hold back more until `bytes` are acknowledged. Not after a whole request, which is answered, nor
/// after a whole answer, which the next request follows; and a read that filled the buffer is followed by another at once.
fn may_wait(of: By, bytes: &[u8]) -> bool {
    if bytes.is_empty() || bytes.len() >= READ_BYTES_MAX {
        return false;
    }
    match Head::read(bytes) {
        Ok(Some(head)) if head.frame_bytes() == bytes.len() => {
            of == By::Backend && is_call(bytes.get(head.head_bytes..).unwrap_or_default())
        }
        _ => true,
    }
}

/// Whether a body is a request or a notification, as far as its first bytes tell.
fn is_call(body: &[u8]) -> bool {
    let start = body.get(..METHOD_WITHIN_BYTES.min(body.len())).unwrap_or_default();
    start.windows(METHOD.len()).any(|window| window == METHOD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply;

    fn frame(body: &str) -> Vec<u8> {
        reply::frame(body.as_bytes())
    }

    #[test]
    fn whoever_is_answered_next_is_acknowledged_by_that() {
        let request = frame(r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{}}"#);
        let event = frame(r#"{"jsonrpc":"2.0","method":"session.event","params":{}}"#);
        let answer = frame(r#"{"jsonrpc":"2.0","id":1,"result":{"message":"pong"}}"#);
        assert!(!may_wait(By::Client, &request));
        assert!(!may_wait(By::Backend, &answer));
        assert!(may_wait(By::Backend, &event), "an answer may wait behind it");
        assert!(may_wait(By::Backend, &request), "so it may behind a question to the client");
    }

    #[test]
    fn parts_of_frames_and_several_at_once_are_acknowledged() {
        let answer = frame(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
        for of in [By::Client, By::Backend] {
            for cut in 1..answer.len() {
                let (head, rest) = answer.split_at(cut);
                assert!(may_wait(of, head) && may_wait(of, rest), "cut at {cut}");
            }
            assert!(may_wait(of, &answer.repeat(2)));
            assert!(may_wait(of, b"no frame"));
        }
    }

    #[test]
    fn what_is_followed_by_another_read_is_not() {
        assert!(!may_wait(By::Client, &[]) && !may_wait(By::Backend, &[]));
        assert!(!may_wait(By::Backend, &vec![b'x'; READ_BYTES_MAX]));
        assert!(may_wait(By::Backend, &vec![b'x'; READ_BYTES_MAX - 1]));
    }
}
