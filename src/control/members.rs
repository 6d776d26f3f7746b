//! From a configuration and the servers found by DNS to the members of the fleet, for reloads and lookups.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use super::outcome::StartFault;
use super::reloader::{Inner, Reloader};
use super::retired::retired;
use crate::config::{BackendSpec, BackendTls, Config};
use crate::discovery::Spec;
use crate::fleet::{Backend, Questions, Ring};
use crate::link::{attend, attend_clients};
use crate::snapshot::{Member, Snapshot};
use crate::wire::SessionId;

/// A fleet that can be committed.
pub(super) struct Fleet {
    pub(super) config: Arc<Config>,
    pub(super) specs: Vec<Spec>,
    pub(super) ring: Arc<Ring>,
}

impl Reloader {
    /// The fleet of `config` and of the servers found so far, with its ring.
    ///
    /// # Errors
    /// No thread could be started.
    pub(super) async fn fleet(&self, config: Arc<Config>) -> Result<Fleet, StartFault> {
        let now = self.balancer().snapshot();
        let (specs, left_out) = self.inner.lock().await.groups.fleet(&config);
        if left_out > 0 {
            tracing::error!(left_out, "more servers were found than discovery.backends allows");
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
            // A thousand backends are a million points: too much work for the thread of a connection.
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
        let identity = |known: &Arc<Backend>| (known.name().to_string(), known.socket());
        // The last one counts: of two with the same name and server, the older is over.
        let known: HashMap<_, _> = living.iter().map(|known| (identity(known), known)).collect();
        let member = |spec: &Spec| {
            let known = known.get(&(spec.backend.name.clone(), spec.at));
            self.member(
                inner,
                spec,
                known.copied().filter(|known| **known.address() == *spec.backend.address),
            )
        };
        let members: Vec<Member> = specs.iter().map(member).collect();
        let stay: HashSet<_> = members.iter().map(|member| Arc::as_ptr(&member.backend)).collect();
        for old in now.members.iter().filter(|old| !stay.contains(&Arc::as_ptr(&old.backend))) {
            old.backend.retire();
        }
        let retired = retired(&now, &members, &config);
        inner.commands.keep(|name| specs.iter().any(|spec| spec.backend.name == name));
        let found = members.iter().filter(|member| member.source.is_some()).count();
        self.balancer().metrics.discovered_backends.set(i64::try_from(found).unwrap_or(i64::MAX));
        self.balancer().commit(Snapshot { generation, config, members, retired, ring });
    }

    /// The member that `spec` describes; it keeps `known`, the backend with this name and server, if there is one.
    fn member(&self, inner: &mut Inner, spec: &Spec, known: Option<&Arc<Backend>>) -> Member {
        let Spec { backend: spec, source, at } = spec;
        let BackendSpec { name, address, weight, state, connections, tls, resolve: _ } = spec;
        let backend = known.filter(|known| known.enlist()).cloned();
        let backend = backend.unwrap_or_else(|| self.make(inner, name, address, *at, tls.clone()));
        let state_now = inner.commands.in_force(name, *state);
        backend.series().state(state_now);
        backend.set_connections_max(*connections);
        backend.set_tls(tls.clone());
        Member { backend, weight: *weight, state: state_now, file_state: *state, source: source.clone() }
    }

    /// A new backend, probed from now on if its address is known. `tls` is set first: not even the first dial may be in
    /// the clear, or send a token so.
    pub(super) fn make(
        &self,
        inner: &mut Inner,
        name: &str,
        address: &str,
        at: Option<SocketAddr>,
        tls: Option<Arc<BackendTls>>,
    ) -> Arc<Backend> {
        let series = self.balancer().metrics.backend(&name.into());
        let (backend, asked) = Backend::at(name, address, at, series);
        backend.set_tls(tls);
        // A server that got another name, or comes back, may still hold sessions that went on elsewhere.
        let mut living = inner.backends.iter().rev().filter_map(Weak::upgrade);
        if let Some(same) = living.find(|known| at.is_some() && known.socket() == at) {
            backend.shares_moved_of(&same);
        }
        if self.balancer().is_probed() {
            backend.newcomer();
        }
        inner.backends.push(Arc::downgrade(&backend));
        if at.is_some() {
            self.attend(&backend, asked);
        }
        backend
    }

    fn attend(&self, backend: &Arc<Backend>, asked: Questions) {
        let config = || {
            let balancer = Arc::clone(self.balancer());
            move || Arc::clone(&balancer.now().config)
        };
        let Questions { questions, inquiries } = asked;
        let directory = Arc::clone(&self.balancer().directory);
        let owner = move |session: &SessionId| directory.find(session);
        self.attendants.spawn(attend(Arc::clone(backend), questions, config(), owner, self.stop.clone()));
        let memory = self.balancer().answers.memory();
        let backend = Arc::downgrade(backend);
        self.attendants.spawn(attend_clients(backend, inquiries, config(), memory, self.stop.clone()));
    }
}
