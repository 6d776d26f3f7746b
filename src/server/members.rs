//! From a configuration and what was found to the members of the fleet: what reloads and discovery have in common.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Weak};

use super::discover::{Key, Name, seek};
use super::outcome::StartFault;
use super::reload::{Inner, Reloader};
use crate::config::{BackendSpec, Config};
use crate::discovery::{Answer, Fault, Found, Spec};
use crate::fleet::{Ask, Backend, Health, Ring};
use crate::link::attend;
use crate::snapshot::{Member, Snapshot};

/// A fleet that can be committed.
pub(super) struct Fleet {
    pub(super) config: Arc<Config>,
    pub(super) specs: Vec<Spec>,
    pub(super) ring: Arc<Ring>,
}

impl Reloader {
    /// The fleet of `config` and of what was found so far, with its ring.
    ///
    /// # Errors
    /// A thread that cannot be had.
    pub(super) async fn fleet(&self, config: Arc<Config>) -> Result<Fleet, StartFault> {
        let now = self.balancer().snapshot();
        let (specs, left_out) = self.inner.lock().await.groups.fleet(&config);
        if left_out > 0 {
            tracing::error!(left_out, "more servers are found than discovery.backends has room for");
        }
        let named = |specs: &[Spec]| -> Vec<(String, u32)> {
            specs.iter().map(|spec| (spec.backend.name.clone(), spec.backend.weight)).collect()
        };
        let names = named(&specs);
        let old = now.members.iter().map(|member| (member.backend.name().to_string(), member.weight));
        let same = now.config.placement.hash_key == config.placement.hash_key && now.generation > 0;
        let ring = if same && old.eq(names.iter().cloned()) {
            Arc::clone(&now.ring)
        } else {
            let config = Arc::clone(&config);
            // A thousand backends are a million points: not for a thread that carries bytes.
            let built = tokio::task::spawn_blocking(move || {
                let names = names.iter().map(|(name, weight)| (name.as_str(), *weight));
                Ring::new(names, config.placement.hash_key.reveal())
            });
            Arc::new(built.await.map_err(|error| StartFault::Signals(io::Error::other(error)))?)
        };
        Ok(Fleet { config, specs, ring })
    }

    /// Puts a fleet in force.
    pub(super) fn install(&self, inner: &mut Inner, fleet: Fleet, generation: u64) {
        let Fleet { config, specs, ring } = fleet;
        let now = self.balancer().snapshot();
        inner.backends.retain(|backend| backend.strong_count() > 0);
        let living: Vec<_> = inner.backends.iter().filter_map(Weak::upgrade).collect();
        let known: HashMap<_, _> =
            living.iter().map(|known| ((&**known.name(), &**known.address()), known)).collect();
        let member = |Spec { backend, source }: &Spec| {
            let known = known.get(&(&*backend.name, &*backend.address));
            self.member(inner, backend, source.clone(), known.copied())
        };
        let members: Vec<Member> = specs.iter().map(member).collect();
        let stay: HashSet<_> = members.iter().map(|member| Arc::as_ptr(&member.backend)).collect();
        for old in now.members.iter().filter(|old| !stay.contains(&Arc::as_ptr(&old.backend))) {
            old.backend.retire();
        }
        inner.commands.keep(|name| specs.iter().any(|spec| spec.backend.name == name));
        let found = members.iter().filter(|member| member.source.is_some()).count();
        self.balancer().metrics.discovered_backends.set(i64::try_from(found).unwrap_or(i64::MAX));
        self.balancer().commit(Snapshot { generation, config, members, ring });
    }

    /// Has every name that is new looked up from now on.
    pub(super) fn seek(self: &Arc<Self>, inner: &mut Inner, config: &Config) {
        for (spec, stop) in inner.groups.adopt(config, &self.stop) {
            let seeking = seek(Arc::clone(self), spec);
            self.attendants.spawn(async move { stop.run_until_cancelled(seeking).await });
        }
    }

    pub(super) async fn found(&self, key: &Key) -> Vec<Found> {
        self.inner.lock().await.groups.found(key)
    }

    /// The names that are looked up.
    pub async fn names(&self) -> Vec<Name> {
        self.inner.lock().await.groups.names()
    }

    /// Takes what a lookup found: the fleet of the configuration in force, made anew.
    pub(super) async fn discovered(&self, key: &Key, result: &Result<Answer, Fault>) {
        let turn = self.turn.lock().await;
        let label = result.as_ref().map_or_else(|fault| fault.label(), |_| "success");
        self.balancer().metrics.discovery_lookups.with_label_values(&[label]).inc();
        if self.inner.lock().await.groups.take(key, result) {
            let config = Arc::clone(&self.balancer().now().config);
            match self.fleet(config).await {
                Ok(fleet) => {
                    let inner = &mut *self.inner.lock().await;
                    let generation = self.balancer().now().generation;
                    self.install(inner, fleet, generation);
                }
                Err(error) => tracing::error!(%error, "what was found could not be put in force"),
            }
        }
        self.inner.lock().await.groups.asked(key);
        drop(turn);
    }

    /// The member that `spec` describes: the backend `known` by this name and address goes on being itself.
    fn member(
        &self,
        inner: &mut Inner,
        spec: &BackendSpec,
        source: Option<Arc<str>>,
        known: Option<&Arc<Backend>>,
    ) -> Member {
        let BackendSpec { name, address, weight, state, connections, tls, resolve: _ } = spec;
        let backend = known.filter(|known| known.enlist()).cloned().unwrap_or_else(|| {
            let series = self.balancer().metrics.backend(&name.as_str().into());
            let (backend, asked) = Backend::new(name, address, series);
            if self.balancer().is_probed() {
                backend.newcomer();
            }
            inner.backends.push(Arc::downgrade(&backend));
            self.attend(&backend, asked);
            backend
        });
        let state_now = inner.commands.in_force(name, *state);
        backend.series().state(state_now);
        backend.bound(*connections);
        backend.speak(tls.clone());
        Member { backend, weight: *weight, state: state_now, file_state: *state, source }
    }

    fn attend(&self, backend: &Arc<Backend>, asked: tokio::sync::mpsc::Receiver<Ask>) {
        let balancer = Arc::clone(self.balancer());
        let config = move || Arc::clone(&balancer.now().config);
        self.attendants.spawn(attend(Arc::clone(backend), asked, config, self.stop.clone()));
    }

    /// Lets openings go on when every name of the first configuration has been looked up and every backend probed once.
    pub(super) async fn announce_first_round(&self) {
        let balancer = Arc::clone(self.balancer());
        let lookups = self.inner.lock().await.groups.first_lookups();
        let stop = self.stop.clone();
        let round = async move {
            for lookup in lookups {
                lookup.cancelled().await;
            }
            let backends: Vec<_> =
                balancer.now().members.iter().map(|member| Arc::clone(&member.backend)).collect();
            for backend in backends {
                let mut standing = backend.standing();
                let probed = standing.wait_for(|standing| standing.health != Health::Unknown);
                // One that leaves the configuration meanwhile is probed no more.
                let patience = balancer.now().config.health.timeout.saturating_mul(2);
                if tokio::time::timeout(patience, probed).await.is_err() {
                    tracing::debug!(backend = %backend.name(), "was not probed in the first round");
                }
            }
            balancer.probed();
        };
        self.attendants.spawn(async move { stop.run_until_cancelled(round).await });
    }
}
