//! The JSON of the admin API, and the status: what runs now, in fields that scripts may rely on.
//!
//! Fields are added, never renamed or removed; what does not apply is null and not left out.

mod backends;

use std::collections::BTreeMap;
use std::time::SystemTime;

use prometheus::IntCounterVec;
use prometheus::core::Collector;
use serde::{Deserialize, Serialize};

pub use self::backends::{BackendProbes, BackendStatus, Backends, Probes};
use crate::balancer::Balancer;
use crate::config::Storage;
use crate::control::{Name, Reloader, Trouble, warnings};
use crate::fleet::{Home, Reason};
use crate::snapshot::Snapshot;
use crate::upgrade::{OldProcessBackend, OldProcessStatus};
use crate::wire::Refusal;

/// `/api/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of this binary.
    pub version: String,
    /// Counts configurations that came into force, from 1.
    pub generation: u64,
    /// Whether new connections are welcome and would find a backend.
    pub ready: bool,
    /// Whether it is stopping.
    pub draining: bool,
    /// Whether so few backends are up that probes are doubted: no session is moved and no connection closed because of
    /// them.
    pub panic: bool,
    /// The process id: another process may have taken over since the last request.
    #[serde(default)]
    pub pid: u32,
    /// Since the start.
    pub uptime_seconds: f64,
    /// The configuration file.
    pub config: ConfigStatus,
    /// Warnings about what is in force, one sentence each: certificates that have expired, or soon will, and names of one
    /// server that have several.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// How sessions find a backend, in the words of the file.
    pub placement: PlacementStatus,
    /// Where clients connect, in the order of the file.
    pub listeners: Vec<ListenerStatus>,
    /// The fleet, in the order of the file; then removed backends that still carry connections.
    pub backends: Vec<BackendStatus>,
    /// The names that stand for many backends.
    pub discovery: Vec<NameStatus>,
    /// Sessions attached through this balancer.
    pub owners: usize,
    /// Remembered placements.
    pub pins: usize,
    /// Connections that have not named a session yet.
    pub openings: usize,
    /// Client connections, those of removed listeners included.
    pub connections: usize,
    /// Sessions placed since the start, by reason: every label of `sessile_placements_total`.
    #[serde(default)]
    pub placements: BTreeMap<String, u64>,
    /// Errors answered in place of a backend since the start, by reason.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// The processes before this one that still carry connections: none of what they have is counted above.
    #[serde(default)]
    pub predecessors: Vec<OldProcessStatus>,
}

/// The configuration file and how it was last read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Its path as given.
    pub file: String,
    /// The last attempt to read it.
    pub last_reload: ReloadStatus,
}

/// One attempt to read the file; the first is the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// RFC 3339, in UTC.
    pub at: String,
    /// Whether it came into force.
    pub ok: bool,
    /// Why it did not.
    pub problems: Vec<Trouble>,
    /// What it changed.
    pub changes: Vec<String>,
}

/// `[placement]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacementStatus {
    /// "consistent-hash" or "round-robin".
    pub strategy: String,
    /// "auto", "shared" or "local".
    pub storage: String,
    /// With "auto": which backends have shown that they share a home. Empty otherwise.
    #[serde(default)]
    pub homes: Vec<HomeStatus>,
    /// "auto", "always" or "off".
    pub locate: String,
}

/// Backends that see each other's stored sessions, as far as these have shown it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeStatus {
    /// Their names.
    pub backends: Vec<String>,
    /// Whether any of them has been compared with another: for one backend alone, true means a home of its own, false
    /// unknown.
    pub compared: bool,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// As in the file.
    pub address: String,
    /// As bound, which differs where the file says port 0; null once it has stopped listening.
    pub bound: Option<String>,
    /// Open now.
    pub connections: usize,
}

/// A name that stands for many backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameStatus {
    /// Of the section in the file.
    pub name: String,
    /// What is looked up.
    pub address: String,
    /// "all" or "srv".
    pub resolve: String,
    /// How many backends it stands for.
    pub backends: usize,
    /// How the last lookup went: the label of `sessile_discovery_lookups_total`; null before the first.
    pub result: Option<String>,
}

/// `/api/v1/route`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// As asked.
    pub session: String,
    /// Where it would go.
    pub backend: String,
    /// Why: the label of `sessile_placements_total`.
    pub reason: String,
    /// Whether a turn of it runs, as far as frames through this process say: "busy", "idle", or null: not known.
    #[serde(default)]
    pub turn: Option<String>,
    /// How long ago it was used last, in whole seconds; null if nobody is attached to it here.
    #[serde(default)]
    pub unused_seconds: Option<u64>,
}

/// `/api/v1/reload` that worked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Now in force.
    pub generation: u64,
    /// What changed, in words.
    pub changes: Vec<String>,
}

