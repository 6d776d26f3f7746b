//! What a process before this one still carries, as it says of itself and its successor's status shows it.
//!
//! Two versions may speak here: fields are added, never renamed or removed.

use serde::{Deserialize, Serialize};

use super::reload::Reloader;
use super::status::{BackendStatus, Backends, total};

/// A process that has been upgraded and carries on what it had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its process id: its metrics are at `/metrics/PID`.
    pub pid: u32,
    /// Of its binary.
    pub version: String,
    /// Since its start.
    pub uptime_seconds: f64,
    /// Client connections.
    pub connections: usize,
    /// What it carries to each backend.
    pub backends: Vec<Carried>,
}

/// What one process carries to one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// The backend's name.
    pub name: String,
    /// Open now.
    pub connections: usize,
    /// Owned now.
    pub sessions: usize,
}

impl Predecessor {
    /// This process, as its successor tells of it.
    pub async fn of(reloader: &Reloader) -> Self {
        let backends = Backends::of(reloader).await.backends.into_iter();
        let carried = |backend: BackendStatus| {
            let BackendStatus { name, connections, sessions, .. } = backend;
            Carried { name, connections, sessions }
        };
        Self {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: reloader.started().elapsed().as_secs_f64(),
            connections: total(&reloader.balancer().metrics.connections_active),
            backends: backends.map(carried).collect(),
        }
    }
}
