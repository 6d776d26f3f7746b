//! Every listening socket of the process, for clients and for operators: prepared, then committed.
//!
//! A socket is known by the address in the configuration. One that stays there stays open, whatever else a reload
//! changes; what is new is bound before anything is committed, or taken over: from systemd, or from the process that this
//! one follows. Then nobody is let in before the door is opened, since the other process still serves.

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

use super::endpoint::{self, Bound, Endpoint, SocketFile};
use super::http;
use super::outcome::StartFault;
use crate::balancer::Balancer;
use crate::config::{AdminAddress, Config, Listener, Timeouts};
use crate::net;
use crate::proxy::accept::{Door, Gate};
use crate::systemd::{Inherited, Origin, Passed, Purpose};

/// The sockets in use.
#[derive(Debug)]
pub(super) struct Sockets {
    balancer: Arc<Balancer>,
    door: Arc<Door>,
    inherited: Inherited,
    listeners: HashMap<SocketAddr, Listening>,
    /// At most two.
    admin: Vec<(Endpoint, Serving)>,
    /// The admin sockets and their connections.
    desk: TaskTracker,
    /// A successor has them: no reload opens any again.
    given_away: bool,
}

/// Sockets that a configuration needs and that were not there: bound, and not in use yet.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    listeners: Vec<(Listener, Gate, Origin)>,
    admin: Vec<(Endpoint, Bound, Origin)>,
}

#[derive(Debug)]
struct Listening {
    policy: Arc<ArcSwap<Listener>>,
    bound: SocketAddr,
    /// For a successor. `None` = systemd's, which are at hand elsewhere.
    copy: Option<OwnedFd>,
    stop: CancellationToken,
    accepting: TaskTracker,
}

/// An admin socket in use. Its task ends with `stop`.
#[derive(Debug)]
struct Serving {
    bound: AdminAddress,
    /// For a successor. `None` = systemd's.
    copy: Option<OwnedFd>,
    file: Option<SocketFile>,
    stop: CancellationToken,
}

/// The sockets of a process as its successor gets them.
#[derive(Debug, Default)]
pub(super) struct Heirlooms {
    /// What this process or one before has bound, under the addresses of the configuration.
    pub(super) own: Vec<(Purpose, String, OwnedFd)>,
    /// What systemd has passed, under the names of its units.
    pub(super) from_systemd: Vec<(String, OwnedFd)>,
}

impl Sockets {
    /// None in use yet.
    pub(super) fn new(balancer: &Arc<Balancer>, inherited: Inherited) -> Self {
        Self {
            balancer: Arc::clone(balancer),
            door: Arc::default(),
            inherited,
            listeners: HashMap::new(),
            admin: Vec::new(),
            desk: TaskTracker::new(),
            given_away: false,
        }
    }

    /// Lets clients and operators in: until then they wait in the sockets' queues.
    pub(super) fn open(&mut self) {
        self.door.open.cancel();
        self.inherited.settle();
        for (_, serving) in &mut self.admin {
            if serving.copy.is_some() && serving.file.is_none() {
                serving.file = SocketFile::of(&serving.bound);
            }
        }
    }

