//! Sockets: how they are bound, and what every connection's two of them are set to.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections the kernel keeps for us between two accepts.
const BACKLOG: i32 = 4096;
/// A peer that is gone without a word is noticed after about this and six probes, or at once when bytes go unacknowledged
/// for [`USER_TIMEOUT`]. Servers set no keepalive of their own.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a client that has been told why may take to close its side, and what it may still send.
const FAREWELL: Duration = Duration::from_secs(2);
const FAREWELL_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Binds and listens. An IPv6 address takes IPv6 only, so that `0.0.0.0` and `[::]` can stand side by side.
///
/// # Errors
/// Whatever the kernel says: the address is in use, is not this machine's, or needs privileges.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets what both sides of a connection need: small frames leave at once, and dead peers are noticed.
///
/// # Errors
/// If the peer is gone already.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(6);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Longest head that SDKs write on its own.
const LONE_HEAD_BYTES_MAX: usize = 64;

/// Acknowledges `bytes` at once if they are a head on its own. Most SDKs write head and body apart and hold the body back
/// until the head is acknowledged, which the kernel would put off for 40 ms, hoping for an answer to ride on.
pub fn acknowledge_lone_head(stream: &TcpStream, bytes: &[u8]) {
    if bytes.len() <= LONE_HEAD_BYTES_MAX
        && bytes.ends_with(b"\r\n\r\n")
        && let Err(error) = SockRef::from(stream).set_tcp_quickack(true)
    {
        tracing::debug!(%error, "a head could not be acknowledged at once");
    }
}

/// Closes in order: FIN, then whatever the peer still sends is read for a moment, because unread bytes would turn the FIN
/// into an RST that destroys an answer on its way.
pub async fn farewell(mut stream: TcpStream) {
    let parting = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(FAREWELL_BYTES_MAX), &mut tokio::io::sink()).await
    };
    if !matches!(tokio::time::timeout(FAREWELL, parting).await, Ok(Ok(_))) {
        tracing::debug!("a peer did not close its side in time");
    }
}

/// Makes the close that follows an RST instead of a FIN, as the other peer did.
pub fn reset(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a reset could not be passed on");
    }
}
