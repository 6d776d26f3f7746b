//! A read buffer that each thread has, and lends for the time of one read.
//!
//! Nothing that waits holds a buffer, and kept bytes take no more room than they need. A read that does not fill the
//! buffer tells the runtime that the socket is empty, which saves a system call.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of one read.
pub const READ_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into());
}

/// Lends the buffer; `with` must not borrow it again.
pub fn lend<T>(with: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| with(buffer))
}

/// Reads once, `most` bytes at most, and appends them to `into`; 0 at the end. Cancel-safe.
///
/// # Errors
/// The reader's.
pub async fn fill(
    reader: &mut (impl AsyncRead + Unpin),
    into: &mut BytesMut,
    most: usize,
) -> io::Result<usize> {
    poll_fn(|cx| poll_fill(reader, cx, into, most)).await
}

/// The same, asked once.
pub fn poll_fill(
    reader: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    into: &mut BytesMut,
    most: usize,
) -> Poll<io::Result<usize>> {
    lend(|buffer| {
        let most = most.min(buffer.len());
        let mut read = ReadBuf::new(buffer.get_mut(..most).unwrap_or_default());
        ready!(Pin::new(reader).poll_read(cx, &mut read))?;
        into.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}
