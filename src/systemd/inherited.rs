//! Sockets this process was started with: from systemd (socket activation), or from the process it follows.
//!
//! Sockets from systemd are kept for good, since systemd goes on holding the port: a listener that leaves the
//! configuration and comes back finds its socket here. Sockets from the process before are used once, under their
//! address in that process's configuration.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use socket2::SockRef;

/// The purpose of a listening socket; its label is its `FileDescriptorName=` in a socket unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Clients.
    Listener,
    /// `admin.address`.
    Admin,
    /// `admin.metrics_address`.
    Metrics,
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }
}

/// A listening socket of either family.
#[derive(Debug)]
pub enum Passed {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// Where a socket came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// systemd holds it too.
    Systemd,
    /// This process or the one it follows has bound it.
    Own,
}

/// The sockets.
#[derive(Debug, Default)]
pub struct Inherited {
    kept: Vec<Kept>,
    left: Vec<(Purpose, String, Passed)>,
}

#[derive(Debug)]
struct Kept {
    name: String,
    socket: Passed,
    /// The configured address that it is used for, found by its name.
    taken: Option<String>,
}

/// The descriptors this process was started with, not sorted yet.
#[derive(Debug, Default)]
pub struct Start {
    /// By their `FileDescriptorName=`, in the order in which they were passed.
    pub sockets: Vec<(String, OwnedFd)>,
}

impl Start {
    /// Takes the descriptors that the environment names. To be called once, before there is a second thread: the
    /// environment is changed.
    pub fn from_environment() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for at in 0..passed.len() {
            let name = names.next().unwrap_or_default();
            let tcp = passed.take_tcp_listener(at).map(|socket| socket.map(OwnedFd::from));
            match tcp.or_else(|_| passed.take_unix_listener(at).map(|socket| socket.map(OwnedFd::from))) {
                Ok(Some(socket)) => sockets.push((name, socket)),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(name, %error, "a descriptor that was passed is not a stream socket")
                }
            }
        }
        Self { sockets }
    }
}

impl Passed {
    /// A listening socket.
    ///
    /// # Errors
    /// It does not listen, as with `Accept=yes`.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let looked = SockRef::from(&socket);
        if !looked.is_listener()? {
            return Err(io::Error::other("it does not listen: a socket unit must have Accept=no"));
        }
        looked.set_nonblocking(true)?;
        let is_unix = looked.local_addr()?.is_unix();
        Ok(if is_unix { Self::Unix(socket.into()) } else { Self::Tcp(socket.into()) })
    }

    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(socket) => socket.try_clone().map(Self::Tcp),
            Self::Unix(socket) => socket.try_clone().map(Self::Unix),
        }
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(socket) => socket.as_fd().try_clone_to_owned(),
            Self::Unix(socket) => socket.as_fd().try_clone_to_owned(),
        }
    }

    /// Whether it is bound to `address`.
    fn is_at(&self, address: &str) -> bool {
        match self {
            Self::Tcp(socket) => {
                socket.local_addr().is_ok_and(|bound| address.parse::<SocketAddr>() == Ok(bound))
            }
            Self::Unix(socket) => socket
                .local_addr()
                .is_ok_and(|bound| bound.as_pathname().is_some_and(|path| path == Path::new(address))),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Tcp(socket) => {
                socket.local_addr().map_or_else(|error| error.to_string(), |a| a.to_string())
            }
            Self::Unix(socket) => format!("{:?}", socket.local_addr()),
        }
    }
}

impl Inherited {
    /// Sockets that systemd passed; one that does not listen is left out, and that is logged.
    pub fn from_systemd(sockets: Vec<(String, OwnedFd)>) -> Self {
        let mut inherited = Self::default();
        for (name, socket) in sockets {
            match Passed::new(socket) {
                Ok(socket) => inherited.kept.push(Kept { name, socket, taken: None }),
                Err(error) => tracing::error!(name, %error, "a socket from systemd cannot be used"),
            }
        }
        inherited
    }

    /// Adds a socket of the process that this one follows.
    pub fn leave(&mut self, purpose: Purpose, address: String, socket: Passed) {
        self.left.push((purpose, address, socket));
    }

    /// The socket for `address`: from the process before under this address, or from systemd and bound to it, or from
    /// systemd under the name of the purpose. `family` says which of the two families will do.
    pub fn take(
        &mut self,
        purpose: Purpose,
        address: &str,
        family: fn(&Passed) -> bool,
    ) -> io::Result<Option<(Passed, Origin)>> {
        let left = self
            .left
            .iter()
            .position(|(of, known, socket)| *of == purpose && known == address && family(socket));
        if let Some(at) = left {
            return Ok(Some((self.left.swap_remove(at).2, Origin::Own)));
        }
        let kept = &mut self.kept;
        let at = kept.iter().position(|kept| kept.socket.is_at(address)).or_else(|| {
            kept.iter().position(|kept| {
                kept.name == purpose.name()
                    && kept.taken.as_deref().is_none_or(|taken| taken == address)
                    && family(&kept.socket)
            })
        });
        let Some(kept) = at.and_then(|at| kept.get_mut(at)) else { return Ok(None) };
        kept.taken = Some(address.to_owned());
        Ok(Some((kept.socket.try_clone()?, Origin::Systemd)))
    }

    /// The first configuration has taken what it needs: the other sockets of the process before are closed.
    pub fn settle(&mut self) {
        for (_, address, _) in self.left.drain(..) {
            tracing::info!(address, "a socket of the process before is not needed any more");
        }
        for kept in self.kept.iter().filter(|kept| kept.taken.is_none()) {
            tracing::error!(
                name = kept.name,
                address = kept.socket.shown(),
                "systemd passed a socket that the configuration does not have: its clients wait in vain"
            );
        }
    }

    /// Copies of systemd's sockets, for the next process.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub fn copies(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        self.kept.iter().map(|kept| Ok((kept.name.clone(), kept.socket.copy()?))).collect()
    }
}