    /// All sockets once more.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub(super) fn heirlooms(&self) -> io::Result<Heirlooms> {
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
        Ok(Heirlooms { own, from_systemd: self.inherited.copies()? })
    }

    /// A successor serves from now on: this process lets nobody in any more, and leaves the names of its sockets alone.
    pub(super) fn give_away(&mut self) -> Vec<TaskTracker> {
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

    /// Whether a successor has them.
    pub(super) fn are_given_away(&self) -> bool {
        self.given_away
    }

    /// Listeners: as in the configuration, and as bound.
    pub(super) fn listeners(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        self.listeners.iter().map(|(address, listening)| (*address, listening.bound))
    }

    /// Where an admin socket is bound.
    pub(super) fn admin(&self, endpoint: &Endpoint) -> Option<&AdminAddress> {
        self.admin.iter().find(|(known, _)| known == endpoint).map(|(_, serving)| &serving.bound)
    }

    /// Binds what `config` needs and is not there.
    ///
    /// # Errors
    /// The first address that cannot be bound.
    pub(super) fn prepare(&mut self, config: &Config) -> Result<Fresh, StartFault> {
        let mut fresh = Fresh::default();
        if self.given_away {
            return Ok(fresh);
        }
        for listener in &config.listeners {
            if !self.listeners.contains_key(&listener.address) {
                let (gate, origin) =
                    self.gate(listener.address, &config.timeouts).map_err(at(&listener.address))?;
                fresh.listeners.push((listener.clone(), gate, origin));
            }
        }
        for endpoint in endpoints(config) {
            if self.admin(&endpoint).is_none() {
                let (socket, origin) = self.desk(&endpoint).map_err(at(&endpoint))?;
                fresh.admin.push((endpoint, socket, origin));
            }
        }
        Ok(fresh)
    }

    fn gate(&mut self, address: SocketAddr, timeouts: &Timeouts) -> io::Result<(Gate, Origin)> {
        let is_tcp = |passed: &Passed| matches!(passed, Passed::Tcp(_));
        let inherited = self.inherited.take(Purpose::Listener, &address.to_string(), is_tcp)?;
        let (socket, origin) = match inherited {
            Some((Passed::Tcp(socket), origin)) => {
                net::prepare(&SockRef::from(&socket), timeouts)?;
                (socket, origin)
            }
            _ => (net::listen(address, timeouts)?, Origin::Own),
        };
        Ok((Gate::new(&socket, &self.balancer.workers)?, origin))
    }

    fn desk(&mut self, endpoint: &Endpoint) -> io::Result<(Bound, Origin)> {
        let family: fn(&Passed) -> bool = match endpoint.address() {
            AdminAddress::Tcp(_) => |passed| matches!(passed, Passed::Tcp(_)),
            AdminAddress::Unix(_) => |passed| matches!(passed, Passed::Unix(_)),
        };
        match self.inherited.take(endpoint.purpose(), &endpoint.to_string(), family)? {
            Some((socket, origin)) => Ok((endpoint::adopt(socket)?, origin)),
            None => Ok((endpoint::bind(&endpoint.address())?, Origin::Own)),
        }
    }

    /// Uses the new sockets, tells the kept listeners their policy, and stops the rest. Connections that came through a
    /// listener that goes away stay; a request on an admin socket that goes away is answered, as it may be the one that
    /// asked for this.
    pub(super) fn commit(&mut self, config: &Config, fresh: Fresh, pages: impl Fn(&Endpoint) -> Router) {
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
        for (listener, gate, origin) in fresh.listeners {
            self.listen(listener, gate, origin);
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
            tracing::info!(address = %Endpoint::Admin(bound.clone()), "serving operators");
            let (copy, file) = (kept(origin, socket.copy()), socket.file());
            let (router, open) = (pages(&endpoint), self.door.open.clone());
            let sealed = endpoint.may_be_sealed().then(|| Arc::clone(&self.balancer));
            let serving = http::serve(socket, router, sealed, self.desk.clone(), open, stop.clone());
            self.desk.spawn(serving);
            self.admin.push((endpoint, Serving { bound, copy, file, stop }));
        }
    }

    fn listen(&mut self, listener: Listener, gate: Gate, origin: Origin) {
        let address = listener.address;
        let bound = gate.local_addr().unwrap_or(address);
        let copy = kept(origin, gate.copy());
        let policy = Arc::new(ArcSwap::from_pointee(listener));
        let stop = CancellationToken::new();
        tracing::info!(address = %bound, "listening");
        let accepting = gate.open(&self.balancer, &self.door, &policy, &stop);
        self.listeners.insert(address, Listening { policy, bound, copy, stop, accepting });
    }

    /// Accepts no more clients; each is empty when its socket is closed and its queue served.
    pub(super) fn stop_listeners(&mut self) -> Vec<TaskTracker> {
        let stop = |listening: Listening| {
            listening.stop.cancel();
            listening.accepting
        };
        self.listeners.drain().map(|(_, listening)| stop(listening)).collect()
    }

    /// Closes the admin sockets; what is returned is empty when their last answer is out.
    pub(super) fn stop_admin(&mut self) -> TaskTracker {
        for (_, serving) in self.admin.drain(..) {
            serving.stop.cancel();
        }
        self.desk.close();
        self.desk.clone()
    }
}

/// A socket of one's own for a successor; without it only upgrades fail, and say so.
fn kept(origin: Origin, copy: io::Result<OwnedFd>) -> Option<OwnedFd> {
    copy.ok().filter(|_| origin == Origin::Own)
}

fn at(address: &impl ToString) -> impl FnOnce(io::Error) -> StartFault {
    let address = address.to_string();
    move |error| StartFault::Bind { address, error }
}

/// The admin sockets of a configuration.
fn endpoints(config: &Config) -> Vec<Endpoint> {
    let all = Endpoint::Admin(config.admin.address.clone());
    std::iter::once(all).chain(config.admin.metrics_address.map(Endpoint::Metrics)).collect()
}
