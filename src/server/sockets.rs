//! Every listening socket of the process, for clients and for operators: prepared, then committed.
//!
//! A socket is known by the address in the configuration. One that stays there stays open, whatever else a reload
//! changes; what is new is bound before anything is committed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::{self, Bound, Endpoint};
use super::outcome::StartFault;
use crate::balancer::Balancer;
use crate::config::{AdminAddress, Config, Listener};
use crate::net;
use crate::proxy::accept::{Door, Gate};

/// The sockets in use.
#[derive(Debug)]
pub(super) struct Sockets {
    balancer: Arc<Balancer>,
    door: Arc<Door>,
    listeners: HashMap<SocketAddr, Listening>,
    /// At most two.
    admin: Vec<(Endpoint, Serving)>,
    /// The admin sockets and their connections.
    desk: TaskTracker,
}

/// Sockets that a configuration needs and that were not there: bound, and not in use yet.
#[derive(Debug)]
pub(super) struct Fresh {
    listeners: Vec<(Listener, Gate)>,
    admin: Vec<(Endpoint, Bound)>,
}

#[derive(Debug)]
struct Listening {
    policy: Arc<ArcSwap<Listener>>,
    bound: SocketAddr,
    stop: CancellationToken,
    accepting: TaskTracker,
}

/// An admin socket in use. Its task ends with `stop`.
#[derive(Debug)]
struct Serving {
    bound: AdminAddress,
    stop: CancellationToken,
}

impl Sockets {
    /// None yet.
    pub(super) fn new(balancer: &Arc<Balancer>) -> Self {
        Self {
            balancer: Arc::clone(balancer),
            door: Arc::default(),
            listeners: HashMap::new(),
            admin: Vec::new(),
            desk: TaskTracker::new(),
        }
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
    pub(super) fn prepare(&self, config: &Config) -> Result<Fresh, StartFault> {
        let mut listeners = Vec::new();
        for listener in &config.listeners {
            if !self.listeners.contains_key(&listener.address) {
                let address = listener.address.to_string();
                let gate = net::listen(listener.address, &config.timeouts)
                    .and_then(|socket| Gate::new(&socket, &self.balancer.workers));
                let gate = gate.map_err(|error| StartFault::Bind { address, error })?;
                listeners.push((listener.clone(), gate));
            }
        }
        let mut admin = Vec::new();
        for endpoint in endpoints(config) {
            if self.admin(&endpoint).is_none() {
                let address = endpoint.to_string();
                let socket = http::bind(&endpoint.address());
                let socket = socket.map_err(|error| StartFault::Bind { address, error })?;
                admin.push((endpoint, socket));
            }
        }
        Ok(Fresh { listeners, admin })
    }

    /// Uses the new sockets, tells the kept listeners their policy, and stops the rest. Connections that came through a
    /// listener that goes away stay; a request on an admin socket that goes away is answered, as it may be the one that
    /// asked for this.
    pub(super) fn commit(&mut self, config: &Config, fresh: Fresh, pages: impl Fn(&Endpoint) -> Router) {
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
        for (listener, gate) in fresh.listeners {
            self.listen(listener, gate);
        }
        self.admin.retain(|(endpoint, serving)| {
            let kept = endpoints(config).contains(endpoint);
            if !kept {
                serving.stop.cancel();
            }
            kept
        });
        for (endpoint, socket) in fresh.admin {
            let (bound, stop) = (socket.address().clone(), CancellationToken::new());
            tracing::info!(address = %Endpoint::Admin(bound.clone()), "serving operators");
            let router = pages(&endpoint);
            self.desk.spawn(socket.serve(router, self.desk.clone(), stop.clone()));
            self.admin.push((endpoint, Serving { bound, stop }));
        }
    }

    fn listen(&mut self, listener: Listener, gate: Gate) {
        let address = listener.address;
        let bound = gate.local_addr().unwrap_or(address);
        let policy = Arc::new(ArcSwap::from_pointee(listener));
        let stop = CancellationToken::new();
        tracing::info!(address = %bound, "listening");
        let accepting = gate.open(&self.balancer, &self.door, &policy, &stop);
        self.listeners.insert(address, Listening { policy, bound, stop, accepting });
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

/// The admin sockets of a configuration.
fn endpoints(config: &Config) -> Vec<Endpoint> {
    let all = Endpoint::Admin(config.admin.address.clone());
    std::iter::once(all).chain(config.admin.metrics_address.map(Endpoint::Metrics)).collect()
}
