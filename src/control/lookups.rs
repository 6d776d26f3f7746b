//! Looks up the names in the file, and puts the answers in force.
//!
//! One task for each name. An answer is put in force like a reload, by prepare and commit; an answer for a name that
//! has left the file meanwhile is dropped. A name of one server (`resolve = "dial"`) is resolved here only, so that
//! dials, probes, questions and owners can never mean different servers by it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::choice::{Choice, is_lost};
use super::names::{Name, NameKey};
use super::reloader::{Inner, Reloader};
use crate::config::{BackendSpec, Config, Discovery, Resolve};
use crate::discovery::{self, Answer, Found, LookupAnswers, LookupFault, ask_again, look_up};
use crate::fleet::Health;

impl Reloader {
    /// Starts a task for every new name.
    pub(super) fn seek(self: &Arc<Self>, inner: &mut Inner, config: &Config) {
        for (spec, stop) in inner.groups.adopt(config, &self.stop) {
            let seeking = seek(Arc::clone(self), spec);
            self.attendants.spawn(async move { stop.run_until_cancelled(seeking).await });
        }
    }

    pub(super) async fn found(&self, key: &NameKey) -> Vec<Found> {
        self.inner.lock().await.groups.found(key)
    }

    /// Whether to ask again before `answer` counts.
    pub(super) async fn is_doubtful(&self, key: &NameKey, answer: &Answer) -> bool {
        let forget = self.balancer().now().config.discovery.forget;
        self.inner.lock().await.groups.is_doubtful(key, answer, forget)
    }

    /// Notes the addresses at which servers answer for a name of one server.
    pub(super) async fn answer(&self, key: &NameKey, servers: Vec<SocketAddr>) {
        self.inner.lock().await.groups.answer(key, servers);
    }

    /// Warnings about names, one sentence each.
    pub async fn name_warnings(&self) -> Vec<String> {
        self.inner.lock().await.groups.warnings()
    }

    /// The names that are looked up.
    pub async fn names(&self) -> Vec<Name> {
        self.inner.lock().await.groups.names()
    }

    /// Puts the result of a lookup in force: builds the fleet of the configuration in force anew.
    pub(super) async fn discovered(&self, key: &NameKey, result: &discovery::Result) {
        let turn = self.turn.lock().await;
        let label = result.as_ref().map_or_else(|fault| fault.label(), |_| "success");
        self.balancer().metrics.discovery_lookups.with_label_values(&[label]).inc();
        let config = Arc::clone(&self.balancer().now().config);
        if self.inner.lock().await.groups.take(key, result, config.discovery.forget) {
            match self.fleet(config).await {
                Ok(fleet) => {
                    let inner = &mut *self.inner.lock().await;
                    let generation = self.balancer().now().generation;
                    self.install(inner, fleet, generation);
                }
                Err(error) => tracing::error!(%error, "servers found by DNS could not be put in force"),
            }
        }
        if let Err(fault) = result
            && key.resolve() == Resolve::Dial
        {
            self.unresolved(key.name(), *fault);
        }
        self.inner.lock().await.groups.asked(key);
        drop(turn);
    }

    /// A backend whose name has never been resolved is down. Once it has been resolved, probes decide.
    fn unresolved(&self, name: &str, fault: LookupFault) {
        let now = self.balancer().now();
        let Some(member) = now.named(name).and_then(|at| now.members.get(at)) else { return };
        let backend = &member.backend;
        if backend.socket().is_some() {
            return;
        }
        backend.series().connect_failed("unresolved");
        if backend.health() != Health::Down {
            backend.series().health_changed("down");
            tracing::warn!(backend = name, %fault, "backend is down");
        }
        backend.stand(|standing| {
            standing.health = Health::Down;
            standing.error = Some(format!("the name has no address: {fault}").into());
            standing.failed = Some(std::time::Instant::now());
        });
    }
}

/// Looks a name up for as long as it is in force.
pub(super) async fn seek(reloader: Arc<Reloader>, spec: BackendSpec) {
    let key = NameKey::of(&spec);
    let mut misses = 0_u32;
    let mut choice = Choice::default();
    loop {
        let config = Arc::clone(&reloader.balancer().now().config);
        // Its settings may have changed since.
        let spec = config.backends.iter().find(|now| NameKey::of(now) == key).unwrap_or(&spec);
        let started = Instant::now();
        let result = match spec.resolve {
            Resolve::Dial => choice.look_up(reloader.balancer(), spec, &config).await,
            Resolve::All | Resolve::Srv => {
                let known = reloader.found(&key).await;
                match look_up(spec, &config.discovery, &known).await {
                    Ok(answer) if reloader.is_doubtful(&key, &answer).await => {
                        Ok(ask_again(spec, &config.discovery, answer).await)
                    }
                    result => result.map(LookupAnswers::once),
                }
            }
        };
        misses = if result.is_ok() { 0 } else { misses.saturating_add(1) };
        let again = wait(&config.discovery, &result, misses);
        reloader.discovered(&key, &result).await;
        tokio::select! {
            () = tokio::time::sleep(again) => {}
            () = is_lost(reloader.balancer(), spec) => {
                // Failed dials of clients cannot cause more lookups than this.
                let soonest = config.discovery.ttl_min.saturating_sub(started.elapsed());
                tokio::time::sleep(soonest).await;
            }
            () = choice.count_servers(spec, &config, async |rivals| reloader.answer(&key, rivals).await) => {}
        }
    }
}

/// The time until the next lookup: as long as the records hold, or longer after each of `misses` failures in a row.
fn wait(discovery: &Discovery, result: &discovery::Result, misses: u32) -> Duration {
    let (ttl_min, ttl_max) = (discovery.ttl_min, discovery.ttl_max);
    let holds = match result {
        Ok(asked) => asked.answer.ttl,
        Err(_) => ttl_min.saturating_mul(1_u32 << misses.saturating_sub(1).min(16)),
    };
    holds.clamp(ttl_min, ttl_max.max(ttl_min))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::LookupFault;

    #[test]
    fn ttl_is_kept_within_bounds_and_failures_are_asked_less_and_less() {
        let seconds = Duration::from_secs;
        let discovery = Discovery { ttl_min: seconds(1), ttl_max: seconds(30), ..Discovery::default() };
        let holds = |ttl| {
            wait(&discovery, &Ok(LookupAnswers::once(Answer { found: Vec::new(), ttl: seconds(ttl) })), 0)
        };
        assert_eq!([0, 1, 7, 30, 86_400].map(holds), [1, 1, 7, 30, 30].map(seconds));
        let fails = |misses| wait(&discovery, &Err(LookupFault::Servfail), misses);
        assert_eq!([1, 2, 3, 5, 6, 1000].map(fails), [1, 2, 4, 16, 30, 30].map(seconds));
    }
}
