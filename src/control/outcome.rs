//! How starts, reloads and commands end, as operators see it in the log, the admin API and the exit code.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{self, Config, Problem, Problems};
use crate::sockets::BindFault;

/// How the last attempt to take a configuration went, for the status.
#[derive(Clone, Debug)]
pub struct Last {
    /// When.
    pub at: SystemTime,
    /// What was wrong, one problem each; empty if it came into force.
    pub problems: Vec<Trouble>,
    /// What it changed, in words.
    pub changes: Vec<String>,
}

/// One problem of a reload, with its place in the file if it has one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Trouble {
    /// From 1.
    pub line: Option<usize>,
    /// From 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// A reload that came into force.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The configuration now in force.
    pub generation: u64,
    /// What changed, in words.
    pub changes: Vec<String>,
}

/// There is no such backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no backend called {0}")]
pub struct Unknown(pub String);

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// A listener or an admin socket.
    #[error(transparent)]
    Bind(#[from] BindFault),
    /// Two metrics have one name.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Threads could not be started.
    #[error("worker threads: {0}")]
    Workers(io::Error),
    /// The process to follow did not hand over.
    #[error("the process before this one goes on without it: {0}")]
    Follow(io::Error),
    /// No signals.
    #[error("signals: {0}")]
    Signals(io::Error),
}

/// Warnings about a sound configuration, at this moment.
pub fn warnings(config: &Config) -> Vec<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    config::warnings(config, i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

impl Trouble {
    /// A problem without a place in the file.
    pub(super) fn plain(message: impl ToString) -> Vec<Self> {
        vec![Self { line: None, column: None, message: message.to_string(), help: None }]
    }

    /// The problems of a file, in its order.
    pub fn of(problems: &Problems) -> Vec<Self> {
        let trouble = |problem: &Problem| Self {
            line: problem.position.map(|position| position.line),
            column: problem.position.map(|position| position.column),
            message: problem.message.clone(),
            help: problem.help.clone(),
        };
        problems.iter().map(trouble).collect()
    }
}
