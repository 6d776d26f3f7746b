//! How sockets are bound.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use super::stream::prepare;
use crate::config::{Families, Timeouts};

/// Connections the kernel keeps between two accepts.
const BACKLOG: i32 = 4096;

/// Binds and listens. Accepted sockets inherit the options set here. Without IPv6, a socket of both families takes IPv4
/// only.
///
/// # Errors
/// The kernel's: the address is in use, is not this machine's, or needs privileges.
pub fn listen(address: SocketAddr, families: Families, timeouts: &Timeouts) -> io::Result<TcpListener> {
    match bind(address, families, timeouts) {
        Err(error) if families == Families::Both && lacks_v6(&error) => {
            let instead = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            tracing::info!(%address, %instead, %error, "this machine has no IPv6: listening on IPv4 only");
            bind(instead, Families::Own, timeouts)
        }
        bound => bound,
    }
}

fn bind(address: SocketAddr, families: Families, timeouts: &Timeouts) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Set in either case: the default depends on the machine.
        socket.set_only_v6(families == Families::Own)?;
    }
    prepare(&socket, timeouts)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The kernel has no IPv6, or it is switched off.
fn lacks_v6(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(number, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;

    #[test]
    fn accepted_sockets_are_set_as_their_listener_is() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), Families::Own, &Timeouts::default()).unwrap();
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
