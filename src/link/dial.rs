//! Dialling a backend.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::fleet::{Backend, Lease};
use crate::net::{self, Stream};

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
            Self::Other(_) => "other",
        }
    }
}

/// Dials; a failure is counted, and keeps new sessions away until a probe is answered.
///
/// # Errors
/// See [`DialFault`].
pub async fn dial(backend: &Arc<Backend>, timeout: Duration) -> Result<Link, DialFault> {
    let started = Instant::now();
    let dialled = tokio::time::timeout(timeout, connect(backend.address())).await;
    match dialled.unwrap_or(Err(DialFault::Timeout)) {
        Ok(stream) => {
            backend.series().connect_duration.observe(started.elapsed().as_secs_f64());
            Ok(Link { stream, lease: Lease::new(backend), unread: BytesMut::new() })
        }
        Err(fault) => {
            backend.series().connect_failed(fault.label());
            backend.suspect();
            tracing::debug!(backend = %backend.name(), %fault, "dial failed");
            Err(fault)
        }
    }
}

/// Tries the host's addresses in the resolver's order.
async fn connect(address: &str) -> Result<Stream, DialFault> {
    let addresses = tokio::net::lookup_host(address).await.map_err(|_| DialFault::Unresolved)?;
    let mut last = DialFault::Unresolved;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                net::prepare(&stream).map_err(DialFault::Other)?;
                return Ok(Stream::Plain(stream));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => last = DialFault::Refused,
            Err(error) => last = DialFault::Other(error),
        }
    }
    Err(last)
}
