//! The configuration as the rest of the program sees it: typed, complete and sound.
//!
//! Nothing here can be out of range or dangling: `check` builds it from the raw file, or reports every problem.
//! A duration or bound of zero in the file means "unlimited" and is `None` here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

pub use super::backend::{AdminState, BackendSpec, Discovery, Resolve};
use super::method_policy::MethodPolicy;
pub use super::restart::{Restart, RestartCommand};
pub use super::sessions::Sessions;
use super::tls::{BackendTls, ListenerTls};

/// One configuration file, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect; at least one, addresses distinct.
    pub listeners: Vec<Listener>,
    /// Where operators and Prometheus connect.
    pub admin: Admin,
    /// How sessions find a backend.
    pub placement: Placement,
    /// How backends are probed.
    pub health: Health,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Bounds.
    pub limits: Limits,
    /// What becomes of sessions whose servers have gone.
    pub sessions: Sessions,
    /// What sessile itself needs to talk to backends.
    pub upstream: Upstream,
    /// How names that stand for many backends are looked up.
    pub discovery: Discovery,
    /// The fleet; at least one, names distinct (addresses may repeat).
    pub backends: Vec<BackendSpec>,
}

/// One listening socket and the policy of the connections that came through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address to bind; its text is the metric label.
    pub address: SocketAddr,
    /// What decides where a frame goes.
    pub routing: Routing,
    /// What clients of this listener may call: until a session is named, or always with routing by session.
    pub methods: MethodPolicy,
    /// With routing by session: which `session.lifecycle` events clients see.
    pub lifecycle: Lifecycle,
    /// Open connections that came through it.
    pub connections: Option<usize>,
    /// Connections it takes in a second; further ones wait in the kernel's queue.
    pub accept_rate: Option<u32>,
    /// Clients speak TLS.
    pub tls: Option<Arc<ListenerTls>>,
    /// Connections come through proxies that send a PROXY header; `None` = straight from clients.
    pub proxy_protocol: Option<Proxies>,
}

/// The proxies that may, and must, send a PROXY header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxies {
    /// Networks; at least one.
    pub trusted: Vec<IpNet>,
}

impl Config {
    /// Keeps the TLS of `old` where it has not changed, so that its TLS sessions can be resumed.
    pub fn keep_tls(&mut self, old: &Self) {
        for listener in &mut self.listeners {
            let known = old.listeners.iter().find(|known| known.address == listener.address);
            if let Some(known) = known.filter(|known| known.tls == listener.tls) {
                listener.tls.clone_from(&known.tls);
            }
        }
        if self.admin.tls == old.admin.tls {
            self.admin.tls.clone_from(&old.admin.tls);
        }
        for backend in &mut self.backends {
            let known = old.backends.iter().find(|known| known.name == backend.name);
            if let Some(known) = known.filter(|known| known.tls == backend.tls) {
                backend.tls.clone_from(&known.tls);
            }
        }
    }
}

impl Proxies {
    /// Whether `ip` is one of them.
    pub fn trust(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.trusted.iter().any(|network| network.contains(&ip))
    }
}

/// What decides where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// The first session that its connection names.
    Connection,
    /// Its own session.
    Session,
}

/// Which broadcast events about sessions a client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Those of sessions it has named.
    Named,
    /// All, as without a balancer: other tenants' sessions too.
    All,
}

/// The admin endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Everything, reads and writes.
    pub address: AdminAddress,
    /// TLS at `address`, which is then not a Unix socket.
    pub tls: Option<Arc<ListenerTls>>,
    /// Demanded at `address` for everything but the empty page. If the address is open, there is a token, or `tls` demands
    /// certificates, or both.
    pub token: Option<Secret>,
    /// `/metrics`, `/healthz` and `/readyz` only.
    pub metrics_address: Option<SocketAddr>,
}

/// Where the admin socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// An address of this machine.
    Tcp(SocketAddr),
    /// An absolute path; the socket is made with mode 0600.
    Unix(PathBuf),
}

impl AdminAddress {
    /// Whether other machines can reach it: then every request needs a token or a certificate.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Tcp(address) if !address.ip().to_canonical().is_loopback())
    }
}

/// How sessions find a backend.
#[derive(Clone, Debug)]
pub struct Placement {
    /// For sessions nobody has.
    pub strategy: Strategy,
    /// The first capture group is the affinity key; no match means the whole ID.
    pub affinity_pattern: Option<regex::bytes::Regex>,
    /// Where session state lives.
    pub storage: Storage,
    /// When to ask the fleet who has a session.
    pub locate: LocatePolicy,
    /// Who answers a client's first `connect`.
    pub openings: Openings,
    /// Bound on a backend's live sessions, as a multiple of its fair share; `None` = unbounded, else ≥ 1.
    pub load_factor: Option<f64>,
    /// How long a backend that came up takes to get its whole share of new sessions; `None` = it gets it at once.
    pub slow_start: Option<Duration>,
    /// What happens to relayed connections of a backend that probes say is down.
    pub on_down: OnDown,
    /// Keys the ring's hash; two balancers agree only with equal keys.
    pub hash_key: Secret,
}

