//! Dialling a backend.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

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
            // `timeouts.user_timeout` may be the shorter one.
            Some(Errno::TIMEDOUT) => Self::Timeout,
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
    let socket = connect(backend, timeouts).await?;
    let Some(tls) = backend.tls() else { return Ok(Stream::Plain(socket)) };
    let name = tls.name_of(backend.address()).ok_or(DialFault::Unresolved)?;
    // Boxed: a handshake is large and short.
    let sealed = Box::pin(Sealed::connect(&tls, name, socket)).await.map_err(DialFault::Tls)?;
    Ok(Stream::Sealed(Box::new(sealed)))
}

/// Tries the host's addresses in the resolver's order.
async fn connect(backend: &Backend, timeouts: &Timeouts) -> Result<TcpStream, DialFault> {
    let addresses = match backend.address().parse::<SocketAddr>() {
        Ok(address) => vec![address],
        Err(_) => {
            let host = Arc::clone(backend.address());
            let look_up = move || host.to_socket_addrs().map(Iterator::collect);
            // Names are rare, and every connection would carry the room for this.
            Box::pin(bounded(backend.lookups(), look_up)).await.map_err(|_| DialFault::Unresolved)?
        }
    };
    let mut last = DialFault::Unresolved;
    for address in addresses {
        match connect_to(address, timeouts).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = DialFault::of(error),
        }
    }
    Err(last)
}

async fn connect_to(address: SocketAddr, timeouts: &Timeouts) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let options = SockRef::from(&socket);
    net::prepare(&options, timeouts)?;
    // Whoever connects has something to say at once: the last step of the handshake can ride on it.
    options.set_tcp_quickack(false)?;
    socket.connect(address).await
}

/// Looks up on a thread of its own once there is room, which is given back when that thread has ended and not when
/// somebody stops waiting for it: however slow a resolver is, its threads are few.
async fn bounded<T: Send + 'static>(
    room: &Arc<Semaphore>,
    look_up: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let looking = tokio::task::spawn_blocking(move || {
        let found = look_up();
        drop(permit);
        found
    });
    looking.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

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

    #[tokio::test]
    async fn lookups_that_nobody_waits_for_any_more_still_take_their_room() {
        let room = Arc::new(Semaphore::new(1));
        let slow = Arc::new(Barrier::new(2));
        let (began, begun) = tokio::sync::oneshot::channel();
        let thread = Arc::clone(&slow);
        let first = tokio::spawn({
            let room = Arc::clone(&room);
            async move {
                let look_up = move || {
                    began.send(()).map_err(|()| io::Error::other("nobody waits"))?;
                    thread.wait();
                    Ok(())
                };
                bounded(&room, look_up).await
            }
        });
        begun.await.unwrap();
        first.abort();
        assert!(first.await.is_err_and(|error| error.is_cancelled()));
        let next = bounded(&room, || Ok(7));
        tokio::pin!(next);
        assert!(futures_util::poll!(&mut next).is_pending(), "the first thread has not ended");
        slow.wait();
        assert_eq!(next.await.unwrap(), 7);
    }
}
