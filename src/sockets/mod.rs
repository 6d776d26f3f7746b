//! Every listening socket of the process, for clients and for operators: prepared, then committed.
//!
//! A socket is identified by its address in the configuration. While that is there the socket stays open, whatever else
//! a reload changes. A new one is bound before anything is committed, or taken over from systemd or from the process
//! that this one follows. Then nobody is let in before [`Sockets::open`], since the other process still serves.

mod endpoint;
mod places;
pub mod http;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use socket2::SockRef;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::balancer::Balancer;
use crate::config::{AdminAddress, Config, Families, Listener};
use crate::net;
use crate::proxy::accept::{AcceptShared, ListenSocket};
use crate::systemd::{Inherited, Origin, Passed, Purpose};

use endpoint::{Bound, SocketFile};

pub use endpoint::Endpoint;

/// A listener or an admin socket that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct BindFault {
    /// Which.
    pub address: String,
    /// Why not.
    pub error: io::Error,
}

/// The sockets in use.
#[derive(Debug)]
pub struct Sockets {
    balancer: Arc<Balancer>,
    shared: Arc<AcceptShared>,
    inherited: Inherited,
    listeners: HashMap<SocketAddr, Listening>,
    /// At most two.
    admin: Vec<(Endpoint, Serving)>,
    /// The admin sockets and their connections.
    admin_tasks: TaskTracker,
    /// The next process has them: no reload opens any again.
    given_away: bool,
}

/// Sockets that a configuration needs and that were not there: bound, and not in use yet.
#[derive(Debug, Default)]
pub struct Fresh {
    listeners: Vec<(Listener, ListenSocket, Origin)>,
    admin: Vec<(Endpoint, Bound, Origin)>,
}

#[derive(Debug)]
struct Listening {
    policy: Arc<ArcSwap<Listener>>,
    bound: SocketAddr,
    /// For the next process. `None` = from systemd; `inherited` has those.
    copy: Option<OwnedFd>,
    stop: CancellationToken,
    accepting: TaskTracker,
}

/// An admin socket in use. Its task ends with `stop`.
#[derive(Debug)]
struct Serving {
    bound: AdminAddress,
    /// For the next process. `None` = from systemd.
    copy: Option<OwnedFd>,
    file: Option<SocketFile>,
    stop: CancellationToken,
}

/// The sockets of a process as the next one gets them.
#[derive(Debug, Default)]
pub struct SocketCopies {
    /// Those that this process or one before has bound, under the addresses of the configuration.
    pub own: Vec<(Purpose, String, OwnedFd)>,
    /// Those that systemd has passed, under the names of its units.
    pub from_systemd: Vec<(String, OwnedFd)>,
}

impl Sockets {
    /// None in use yet.
    pub fn new(balancer: &Arc<Balancer>, inherited: Inherited) -> Self {
        Self {
            balancer: Arc::clone(balancer),
            shared: Arc::default(),
            inherited,
            listeners: HashMap::new(),
            admin: Vec::new(),
            admin_tasks: TaskTracker::new(),
            given_away: false,
        }
    }

    /// Lets clients and operators in: until then they wait in the sockets' queues.
    pub fn open(&mut self) {
        self.shared.open.cancel();
        self.inherited.settle();
        for (_, serving) in &mut self.admin {
            if serving.copy.is_some() && serving.file.is_none() {
                serving.file = SocketFile::of(&serving.bound);
            }
        }
    }

