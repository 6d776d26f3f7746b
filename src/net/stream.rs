//! The stream of a connection, plain or under TLS, and its socket options.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::tls::Sealed;
use crate::config::Timeouts;

/// Unanswered keepalive probes after which a peer is gone, where `timeouts.user_timeout` does not say so.
const KEEPALIVE_PROBES: u32 = 6;

/// How long a peer may take to close its side after the last answer.
const CLOSE_MAX: Duration = Duration::from_secs(2);
const CLOSE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// One side of a connection.
#[derive(Debug)]
pub enum Stream {
    /// Bytes as they are.
    Plain(TcpStream),
    /// TLS. Boxed: it is thirty times as large, and most connections have none.
    Sealed(Box<Sealed>),
}

impl Stream {
    /// The underlying socket, for its options.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Sealed(sealed) => sealed.socket(),
        }
    }

    /// Writes all of `bytes` and flushes: otherwise TLS may keep some.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        match self {
            Self::Plain(_) => Ok(()),
            Self::Sealed(sealed) => sealed.flush().await,
        }
    }

    /// Whether written bytes are still here and need a flush.
    pub fn has_unsent(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Sealed(sealed) => sealed.has_unsent(),
        }
    }
}

/// The same call on either variant.
macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Plain(socket) => {
                let $inner = Pin::new(socket);
                $call
            }
            Stream::Sealed(sealed) => {
                let $inner = Pin::new(&mut **sealed);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), inner => inner.poll_read(cx, into))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), inner => inner.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), inner => inner.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), inner => inner.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), inner => inner.poll_shutdown(cx))
    }
}

/// Sets the options that both sides of a connection need: small frames are sent at once, and dead peers are noticed.
/// Accepted sockets inherit them from the listening socket.
///
/// # Errors
/// If the peer is gone already.
pub fn prepare(socket: &Socket, timeouts: &Timeouts) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    match timeouts.keepalive {
        Some(idle) => {
            let interval = idle.checked_div(KEEPALIVE_PROBES).unwrap_or(idle).max(Duration::from_secs(1));
            let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
            // With a user timeout the kernel uses that, and does not count probes.
            socket.set_tcp_keepalive(&match timeouts.user_timeout {
                Some(_) => keepalive,
                None => keepalive.with_retries(KEEPALIVE_PROBES),
            })?;
        }
        None => socket.set_keepalive(false)?,
    }
    socket.set_tcp_user_timeout(timeouts.user_timeout)
}

/// Closes in order: FIN, then whatever the peer still sends is read for a moment, because unread bytes would turn the FIN
/// into an RST that destroys an answer on its way.
pub async fn close_in_order(mut stream: Stream) {
    let parting = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(CLOSE_BYTES_MAX), &mut tokio::io::sink()).await
    };
    if !matches!(tokio::time::timeout(CLOSE_MAX, parting).await, Ok(Ok(_))) {
        tracing::debug!("a peer did not close its side in time");
    }
}

/// Closes in order: FIN, then waits `within` which the peer must close its side. Bytes that still come are dropped.
pub async fn part(mut stream: Stream, within: Duration) {
    let parting = async {
        stream.shutdown().await?;
        let mut passed_over = [0; 1024];
        let mut left = CLOSE_BYTES_MAX;
        let socket = stream.socket();
        while left > 0 {
            socket.readable().await?;
            match socket.try_read(&mut passed_over) {
                Ok(0) => break,
                Ok(bytes) => left = left.saturating_sub(u64::try_from(bytes).unwrap_or(left)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        io::Result::Ok(())
    };
    if !matches!(tokio::time::timeout(within, parting).await, Ok(Ok(()))) {
        tracing::debug!("a server did not close its side in time");
    }
}

/// Whether there is nothing to wait for when this is closed: the peer has closed its side, or will get an RST. May drop
/// unread bytes.
pub fn is_over(stream: &Stream) -> bool {
    let socket = stream.socket();
    let resets = matches!(SockRef::from(socket).linger(), Ok(Some(Duration::ZERO)));
    resets
        || match socket.try_read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
}

/// Makes the following close an RST instead of a FIN, as the other peer did.
pub fn reset(stream: &mut Stream) {
    if let Stream::Sealed(sealed) = stream {
        sealed.abandon();
    }
    if let Err(error) = SockRef::from(stream.socket()).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a reset could not be passed on");
    }
}
