//! The fleet's part of the admin API: the state of each backend, and the durations of its last probes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::control::Reloader;
use crate::fleet::{Backend, PROBES_MAX};
use crate::snapshot::{Member, Snapshot};
use crate::upgrade::{OldProcessBackend, OldProcessStatus};

/// One backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// As in the file.
    pub name: String,
    /// `host:port` as in the file.
    pub address: String,
    /// The server itself, as IP address and port; null while its name has not been resolved.
    #[serde(default)]
    pub server: Option<String>,
    /// The name in the file for which it was found; null if the file names the backend itself.
    pub source: Option<String>,
    /// Share of new sessions; null once removed.
    pub weight: Option<u32>,
    /// The state in force: "ready", "drain" or "maint"; null once removed.
    pub state: Option<String>,
    /// The state in the file.
    pub file_state: Option<String>,
    /// "unknown", "up" or "down".
    pub health: String,
    /// Percent of its share of new sessions that it takes: less than 100 during its `placement.slow_start`; null once
    /// removed.
    pub warmth: Option<u32>,
    /// Whether a dial failed since the last answered probe: nothing new is placed there if another backend will do.
    pub suspect: bool,
    /// The version that the server reports.
    pub version: Option<String>,
    /// Why the last failed probe failed, until a backend that is up has answered another.
    pub error: Option<String>,
    /// For how long its health has been what it is; null before the first verdict.
    #[serde(default)]
    pub health_seconds: Option<f64>,
    /// How long ago that failed probe was.
    #[serde(default)]
    pub error_seconds: Option<f64>,
    /// Whether it refuses sessile's token: it can be probed, but not asked where sessions are.
    #[serde(default)]
    pub mute: bool,
    /// Why: "unset" if `upstream.connection_token` is not set, "refused" if it is; null where it is not mute.
    #[serde(default)]
    pub mute_reason: Option<String>,
    /// Questions about sessions that it has left unanswered in a row while it was up: sessions that it may have are
    /// refused.
    #[serde(default)]
    pub unanswered_questions: usize,
    /// What the last answered probe took.
    pub probe_seconds: Option<f64>,
    /// Open now.
    pub connections: usize,
    /// Owned now.
    pub sessions: usize,
    /// Those of them in which a turn runs.
    #[serde(default)]
    pub sessions_busy: usize,
    /// Those of them in which none does. Of the others it is not known.
    #[serde(default)]
    pub sessions_idle: usize,
    /// Connections to it that processes before this one still carry.
    #[serde(default)]
    pub old_connections: usize,
    /// Sessions on it that they still own.
    #[serde(default)]
    pub old_sessions: usize,
    /// Carried from clients since the start.
    #[serde(default)]
    pub bytes_to_backend: u64,
    /// Carried to clients since the start.
    #[serde(default)]
    pub bytes_to_client: u64,
    /// How often `health.restart_command` was begun for it, by this process.
    #[serde(default)]
    pub restarts: u64,
    /// How the last of them went: "success", "failure" or "timeout", or "running" until then; null if there was none.
    #[serde(default)]
    pub restart_result: Option<String>,
    /// How long ago that was; of one that is running, how long ago it began.
    #[serde(default)]
    pub restart_seconds: Option<f64>,
    /// Whether it has left the file and only keeps the connections it had.
    pub leaving: bool,
}

/// `/api/v1/backends`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backends {
    /// As in [`Status`].
    pub backends: Vec<BackendStatus>,
}

/// `/api/v1/probes`: the durations of the last probes, for a graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probes {
    /// No backend has more.
    pub length_max: usize,
    /// In the order of [`Status`].
    pub backends: Vec<BackendProbes>,
}

/// The last probes of one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendProbes {
    /// As in [`BackendStatus`].
    pub name: String,
    /// As in [`BackendStatus`].
    pub address: String,
    /// Seconds, the oldest first; null for one that failed.
    pub probes: Vec<Option<f64>>,
}

