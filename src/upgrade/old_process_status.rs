//! What a process before this one still carries: it reports that itself, and the next one's status shows it.
//!
//! Two versions may speak here: fields are added, never renamed or removed.

use serde::{Deserialize, Serialize};

/// A process that was upgraded and still carries its connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OldProcessStatus {
    /// Its process id: its metrics are at `/metrics/PID`.
    pub pid: u32,
    /// Of its binary.
    pub version: String,
    /// Since its start.
    pub uptime_seconds: f64,
    /// Client connections.
    pub connections: usize,
    /// What it carries to each backend.
    pub backends: Vec<OldProcessBackend>,
}

/// What one process carries to one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldProcessBackend {
    /// The backend's name.
    pub name: String,
    /// The server itself, as IP address and port.
    #[serde(default)]
    pub server: Option<String>,
    /// Open now.
    pub connections: usize,
    /// Owned now.
    pub sessions: usize,
}