    /// Copies of all sockets.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub fn socket_copies(&self) -> io::Result<SocketCopies> {
        let mut own = Vec::new();
        for (address, listening) in &self.listeners {
            if let Some(copy) = &listening.copy {
                own.push((Purpose::Listener, address.to_string(), copy.try_clone()?));
            }
        }
        for (endpoint, serving) in &self.admin {
            if let Some(copy) = &serving.copy {
                own.push((endpoint.purpose(), endpoint.to_string(), copy.try_clone()?));
            }
        }
        Ok(SocketCopies { own, from_systemd: self.inherited.copies()? })
    }

    /// The next process serves from now on: this one accepts nothing any more, and does not remove the files of its
    /// sockets.
    pub fn give_away(&mut self) -> Vec<TaskTracker> {
        self.given_away = true;
        for (_, mut serving) in self.admin.drain(..) {
            if let Some(file) = serving.file.take() {
                file.leave();
            }
            serving.stop.cancel();
        }
        self.inherited = Inherited::default();
        self.stop_listeners()
    }

    /// Whether the next process has them.
    pub fn are_given_away(&self) -> bool {
        self.given_away
    }

    /// Listeners: as in the configuration, and as bound.
    pub fn listeners(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        self.listeners.iter().map(|(address, listening)| (*address, listening.bound))
    }

    /// Where an admin socket is bound.
    pub fn admin(&self, endpoint: &Endpoint) -> Option<&AdminAddress> {
        self.admin.iter().find(|(known, _)| known == endpoint).map(|(_, serving)| &serving.bound)
    }

    /// Binds the sockets of `config` that are not there yet.
    ///
    /// # Errors
    /// The first address that cannot be bound.
    pub fn prepare(&mut self, config: &Config) -> Result<Fresh, BindFault> {
        let mut fresh = Fresh::default();
        if self.given_away {
            return Ok(fresh);
        }
        self.compare_families(config)?;
        for listener in &config.listeners {
            if !self.listeners.contains_key(&listener.address) {
                let (listen_socket, origin) =
                    self.listen_socket(listener.address, config).map_err(at(&listener.address))?;
                fresh.listeners.push((listener.clone(), listen_socket, origin));
            }
        }
        for endpoint in endpoints(config) {
            if self.admin(&endpoint).is_none() {
                let (socket, origin) = self.admin_socket(&endpoint, config).map_err(at(&endpoint))?;
                fresh.admin.push((endpoint, socket, origin));
            }
        }
        Ok(fresh)
    }

    /// The address families of a bound socket cannot be changed: reports where they would have to.
    fn compare_families(&self, config: &Config) -> Result<(), BindFault> {
        let listeners = self.listeners.iter().map(|(address, listening)| (*address, &listening.copy));
        let admin = self.admin.iter().filter_map(|(endpoint, serving)| match endpoint.address() {
            AdminAddress::Tcp(address) => Some((address, &serving.copy)),
            AdminAddress::Unix(_) => None,
        });
        for (address, copy) in listeners.chain(admin).filter(|(address, _)| address.is_ipv6()) {
            // systemd's unit decides for its sockets.
            let Some(only_v6) = copy.as_ref().and_then(|copy| SockRef::from(copy).only_v6().ok()) else {
                continue;
            };
            match (config.families(address), only_v6) {
                (Families::Own, false) if address.ip().is_unspecified() => {
                    let why = "it takes IPv4 too since sessile was started: a section of its own for IPv4 needs a restart";
                    return Err(at(&address)(io::Error::new(io::ErrorKind::AddrInUse, why)));
                }
                (Families::Both, true) => {
                    tracing::warn!(%address, "it takes IPv6 only until sessile is restarted: another section took IPv4");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn listen_socket(&mut self, address: SocketAddr, config: &Config) -> io::Result<(ListenSocket, Origin)> {
        let is_tcp = |passed: &Passed| matches!(passed, Passed::Tcp(_));
        let inherited = self.inherited.take(Purpose::Listener, &address.to_string(), is_tcp)?;
        let (socket, origin) = match inherited {
            Some((Passed::Tcp(socket), origin)) => {
                net::prepare(&SockRef::from(&socket), &config.timeouts)?;
                (socket, origin)
            }
            _ => (net::listen(address, config.families(address), &config.timeouts)?, Origin::Own),
        };
        Ok((ListenSocket::new(&socket, &self.balancer.workers)?, origin))
    }

    fn admin_socket(&mut self, endpoint: &Endpoint, config: &Config) -> io::Result<(Bound, Origin)> {
        let family: fn(&Passed) -> bool = match endpoint.address() {
            AdminAddress::Tcp(_) => |passed| matches!(passed, Passed::Tcp(_)),
            AdminAddress::Unix(_) => |passed| matches!(passed, Passed::Unix(_)),
        };
        match self.inherited.take(endpoint.purpose(), &endpoint.to_string(), family)? {
            Some((socket, origin)) => Ok((endpoint::adopt(socket)?, origin)),
            None => {
                Ok((endpoint::bind(&endpoint.address(), |address| config.families(address))?, Origin::Own))
            }
        }
    }

    /// Uses the new sockets, gives kept listeners their new policy, and stops the rest. Connections of a listener that
    /// goes away stay; a request on an admin socket that goes away is answered, since it may be the one that asked for
    /// this.
    pub fn commit(&mut self, config: &Config, fresh: Fresh, pages: impl Fn(&Endpoint) -> Router) {
        if self.given_away {
            return;
        }
        for listener in &config.listeners {
            if let Some(listening) = self.listeners.get(&listener.address) {
                listening.policy.store(Arc::new(listener.clone()));
            }
        }
        self.listeners.retain(|address, listening| {
            let kept = config.listeners.iter().any(|listener| listener.address == *address);
            if !kept {
                listening.stop.cancel();
            }
            kept
        });
        for (listener, listen_socket, origin) in fresh.listeners {
            self.listen(listener, listen_socket, origin);
        }
        self.admin.retain(|(endpoint, serving)| {
            let kept = endpoints(config).contains(endpoint);
            if !kept {
                serving.stop.cancel();
            }
            kept
        });
        for (endpoint, mut socket, origin) in fresh.admin {
            let (bound, stop) = (socket.address().clone(), CancellationToken::new());
            let address = Endpoint::Admin(bound.clone());
            match endpoint {
                Endpoint::Admin(_) => tracing::info!(%address, "serving operators"),
                Endpoint::Metrics(_) => tracing::info!(%address, "serving metrics"),
            }
            let (copy, file) = (kept(origin, socket.copy()), socket.file());
            let (router, open) = (pages(&endpoint), self.shared.open.clone());
            let sealed = endpoint.may_be_sealed().then(|| Arc::clone(&self.balancer));
            let serving = http::serve(socket, router, sealed, self.admin_tasks.clone(), open, stop.clone());
            self.admin_tasks.spawn(serving);
            self.admin.push((endpoint, Serving { bound, copy, file, stop }));
        }
    }

    fn listen(&mut self, listener: Listener, listen_socket: ListenSocket, origin: Origin) {
        let address = listener.address;
        let bound = listen_socket.local_addr().unwrap_or(address);
        let copy = kept(origin, listen_socket.copy());
        let policy = Arc::new(ArcSwap::from_pointee(listener));
        let stop = CancellationToken::new();
        tracing::info!(address = %bound, "listening");
        self.balancer.metrics.listens(&address.to_string());
        let accepting = listen_socket.open(&self.balancer, &self.shared, &policy, &stop);
        self.listeners.insert(address, Listening { policy, bound, copy, stop, accepting });
    }

    /// Accepts no more clients; each is empty when its socket is closed and its queue served.
    pub fn stop_listeners(&mut self) -> Vec<TaskTracker> {
        let stop = |listening: Listening| {
            listening.stop.cancel();
            listening.accepting
        };
        self.listeners.drain().map(|(_, listening)| stop(listening)).collect()
    }

    /// Closes the admin sockets; what is returned is empty when their last answer is out.
    pub fn stop_admin(&mut self) -> TaskTracker {
        for (_, serving) in self.admin.drain(..) {
            serving.stop.cancel();
        }
        self.admin_tasks.close();
        self.admin_tasks.clone()
    }
}

/// A copy of an own socket for the next process; without it only upgrades fail, with an error.
fn kept(origin: Origin, copy: io::Result<OwnedFd>) -> Option<OwnedFd> {
    copy.ok().filter(|_| origin == Origin::Own)
}

fn at(address: &impl ToString) -> impl FnOnce(io::Error) -> BindFault {
    let address = address.to_string();
    move |error| BindFault { address, error }
}

/// The admin sockets of a configuration.
fn endpoints(config: &Config) -> Vec<Endpoint> {
    let all = Endpoint::Admin(config.admin.address.clone());
    std::iter::once(all).chain(config.admin.metrics_address.map(Endpoint::Metrics)).collect()
}
