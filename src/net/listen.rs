//! How sockets are bound.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use super::stream::prepare;
use crate::config::Timeouts;

/// Connections the kernel keeps for us between two accepts.
const BACKLOG: i32 = 4096;

/// Binds and listens. Accepted sockets inherit what is set here. An IPv6 address takes IPv6 only, so that `0.0.0.0` and `[::]` can stand side by side.
///
/// # Errors
/// Whatever the kernel says: the address is in use, is not this machine's, or needs privileges.
pub fn listen(address: SocketAddr, timeouts: &Timeouts) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    prepare(&socket, timeouts)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;

    #[test]
    fn accepted_sockets_are_set_as_their_listener_is() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), &Timeouts::default()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(120)));
    }
}
