//! The fleet as configured: what a backend is, what its address stands for, and how names are looked up.
//!
//! Part of `model`, whose guarantees hold here too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::tls::BackendTls;

/// One backend as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// Its name: in the ring, in metrics, in commands. `[A-Za-z0-9._-]`, 1 to 63 bytes, the first a letter or digit.
    pub name: String,
    /// `host:port`; with [`Resolve::Srv`] the name of a service.
    pub address: String,
    /// What the address stands for.
    pub resolve: Resolve,
    /// Share of new sessions; 1 to 100.
    pub weight: u32,
    /// What the file says it may take.
    pub state: AdminState,
    /// Open connections to it on clients' behalf.
    pub connections: Option<usize>,
    /// It speaks TLS.
    pub tls: Option<Arc<BackendTls>>,
}

/// What a backend's address stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolve {
    /// One server, looked up by the system.
    Dial,
    /// A server for each address record.
    All,
    /// A server for each SRV record.
    Srv,
}

/// How names that stand for many backends are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The name servers to ask; none = those of the system.
    pub nameservers: Vec<SocketAddr>,
    /// Records are used at least so long.
    pub ttl_min: Duration,
    /// And at most so long; not less than `ttl_min`.
    pub ttl_max: Duration,
    /// For one lookup as a whole.
    pub timeout: Duration,
    /// Backends found for all names together, at most.
    pub backends: usize,
    /// A server that has left the fleet is asked about sessions until it has held none, or been silent, for so long.
    pub forget: Duration,
}

/// What an operator lets a backend take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdminState {
    /// Everything.
    Ready,
    /// Nothing new; sessions it has stay.
    Drain,
    /// Nothing but connections to sessions that are live there.
    Maint,
}

impl AdminState {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Ready, Self::Drain, Self::Maint];

    /// The word used in the file, in commands and as a metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }

    /// The one of this word.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.label() == word)
    }
}