impl Backends {
    /// The fleet of this moment.
    pub async fn of(reloader: &Reloader) -> Self {
        let snapshot = reloader.balancer().snapshot();
        let members = snapshot.members.iter().map(|member| BackendStatus::of(&snapshot, member));
        let leaving = reloader.leaving().await;
        let leaving = leaving.iter().map(|backend| BackendStatus::new(&snapshot, backend, None));
        Self { backends: members.chain(leaving).collect() }
    }

    /// The same, with what the processes before this one carry.
    pub fn with_old(mut self, old: &[OldProcessStatus]) -> Self {
        self.backends = self.backends.into_iter().map(|backend| backend.with_old(old)).collect();
        self
    }
}

impl Probes {
    /// The last probes of this moment.
    pub async fn of(reloader: &Reloader) -> Self {
        let snapshot = reloader.balancer().snapshot();
        let leaving = reloader.leaving().await;
        let backends = snapshot.members.iter().map(|member| &member.backend).chain(&leaving);
        let probes = |backend: &Arc<Backend>| BackendProbes {
            name: backend.name().to_string(),
            address: backend.address().to_string(),
            probes: backend
                .history()
                .probes()
                .into_iter()
                .map(|took| took.map(|took| took.as_secs_f64()))
                .collect(),
        };
        Self { length_max: PROBES_MAX, backends: backends.map(probes).collect() }
    }
}

impl BackendStatus {
    /// A member.
    pub fn of(snapshot: &Snapshot, member: &Member) -> Self {
        Self { warmth: Some(snapshot.ramp(member)), ..Self::new(snapshot, &member.backend, Some(member)) }
    }

    /// The same, with what the processes before this one carry to that server.
    pub fn with_old(mut self, old: &[OldProcessStatus]) -> Self {
        let is_it = |other: &&OldProcessBackend| match (&other.server, &self.server) {
            (Some(other), Some(own)) => other == own,
            _ => other.name == self.name,
        };
        let (mut connections, mut sessions) = (0_usize, 0_usize);
        for carried in old.iter().flat_map(|process| &process.backends).filter(is_it) {
            connections = connections.saturating_add(carried.connections);
            sessions = sessions.saturating_add(carried.sessions);
        }
        (self.old_connections, self.old_sessions) = (connections, sessions);
        self
    }

    /// A backend, and its member in the configuration; `None` once it has left that.
    fn new(snapshot: &Snapshot, backend: &Arc<Backend>, member: Option<&Member>) -> Self {
        let standing = backend.standing().borrow().clone();
        let has_token = snapshot.config.upstream.connection_token.is_some();
        let restarted = backend.history().restarted();
        Self {
            name: backend.name().to_string(),
            address: backend.address().to_string(),
            server: backend.socket().map(|socket| socket.to_string()),
            source: member.and_then(|member| member.source.as_ref()).map(ToString::to_string),
            weight: member.map(|member| member.weight),
            state: member.map(|member| member.state.label().into()),
            file_state: member.map(|member| member.file_state.label().into()),
            health: standing.health.label().into(),
            warmth: None,
            suspect: backend.is_suspect(),
            version: standing.version.map(|version| version.to_string()),
            error: standing.error.map(|error| error.to_string()),
            health_seconds: standing.since.map(|since| since.elapsed().as_secs_f64()),
            error_seconds: standing.failed.map(|failed| failed.elapsed().as_secs_f64()),
            mute: standing.mute,
            mute_reason: standing.mute.then(|| if has_token { "refused" } else { "unset" }.into()),
            unanswered_questions: backend.unanswered(),
            probe_seconds: standing.probe.map(|took| took.as_secs_f64()),
            connections: backend.connections(),
            sessions: backend.sessions(),
            sessions_busy: backend.sessions_busy(),
            sessions_idle: backend.sessions_idle(),
            old_connections: 0,
            old_sessions: 0,
            bytes_to_backend: backend.series().bytes_to_backend.get(),
            bytes_to_client: backend.series().bytes_to_client.get(),
            restarts: restarted.count,
            restart_result: restarted.last.map(|(_, result)| result.to_owned()),
            restart_seconds: restarted.last.map(|(at, _)| at.elapsed().as_secs_f64()),
            leaving: member.is_none(),
        }
    }
}
