//! The fake server's own framing: `Content-Length` heads in, frames out.
//!
//! It shares nothing with the balancer's parser on purpose, so that each can catch the other's mistakes, and it is as
//! lenient as the real server: header names in any case, other headers beside it, the **last** of two lengths. Only
//! errors that end a connection are made here; `message` finds what is wrong inside a body.

use std::fmt::Display;
use std::io;

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// The longest frame that is taken. A longer one is refused once this many bytes have come, not at its head: the real
/// server waits for a length of 1e12 too.
pub(super) const FRAME_BYTES_MAX: usize = 128 << 20;

/// The longest block of headers.
pub(super) const HEAD_BYTES_MAX: usize = 65_536;

const READ_BYTES: usize = 64 << 10;

/// Why reading ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadEnd {
    /// The peer closed its side, be it in the middle of a frame.
    Fin,
    /// RST or another error of the socket.
    Reset,
    /// A head that cannot be recovered from: answered with -32700, then closed.
    Malformed(String),
}

/// One frame as it came.
#[derive(Debug)]
pub(super) struct Frame {
    /// Head and body, byte for byte.
    pub(super) raw: Bytes,
    /// The body alone.
    pub(super) body: Bytes,
}

/// Reads frames. Cancel safe: bytes that came are kept until their frame is whole.
pub(super) struct Reader<R> {
    inner: R,
    buffer: BytesMut,
    /// Lengths of head and body of the frame at the front, once its head was read.
    front: Option<(usize, usize)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, buffer: BytesMut::new(), front: None }
    }

    /// Every whole frame that is at hand, at least one. What came in one segment comes out as one batch: that is what
    /// makes "pipelined behind an unanswered request" a fact here and not a race.
    ///
    /// # Errors
    /// The end of reading. Frames that came before a malformed head are delivered first.
    pub(super) async fn batch(&mut self) -> Result<Vec<Frame>, ReadEnd> {
        let mut frames = Vec::new();
        loop {
            loop {
                match self.whole() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(_) if !frames.is_empty() => return Ok(frames),
                    Err(message) => return Err(ReadEnd::Malformed(message)),
                }
            }
            if !frames.is_empty() {
                return Ok(frames);
            }
            self.buffer.reserve(READ_BYTES);
            match self.inner.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(ReadEnd::Fin),
                Ok(_) => {}
                Err(_) => return Err(ReadEnd::Reset),
            }
        }
    }

    /// The frame at the front of the buffer, if all of it is there.
    fn whole(&mut self) -> Result<Option<Frame>, String> {
        let (head, body) = match self.front {
            Some(front) => front,
            None => {
                let Some(head) = memmem::find(&self.buffer, b"\r\n\r\n").map(|at| at.saturating_add(4))
                else {
                    return if self.buffer.len() > HEAD_BYTES_MAX {
                        Err(too_long("header"))
                    } else {
                        Ok(None)
                    };
                };
                if head > HEAD_BYTES_MAX {
                    return Err(too_long("header"));
                }
                let front = (head, body_length(self.buffer.get(..head).unwrap_or_default())?);
                self.front = Some(front);
                front
            }
        };
        let total = head.saturating_add(body);
        if self.buffer.len() < total {
            let over = self.buffer.len() > FRAME_BYTES_MAX.saturating_add(head);
            return if over { Err(too_long("message")) } else { Ok(None) };
        }
        if body > FRAME_BYTES_MAX {
            return Err(too_long("message"));
        }
        self.front = None;
        let raw = self.buffer.split_to(total).freeze();
        let body = raw.slice(head..);
        Ok(Some(Frame { raw, body }))
    }
}

fn too_long(what: &str) -> String {
    format!("The {what} is too long")
}

/// The last `Content-Length` of a block of headers.
fn body_length(head: &[u8]) -> Result<usize, String> {
    let head = String::from_utf8_lossy(head);
    let mut length = None;
    for line in head.split("\r\n").filter(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else {
            return Err("Message header must separate key and value using ':'".to_owned());
        };
        if name.trim().eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().to_owned());
        }
    }
    let value = length.ok_or("Header must provide a Content-Length property.")?;
    value.parse().map_err(|_| format!("Content-Length value must be a number. Got {value}"))
}

/// Writes what a queue delivers. Cancel safe, and resumable in the middle of a frame.
pub(super) struct Writer {
    queue: mpsc::UnboundedReceiver<Queued>,
    current: Queued,
}

/// A frame in a connection's queue; it gives its bytes back to the connection's allowance when it goes.
#[derive(Default)]
pub(super) struct Queued {
    pub(super) bytes: Bytes,
    pub(super) _allowance: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Writer {
    pub(super) fn new(queue: mpsc::UnboundedReceiver<Queued>) -> Self {
        Self { queue, current: Queued::default() }
    }

    /// Writes for as long as the queue lives.
    ///
    /// # Errors
    /// The socket's.
    pub(super) async fn run(&mut self, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        loop {
            self.finish(out).await?;
            match self.queue.recv().await {
                Some(queued) => self.current = queued,
                None => return Ok(()),
            }
        }
    }

    /// Writes what is queued already, and no more.
    ///
    /// # Errors
    /// The socket's.
    pub(super) async fn drain(&mut self, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        loop {
            self.finish(out).await?;
            match self.queue.try_recv() {
                Ok(queued) => self.current = queued,
                Err(_) => return Ok(()),
            }
        }
    }

    async fn finish(&mut self, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        while self.current.bytes.has_remaining() {
            if out.write_buf(&mut self.current.bytes).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// A value as a frame.
pub(super) fn frame(value: &Value) -> Bytes {
    let body = value.to_string();
    let mut frame = format!("Content-Length: {}\r\n\r\n", body.len());
    frame.push_str(&body);
    Bytes::from(frame)
}

/// The answer to `id`.
pub(super) fn result(id: &Value, result: &Value) -> Bytes {
    frame(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

/// The refusal of `id`; null where no id could be read.
pub(super) fn error(id: &Value, code: i64, message: impl Display) -> Bytes {
    let message = message.to_string();
    frame(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}))
}

/// A notification.
pub(super) fn notification(method: &str, params: &Value) -> Bytes {
    frame(&json!({"jsonrpc": "2.0", "method": method, "params": params}))
}
