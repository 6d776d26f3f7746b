//! Why a connection ended: who ended it, in which phase, and for what reason.
//!
//! Every way out of the data path is a [`Close`]; it is also the data path's error type. The three parts are
//! closed sets, because they become metric labels. They are what termination states are in HAProxy: an operator
//! reads `by=backend at=relay why=reset` and knows where to look.

use std::fmt;

/// Which peer (or we ourselves) ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The SDK client.
    Client,
    /// A CLI server.
    Backend,
    /// sessile: a limit, a deadline, a refusal, an operator.
    Balancer,
}

/// In which phase the connection was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Being accepted: limits, PROXY header, TLS.
    Accept,
    /// Reading frames until one names a session.
    Opening,
    /// Choosing, dialling and greeting the backend of its session.
    Place,
    /// Carrying bytes.
    Relay,
}

/// The reason, as a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// An orderly end: FIN after the last byte.
    Fin,
    /// RST, or the kernel says that the peer is gone.
    Reset,
    /// A deadline passed: first frame, begun frame, half-close or idle.
    Timeout,
    /// A configured limit was reached.
    Limit,
    /// The TLS handshake failed.
    Tls,
    /// A trusted proxy sent no valid PROXY header, or somebody else connected.
    Proxy,
    /// Bytes that are no frame, or a frame that is no request.
    Malformed,
    /// A denied method was called. Most such calls are answered, and do not end the connection.
    Denied,
    /// No backend could take the session.
    NoBackend,
    /// The only backend that may serve the session is down.
    OwnerDown,
    /// The session's backend speaks another protocol version than the scout did.
    ProtocolMismatch,
    /// Another opening of the same session did not finish in time.
    SessionLocked,
    /// The backend went away while requests waited.
    BackendLost,
    /// A session could not be brought back from a backend that went away. The connection goes on.
    ReviveFailed,
    /// The session was moved off a backend that is down.
    Evicted,
    /// Health says down and the configuration says close.
    Down,
    /// sessile is stopping.
    Draining,
    /// The task was dropped before it could say more.
    Aborted,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Close {
    /// Who.
    pub by: By,
    /// Where.
    pub at: At,
    /// For what reason.
    pub why: Why,
}

/// How a connection can end, by whom, where and why. Combinations that are not here do not happen.
const ENDS: [(By, At, &[Why]); 10] = [
    (By::Client, At::Accept, &[Why::Fin, Why::Reset, Why::Timeout, Why::Tls, Why::Proxy, Why::Malformed]),
    (By::Client, At::Opening, &[Why::Fin, Why::Reset, Why::Timeout, Why::Malformed]),
    (By::Client, At::Place, &[Why::Fin, Why::Reset, Why::Timeout]),
    (By::Client, At::Relay, &[Why::Fin, Why::Reset, Why::Timeout, Why::Malformed]),
    (By::Backend, At::Opening, &[Why::BackendLost]),
    (By::Backend, At::Relay, &[Why::Fin, Why::Reset, Why::Timeout, Why::Malformed, Why::BackendLost]),
    (By::Balancer, At::Accept, &[Why::Limit, Why::Draining, Why::Aborted]),
    (By::Balancer, At::Opening, &REFUSED),
    (By::Balancer, At::Place, &REFUSED),
    (
        By::Balancer,
        At::Relay,
        &[Why::Limit, Why::Timeout, Why::Evicted, Why::Down, Why::Draining, Why::Aborted],
    ),
];

/// Why the balancer ends an opening: with an error that the client is told, or `Aborted`, where it could not be told.
const REFUSED: [Why; 10] = [
    Why::Limit,
    Why::Malformed,
    Why::Denied,
    Why::NoBackend,
    Why::OwnerDown,
    Why::ProtocolMismatch,
    Why::SessionLocked,
    Why::BackendLost,
    Why::Draining,
    Why::Aborted,
];

impl Close {
    /// Every close there is: the metric has all of them from the start.
    pub fn all() -> impl Iterator<Item = Self> {
        ENDS.iter().flat_map(|(by, at, whys)| whys.iter().map(|why| Self::new(*by, *at, *why)))
    }

    /// A close from its three parts.
    pub const fn new(by: By, at: At, why: Why) -> Self {
        Self { by, at, why }
    }

    /// The close that an I/O error on `by`'s socket means.
    pub fn io(by: By, at: At, error: &std::io::Error) -> Self {
        let why = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Why::Fin,
            std::io::ErrorKind::TimedOut => Why::Timeout,
            _ => Why::Reset,
        };
        Self { by, at, why }
    }
}

impl By {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            By::Client => "client",
            By::Backend => "backend",
            By::Balancer => "balancer",
        }
    }
}

impl At {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            At::Accept => "accept",
            At::Opening => "opening",
            At::Place => "place",
            At::Relay => "relay",
        }
    }
}

impl Why {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Why::Fin => "fin",
            Why::Reset => "reset",
            Why::Timeout => "timeout",
            Why::Limit => "limit",
            Why::Tls => "tls",
            Why::Proxy => "proxy",
            Why::Malformed => "malformed",
            Why::Denied => "denied",
            Why::NoBackend => "no_backend",
            Why::OwnerDown => "owner_down",
            Why::ProtocolMismatch => "protocol_mismatch",
            Why::SessionLocked => "session_locked",
            Why::BackendLost => "backend_lost",
            Why::ReviveFailed => "revive_failed",
            Why::Evicted => "evicted",
            Why::Down => "down",
            Why::Draining => "draining",
            Why::Aborted => "aborted",
        }
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by {} at {}: {}", self.by.label(), self.at.label(), self.why.label())
    }
}
