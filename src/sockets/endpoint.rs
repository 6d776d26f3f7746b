//! Admin sockets: what a configuration names, and how they are bound.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket as RawSocket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::config::{AdminAddress, Families, Timeouts};
use crate::net;
use crate::systemd::{Passed, Purpose};

const BACKLOG: i32 = 128;

/// One admin socket of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Everything, reads and writes.
    Admin(AdminAddress),
    /// `/metrics`, `/healthz` and `/readyz` only.
    Metrics(SocketAddr),
}

impl Endpoint {
    /// Its purpose, as a socket unit names it.
    pub fn purpose(&self) -> Purpose {
        match self {
            Self::Admin(_) => Purpose::Admin,
            Self::Metrics(_) => Purpose::Metrics,
        }
    }

    /// Whether TLS may be spoken here: not for metrics, nor on a Unix socket, which its file's mode protects.
    pub(super) fn may_be_sealed(&self) -> bool {
        matches!(self, Self::Admin(AdminAddress::Tcp(_)))
    }

    /// Where to bind.
    pub fn address(&self) -> AdminAddress {
        match self {
            Self::Admin(address) => address.clone(),
            Self::Metrics(address) => AdminAddress::Tcp(*address),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            AdminAddress::Tcp(address) => address.fmt(f),
            AdminAddress::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A bound socket that is not served yet. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Bound {
    socket: Socket,
    address: AdminAddress,
    /// `None` = there is none, or it is not this process's.
    file: Option<SocketFile>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection that has been taken from a socket's queue.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// A copy of its socket.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub(super) fn copy(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(stream) => stream.as_fd().try_clone_to_owned(),
            Self::Unix(stream) => stream.as_fd().try_clone_to_owned(),
        }
    }
}

/// The name of a Unix socket in the file system; removed with the socket, unless another has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// The file of a socket that another process has bound; `None` if there is none.
    pub(super) fn of(address: &AdminAddress) -> Option<Self> {
        let AdminAddress::Unix(path) = address else { return None };
        identity(path).ok().map(|identity| Self { path: path.clone(), identity })
    }

    /// Leaves the file to the process that serves there now, which will remove it.
    pub(super) fn leave(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the admin socket's file could not be removed");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Binds and listens. A Unix socket is for this user only (mode 0600); a file left behind by a process that is gone is
/// replaced, a socket on which a process listens is not.
///
/// # Errors
/// The kernel's, or why the path cannot be used.
pub(super) fn bind(address: &AdminAddress, families: impl Fn(SocketAddr) -> Families) -> io::Result<Bound> {
    match address {
        AdminAddress::Tcp(address) => {
            let listener =
                TcpListener::from_std(net::listen(*address, families(*address), &Timeouts::default())?)?;
            let address = AdminAddress::Tcp(listener.local_addr()?);
            Ok(Bound { socket: Socket::Tcp(listener), address, file: None })
        }
        AdminAddress::Unix(path) => {
            make_way(path)?;
            let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SockAddr::unix(path)?)?;
            let file = SocketFile { path: path.clone(), identity: identity(path)? };
            // Nobody can connect before `listen`, and the mode is set before that.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            socket.listen(BACKLOG)?;
            let listener = UnixListener::from_std(socket.into())?;
            Ok(Bound { socket: Socket::Unix(listener), address: address.clone(), file: Some(file) })
        }
    }
}

/// Takes over a socket that listens already. Its file, if it has one, still belongs to the other process.
///
/// # Errors
/// The kernel has no room to watch another socket.
pub(super) fn adopt(socket: Passed) -> io::Result<Bound> {
    match socket {
        Passed::Tcp(socket) => {
            let listener = TcpListener::from_std(socket)?;
            let address = AdminAddress::Tcp(listener.local_addr()?);
            Ok(Bound { socket: Socket::Tcp(listener), address, file: None })
        }
        Passed::Unix(socket) => {
            let path = socket.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
            let listener = UnixListener::from_std(socket)?;
            Ok(Bound { socket: Socket::Unix(listener), address: AdminAddress::Unix(path), file: None })
        }
    }
}

/// Removes a socket file that nobody listens on any more.
fn make_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there")),
    }
}

impl Bound {
    /// Where it is bound; differs from the configured address if that has port 0.
    pub(super) fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Another descriptor of the same socket, for the next process.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub(super) fn copy(&self) -> io::Result<OwnedFd> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Socket::Unix(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// The name in the file system, to be kept as long as clients must find the socket.
    pub(super) fn file(&mut self) -> Option<SocketFile> {
        self.file.take()
    }

    /// The next connection.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(_: SocketAddr) -> Families {
        Families::Own
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let address = AdminAddress::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "stale");
        let bound = bind(&address, own).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind(&address, own).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(StdUnixStream::connect(&path).is_ok(), "the first is unharmed");
        drop(bound);
        assert!(!path.exists(), "what was never served leaves nothing behind");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(bind(&AdminAddress::Unix(path.clone()), own).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[tokio::test]
    async fn a_file_that_took_the_sockets_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let bound = bind(&AdminAddress::Unix(path.clone()), own).unwrap();
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(bound);
        assert!(path.exists());
    }
}
