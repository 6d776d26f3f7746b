//! The outcome of a method: a result and what follows it, or a refusal.

use std::time::Duration;

use serde_json::Value;

/// What a fake server was built with.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) name: String,
    pub(super) token: Option<String>,
    pub(super) version: String,
    pub(super) protocol_version: u64,
    pub(super) create_delay: Duration,
    pub(super) unload_delay: Duration,
    pub(super) turn_delay: Duration,
    pub(super) created_after_answer: bool,
    pub(super) record: bool,
}

/// What an answer says instead of a result.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: i64,
    pub(super) message: String,
}

/// What follows once the answer is queued.
#[derive(Debug)]
pub(super) enum After {
    /// The session lost its last attachment.
    Unload(String),
    /// A turn has begun.
    Turn {
        session: String,
        epoch: u64,
    },
    /// `session.created` to all, for a server that tells after the answer.
    Created(String),
    /// An event to those attached.
    Event(String, Value),
    Shutdown,
}

pub(super) type Done = Result<(Value, Vec<After>), Refusal>;

pub(super) fn plain(result: Value) -> Done {
    Ok((result, Vec::new()))
}

pub(super) fn refusal(code: i64, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into() }
}

pub(super) fn failed(method: &str, why: impl std::fmt::Display) -> Refusal {
    refusal(-32603, format!("Request {method} failed with message: {why}"))
}

pub(super) fn is_valid(session: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=200).contains(&session.len()) && session.bytes().all(allowed)
}
