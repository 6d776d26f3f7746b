//! Dialling a backend: always the one server behind it. Its name was resolved before, in `control/lookups`, and
//! [`super::first_that_answers`] chose among several addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::BytesMut;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::config::{BackendTls, Timeouts};
use crate::fleet::{Backend, Lease, Leased, Unreachable};
use crate::net::{self, Sealed, Stream};
use crate::runtime::descriptors::Purpose;

/// An open connection to a backend.
#[derive(Debug)]
pub struct Link {
    /// The connection, and its lease.
    pub stream: Leased,
    /// Bytes that came from the backend and have not been used.
    pub unread: BytesMut,
}

/// On whose behalf a backend is dialled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// A client's: refused when few descriptors are left.
    Client,
    /// Sessile's own: goes on when few descriptors are left.
    Itself,
}

/// Why a backend could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialFault {
    /// Nothing listens.
    #[error("connection refused")]
    Refused,
    /// No answer in time.
    #[error("no connection in time")]
    Timeout,
    /// The host has no address.
    #[error("the name has no address")]
    Unresolved,
    /// This machine has no descriptor or memory left: the backend is not at fault, and dialling another would fail too.
    #[error("{0}")]
    Local(io::Error),
    /// This machine has no local port left for it: the backend is not at fault; for another backend there may be ports.
    #[error("no port is left towards it: {0}")]
    Ports(io::Error),
    /// Its certificate is not good, or it refuses sessile's, or it does not speak TLS.
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    /// Anything else.
    #[error("{0}")]
    Other(io::Error),
}

impl DialFault {
    const fn label(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unresolved => "unresolved",
            Self::Local(_) | Self::Ports(_) => "local",
            Self::Tls(_) => "tls",
            Self::Other(_) => "other",
        }
    }

    fn of(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Self::Local(error),
            Some(Errno::ADDRNOTAVAIL) => Self::Ports(error),
            Some(Errno::CONNREFUSED) => Self::Refused,
            // `timeouts.user_timeout` may be the shorter one.
            Some(Errno::TIMEDOUT) => Self::Timeout,
            _ => Self::Other(error),
        }
    }
}

/// Whether the other side has closed the connection: a server that has too many does so at once.
pub fn hung_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Dials a backend on a client's behalf.
///
/// # Errors
/// See [`DialFault`].
pub async fn dial(lease: Lease, timeouts: &Timeouts) -> Result<Link, DialFault> {
    let backend = lease.backend();
    let stream = mark(backend, reached(backend, timeouts, For::Client).await)?;
    Ok(Link { stream: Leased::new(stream, lease), unread: BytesMut::new() })
}

/// Connects to a backend. A failure of the backend's own is counted, and marks it as suspect until a probe is answered.
///
/// # Errors
/// See [`DialFault`].
pub async fn reach(backend: &Backend, timeouts: &Timeouts) -> Result<Stream, DialFault> {
    mark(backend, reached(backend, timeouts, For::Itself).await)
}

fn mark(backend: &Backend, reached: Result<Stream, DialFault>) -> Result<Stream, DialFault> {
    if matches!(&reached, Err(fault) if !matches!(fault, DialFault::Local(_) | DialFault::Ports(_))) {
        backend.mark_suspect(Unreachable::witnessed());
    }
    reached
}

/// The same for a client's question: a failure is counted, and does not mark the backend.
///
/// # Errors
/// See [`DialFault`].
pub async fn reach_unmarked(backend: &Backend, timeouts: &Timeouts) -> Result<Stream, DialFault> {
    reached(backend, timeouts, For::Itself).await
}

async fn reached(backend: &Backend, timeouts: &Timeouts, whom: For) -> Result<Stream, DialFault> {
    let started = Instant::now();
    let dialled = tokio::time::timeout(timeouts.connect, handshaken(backend, timeouts, whom)).await;
    match dialled.unwrap_or(Err(DialFault::Timeout)) {
        Ok(stream) => {
            backend.series().connect_duration.observe(started.elapsed().as_secs_f64());
            Ok(stream)
        }
        Err(fault) => {
            backend.series().connect_failed(fault.label());
            tracing::debug!(backend = %backend.name(), %fault, "dial failed");
            Err(fault)
        }
    }
}

/// Connects, with a handshake where the backend speaks TLS.
async fn handshaken(backend: &Backend, timeouts: &Timeouts, whom: For) -> Result<Stream, DialFault> {
    let socket = connect(backend, timeouts, whom).await?;
    sealed(socket, backend.address(), backend.tls().as_deref()).await
}

async fn sealed(socket: TcpStream, address: &str, tls: Option<&BackendTls>) -> Result<Stream, DialFault> {
    let Some(tls) = tls else { return Ok(Stream::Plain(socket)) };
    let name = tls.name_of(address).ok_or(DialFault::Unresolved)?;
    // Boxed: a handshake is large and short.
    let sealed = Box::pin(Sealed::connect(tls, name, socket)).await.map_err(DialFault::Tls)?;
    Ok(Stream::Sealed(Box::new(sealed)))
}

async fn connect(backend: &Backend, timeouts: &Timeouts, whom: For) -> Result<TcpStream, DialFault> {
    let address = backend.socket().ok_or(DialFault::Unresolved)?;
    let socket = socket_for(address).map_err(DialFault::of)?;
    if whom == For::Client && !Purpose::Link.allows(&socket) {
        return Err(DialFault::Local(io::Error::other("RLIMIT_NOFILE is reached but for a reserve")));
    }
    connect_by(socket, address, timeouts).await.map_err(DialFault::of)
}

/// Connects to the server at `at`, which may have no backend yet. `address` is the name that was looked up: with TLS the
/// server must prove it.
///
/// # Errors
/// See [`DialFault`].
pub(super) async fn reach_at(
    at: SocketAddr,
    address: &str,
    tls: Option<&BackendTls>,
    timeouts: &Timeouts,
) -> Result<Stream, DialFault> {
    let socket = socket_for(at).map_err(DialFault::of)?;
    sealed(connect_by(socket, at, timeouts).await.map_err(DialFault::of)?, address, tls).await
}

fn socket_for(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

async fn connect_by(socket: TcpSocket, address: SocketAddr, timeouts: &Timeouts) -> io::Result<TcpStream> {
    let options = SockRef::from(&socket);
    net::prepare(&options, timeouts)?;
    // The first bytes are sent at once after connecting, and can carry the last acknowledgement of the TCP handshake.
    options.set_tcp_quickack(false)?;
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_handshake_ends_with_the_first_bytes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let series = Metrics::new().unwrap().backend(&"cli-1".into());
        let (backend, _asked) = Backend::new("cli-1", &listener.local_addr().unwrap().to_string(), series);
        // The kernel waits for bytes to ride on for 200 ms, which a busy machine may miss once, but not ten times.
        let mut waited = 0;
        for _ in 0..10 {
            let mut stream = reach(&backend, &Timeouts::default()).await.unwrap();
            waited += u32::from(listener.accept().is_err());
            stream.send(b"x").await.unwrap();
            while listener.accept().is_ok() {}
        }
        assert!(waited > 0, "each was acknowledged on its own");
    }
}
