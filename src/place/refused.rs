//! Why a session went nowhere: what the client is told.

use std::time::Duration;

use super::locate::is_unasked;
use crate::config::{AdminState, Config};
use crate::fleet::{Found, Heard};
use crate::runtime::jitter::stretched;
use crate::snapshot::Snapshot;
use crate::wire::Refusal;

/// Backends that a refusal names.
const SILENT_NAMED: usize = 8;

/// Why a chosen backend did not take the connection.
#[derive(Clone, Debug)]
pub(super) enum Miss {
    /// Another may.
    Unreachable,
    /// It has as many connections as it may, or no port is left towards it.
    Full,
    /// It took the connection and closed it without a word, as servers do that have as many as they can.
    HungUp,
    /// It answered, and no other would do better.
    Refused(Refused),
}

/// Why a session went nowhere: what the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The code and reason.
    pub refusal: Refusal,
    /// For people.
    pub message: String,
    /// When another try may be worth it.
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// A refusal that trying again soon may mend.
    pub fn later(refusal: Refusal, message: impl Into<String>, config: &Config) -> Self {
        // Clients that were turned away together must not come back together.
        let retry_after = Some(stretched(config.health.interval, 1000, 1500));
        Self { refusal, message: message.into(), retry_after }
    }

    pub(super) fn no_backend(snapshot: &Snapshot) -> Self {
        if snapshot.is_full() {
            return Self::full(&snapshot.config);
        }
        Self::later(Refusal::NoBackend, "no backend is up and ready", &snapshot.config)
    }

    pub(super) fn full(config: &Config) -> Self {
        Self::later(
            Refusal::Limit,
            "every backend that could take this has as many connections as it may or can have",
            config,
        )
    }

    pub(super) fn unsure(snapshot: &Snapshot, heard: &Heard) -> Self {
        let named = |at: &usize| snapshot.member(*at).map(|member| &**member.backend.name());
        let silent: Vec<&str> = heard.silent.iter().filter_map(named).take(SILENT_NAMED).collect();
        let why = match is_unasked(snapshot, heard) {
            true => "cannot be asked without its token (upstream.connection_token)",
            false => "does not answer now",
        };
        let message = format!("a backend that may hold this session {why}: {}", silent.join(", "));
        Self::later(Refusal::OwnerDown, message, &snapshot.config)
    }

    /// The backend that has the session takes nobody now.
    pub(super) fn held(snapshot: &Snapshot, heard: &Heard) -> Self {
        let holder = match heard.found {
            Found::Live(at) | Found::Stored(at) => snapshot.member(at),
            Found::Unasked | Found::Nobody | Found::Unsure => None,
        };
        match holder {
            Some(member) if member.state == AdminState::Maint => {
                let message =
                    format!("the backend that has this session is in maintenance: {}", member.backend.name());
                Self::later(Refusal::OwnerDown, message, &snapshot.config)
            }
            Some(_) | None => Self::owner_down(&snapshot.config),
        }
    }

    pub(super) fn owner_down(config: &Config) -> Self {
        let message = "the backend that holds this session cannot be reached now";
        Self::later(Refusal::OwnerDown, message, config)
    }

    pub(super) fn locked(config: &Config) -> Self {
        let message = "another connection is opening this session and has not finished";
        Self::later(Refusal::SessionLocked, message, config)
    }

    /// Another try may be granted in a moment: servers may come back.
    pub fn is_of_the_moment(&self) -> bool {
        matches!(self.refusal, Refusal::NoBackend | Refusal::OwnerDown | Refusal::SessionLocked)
    }

    /// Too many sessions are being brought back on its server.
    pub fn crowded(config: &Config) -> Self {
        Self::later(Refusal::Limit, "too many sessions are being brought back on this server", config)
    }

    pub(super) fn mismatch(message: &str) -> Self {
        Self { refusal: Refusal::ProtocolMismatch, message: message.into(), retry_after: None }
    }
}
