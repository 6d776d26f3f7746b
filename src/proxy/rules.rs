//! What a listener allows its clients, as the configuration in force says it.
//!
//! A connection may outlive many reloads, so this is looked up again before its frames are judged: by the listener's
//! address. One that has left the file keeps what it had last.

use std::sync::Arc;

use crate::balancer::Balancer;
use crate::config::{Config, Listener};

/// The rules of the listener through which one connection came.
pub struct Rules<'a> {
    /// As it was when the connection was accepted.
    accepted: &'a Listener,
    /// The last configuration that had it.
    config: Arc<Config>,
}

impl<'a> Rules<'a> {
    /// As they are in `config`.
    pub(super) fn new(accepted: &'a Listener, config: &Arc<Config>) -> Self {
        Self { accepted, config: Arc::clone(config) }
    }

    /// Looks whether they have changed. Cheap: nearly always one pointer is compared.
    pub(super) fn renew(&mut self, balancer: &Balancer) {
        let now = balancer.now();
        if !Arc::ptr_eq(&now.config, &self.config) && self.found_in(&now.config).is_some() {
            self.config = Arc::clone(&now.config);
        }
    }

    /// The listener, as it is now.
    pub(super) fn listener(&self) -> &Listener {
        self.found_in(&self.config).unwrap_or(self.accepted)
    }

    fn found_in<'c>(&self, config: &'c Config) -> Option<&'c Listener> {
        config.listeners.iter().find(|listener| listener.address == self.accepted.address)
    }
}