/// Every answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// What went wrong.
    pub error: Failure,
    /// The problems of a configuration that was refused (422).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Trouble>,
    /// What can be asked for instead (404).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One word, for scripts.
    pub reason: String,
    /// One sentence, for people.
    pub message: String,
}

impl Status {
    /// The status of this moment.
    pub async fn of(reloader: &Reloader) -> Self {
        let predecessors = reloader.old_processes().status().await;
        let balancer = reloader.balancer();
        let snapshot = balancer.snapshot();
        let config = &snapshot.config;
        let metrics = &balancer.metrics;
        let last = reloader.last();
        let mut listeners = Vec::new();
        for listener in &config.listeners {
            let address = listener.address.to_string();
            let bound = reloader.listener_bound(listener.address).await.map(|bound| bound.to_string());
            let connections = count(metrics.connections_active.with_label_values(&[&address]).get());
            listeners.push(ListenerStatus { address, bound, connections });
        }
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            generation: snapshot.generation,
            ready: balancer.is_ready(),
            draining: balancer.draining.is_cancelled(),
            panic: snapshot.is_panic(),
            pid: std::process::id(),
            uptime_seconds: reloader.started().elapsed().as_secs_f64(),
            config: ConfigStatus {
                file: reloader.path().display().to_string(),
                last_reload: ReloadStatus {
                    at: rfc3339(last.at),
                    ok: last.problems.is_empty(),
                    problems: last.problems,
                    changes: last.changes,
                },
            },
            warnings: [warnings(config), reloader.name_warnings().await].concat(),
            placement: PlacementStatus {
                strategy: config.placement.strategy.label().into(),
                storage: config.placement.storage.label().into(),
                homes: homes(balancer, &snapshot),
                locate: config.placement.locate.label().into(),
            },
            listeners,
            backends: Backends::of(reloader).await.with_old(&predecessors).backends,
            discovery: reloader.names().await.into_iter().map(NameStatus::from).collect(),
            owners: balancer.directory.len(),
            pins: count(metrics.pins.get()),
            openings: count(metrics.openings_active.get()),
            connections: total(&metrics.connections_active),
            placements: counts(&metrics.placements, Reason::ALL.map(Reason::label)),
            errors: counts(&metrics.errors_answered, Refusal::ALL.map(Refusal::label)),
            predecessors,
        }
    }
}

impl From<Name> for NameStatus {
    fn from(Name { name, address, resolve, found, result }: Name) -> Self {
        Self { name, address, resolve: resolve.into(), backends: found, result: result.map(Into::into) }
    }
}

impl Failed {
    /// An error with a reason and a message only.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Failure { reason: reason.into(), message: message.into() };
        Self { error, problems: Vec::new(), routes: Vec::new() }
    }
}

/// What this process still carries, for the status of the next process.
pub async fn old_process_status(reloader: &Reloader) -> OldProcessStatus {
    let backends = Backends::of(reloader).await.backends.into_iter();
    let of_backend = |backend: BackendStatus| {
        let BackendStatus { name, server, connections, sessions, .. } = backend;
        OldProcessBackend { name, server, connections, sessions }
    };
    OldProcessStatus {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_seconds: reloader.started().elapsed().as_secs_f64(),
        connections: total(&reloader.balancer().metrics.connections_active),
        backends: backends.map(of_backend).collect(),
    }
}

fn homes(balancer: &Balancer, snapshot: &Snapshot) -> Vec<HomeStatus> {
    if snapshot.config.placement.storage != Storage::Auto {
        return Vec::new();
    }
    let servers: Vec<String> = snapshot.members.iter().map(|member| member.backend.process()).collect();
    let name = |at: &usize| snapshot.members.get(*at).map(|member| member.backend.name().to_string());
    let named = |home: Home| HomeStatus {
        backends: home.servers.iter().filter_map(name).collect(),
        compared: home.compared,
    };
    balancer.evidence.homes(&servers).into_iter().map(named).collect()
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Every count of a family with one label of a closed set.
fn counts<const N: usize>(family: &IntCounterVec, labels: [&str; N]) -> BTreeMap<String, u64> {
    labels.into_iter().map(|label| (label.to_owned(), family.with_label_values(&[label]).get())).collect()
}

/// A gauge as a count: between two updates it may be below zero for a moment.
fn count(gauge: i64) -> usize {
    usize::try_from(gauge).unwrap_or(0)
}

/// The sum of a family over all its labels.
fn total(family: &prometheus::IntGaugeVec) -> usize {
    let families = family.collect();
    let metrics = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers far below 2^52")]
    metrics.map(|metric| count(metric.get_gauge().get_value() as i64)).fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::labels;

    #[test]
    fn the_metrics_know_every_reason_there_is() {
        assert_eq!(labels::PLACEMENTS, Reason::ALL.map(Reason::label));
    }
}