impl PartialEq for Placement {
    fn eq(&self, other: &Self) -> bool {
        let pattern = |p: &Self| p.affinity_pattern.as_ref().map(|r| r.as_str().to_owned());
        self.strategy == other.strategy
            && pattern(self) == pattern(other)
            && self.storage == other.storage
            && self.locate == other.locate
            && self.openings == other.openings
            && self.load_factor == other.load_factor
            && self.slow_start == other.slow_start
            && self.on_down == other.on_down
            && self.hash_key == other.hash_key
    }
}

/// Which backend a session nobody has goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The same key, the same backend, whoever computes it.
    ConsistentHash,
    /// In turn, by weight.
    RoundRobin,
}

/// Where the servers keep their sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Learned from what the backends say of each session.
    Auto,
    /// Every backend can resume every session.
    Shared,
    /// Only the backend that made a session can resume it.
    Local,
}

/// When the fleet is asked for an unknown session ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocatePolicy {
    /// Always, but for a create with a random UUID.
    Auto,
    /// Always.
    Always,
    /// Never.
    Off,
}

/// Who answers a client's first `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Openings {
    /// The balancer, where it knows what every backend would say.
    Learned,
    /// Always a backend.
    Scouted,
}

/// What a backend that went down means for its relayed connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// Nothing: a slow server finishes its turns, and TCP finds a dead one.
    Keep,
    /// They are closed.
    Close,
}

/// Probing.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Between two probes of a backend, jittered by a tenth.
    pub interval: Duration,
    /// For one probe's answer; at most `interval`.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up; 1 or more.
    pub rise: u32,
    /// Failures in a row that bring it down; 1 or more.
    pub fall: u32,
    /// The share of backends (0 to 1) that must be up, else probes are doubted; `None` = never doubted.
    pub panic_threshold: Option<f64>,
    /// What is done about backends that stay down.
    pub restart: Restart,
}

/// Deadlines; `None` = unlimited where 0 is allowed in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the first frame and for every begun frame of an opening.
    pub opening: Duration,
    /// For one dial.
    pub connect: Duration,
    /// For the fleet to say who has a session.
    pub locate: Duration,
    /// For everything in flight with the scout to settle, and for one placement as a whole.
    pub rehome: Duration,
    /// From one side's FIN to the other's.
    pub half_close: Option<Duration>,
    /// Without a byte in either direction of a relay.
    pub idle: Option<Duration>,
    /// How long a client that vanished may come back to its running turns; `None` = not at all.
    pub linger: Option<Duration>,
    /// From SIGTERM to the last connection's close.
    pub drain: Option<Duration>,
    /// Without a byte from a peer, until the kernel asks whether it is there; whole seconds.
    pub keepalive: Option<Duration>,
    /// Without an acknowledgement, until a peer counts as gone; `None` = the kernel's own patience.
    pub user_timeout: Option<Duration>,
    /// Over how long the closes at the end of a drain are spread, within its limit; `None` = all at once.
    pub drain_spread: Option<Duration>,
    /// For the new process of an upgrade to become ready.
    pub upgrade: Duration,
    /// From the new process's first to the old one's last connection.
    pub upgrade_drain: Option<Duration>,
}

/// Bounds; `None` = unlimited where 0 is allowed in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open client connections, all listeners together.
    pub connections: Option<usize>,
    /// Open client connections of one address (IPv6: one /64).
    pub connections_per_ip: Option<usize>,
    /// Bytes one opening may hold: frames not yet sent and state frames kept for replay.
    pub opening_bytes: usize,
    /// Bytes all openings together may hold.
    pub opening_memory: Option<usize>,
    /// Links kept for running turns of clients that vanished.
    pub parked: Option<usize>,
    /// Remembered placements of sessions that are not live.
    pub pins: usize,
    /// Processes before this one that still carry connections; 1 or more.
    pub old_processes: usize,
}

/// What sessile needs for its own connections to backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// For probes and locates only, never put into a client's frame.
    pub connection_token: Option<Secret>,
    /// TLS towards every backend without its own setting; each [`BackendSpec`] has it already.
    pub tls: Option<Arc<BackendTls>>,
}

/// The words of the file for a closed set of choices, in the order of the documentation.
macro_rules! words {
    ($choice:ident: $($variant:ident = $word:literal),+) => {
        impl $choice {
            /// All of them, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word used in the file and in logs.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }
    };
}

words!(Routing: Connection = "connection", Session = "session");
words!(Resolve: Dial = "dial", All = "all", Srv = "srv");
words!(Lifecycle: Named = "named", All = "all");
words!(Strategy: ConsistentHash = "consistent-hash", RoundRobin = "round-robin");
words!(Storage: Auto = "auto", Shared = "shared", Local = "local");
words!(Openings: Learned = "learned", Scouted = "scouted");
words!(LocatePolicy: Auto = "auto", Always = "always", Off = "off");
words!(OnDown: Keep = "keep", Close = "close");

/// Text that must not reach a log: `Debug` hides it, there is no `Display`, and it is wiped when dropped.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: String) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_wiped_and_not_shown() {
        fn is_wiped(_: &impl zeroize::ZeroizeOnDrop) {}
        let secret = Secret::new("hunter2".into());
        is_wiped(&secret.0);
        assert!(!format!("{secret:?} {secret:#?}").contains("hunter2"));
    }
}
