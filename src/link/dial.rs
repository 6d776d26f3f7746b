//! Dialling a backend.

use std::io;
use std::time::Instant;

use bytes::BytesMut;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::config::Timeouts;
use crate::fleet::{Backend, Lease};
use crate::net::{self, Sealed, Stream};

/// An open connection to a backend.
#[derive(Debug)]
pub struct Link {
    /// What carries its bytes.
    pub stream: Stream,
    /// Counts it.
    pub lease: Lease,
    /// Bytes that came from the backend and have not been used.
    pub unread: BytesMut,
}

/// Why a backend could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialFault {
    /// Nobody listens.
    #[error("connection refused")]
    Refused,
    /// No answer in time.
    #[error("no connection in time")]
    Timeout,
    /// The host has no address.
    #[error("the name has no address")]
    Unresolved,
    /// This machine has no descriptor, port or memory left: that says nothing of the backend.
    #[error("{0}")]
    Local(io::Error),
    /// It has no certificate that is good, or takes none of ours, or speaks no TLS.
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
            Self::Local(_) => "local",
            Self::Tls(_) => "tls",
            Self::Other(_) => "other",
        }
    }

    fn of(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
                Self::Local(error)
            }
            Some(Errno::CONNREFUSED) => Self::Refused,
            _ => Self::Other(error),
        }
    }
}

/// Dials a backend on a client's behalf.
///
/// # Errors
/// See [`DialFault`].
pub async fn dial(lease: Lease, timeouts: &Timeouts) -> Result<Link, DialFault> {
    let stream = reach(lease.backend(), timeouts).await?;
    Ok(Link { stream, lease, unread: BytesMut::new() })
}

/// Connects to a backend; a failure of its own is counted, and keeps new sessions away until a probe is answered.
///
/// # Errors
/// See [`DialFault`].
pub async fn reach(backend: &Backend, timeouts: &Timeouts) -> Result<Stream, DialFault> {
    let started = Instant::now();
    let dialled = tokio::time::timeout(timeouts.connect, handshaken(backend, timeouts)).await;
    match dialled.unwrap_or(Err(DialFault::Timeout)) {
        Ok(stream) => {
            backend.series().connect_duration.observe(started.elapsed().as_secs_f64());
            Ok(stream)
        }
        Err(fault) => {
            backend.series().connect_failed(fault.label());
            if !matches!(fault, DialFault::Local(_)) {
                backend.suspect();
            }
            tracing::debug!(backend = %backend.name(), %fault, "dial failed");
            Err(fault)
        }
    }
}

/// Connects, and shakes hands where the backend speaks TLS.
async fn handshaken(backend: &Backend, timeouts: &Timeouts) -> Result<Stream, DialFault> {
    let socket = connect(backend.address(), timeouts).await?;
    let Some(tls) = backend.tls() else { return Ok(Stream::Plain(socket)) };
    let name = tls.name_of(backend.address()).ok_or(DialFault::Unresolved)?;
    // Boxed: a handshake is large and short.
    let sealed = Box::pin(Sealed::connect(&tls, name, socket)).await.map_err(DialFault::Tls)?;
    Ok(Stream::Sealed(Box::new(sealed)))
}

/// Tries the host's addresses in the resolver's order.
async fn connect(address: &str, timeouts: &Timeouts) -> Result<TcpStream, DialFault> {
    let addresses = tokio::net::lookup_host(address).await.map_err(|_| DialFault::Unresolved)?;
    let mut last = DialFault::Unresolved;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                net::prepare(&SockRef::from(&stream), timeouts).map_err(DialFault::Other)?;
                return Ok(stream);
            }
            Err(error) => last = DialFault::of(error),
        }
    }
    Err(last)
}
