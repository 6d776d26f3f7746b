//! What a server sends about sessions: events to attached connections, lifecycle to all, and the JSON of both.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::session::{Role, Stored};
use super::state::State;
use super::wire;

/// An event, ready to be sent or listed.
pub(super) fn event(kind: &str, data: &Value) -> Value {
    let timestamp = stamp(SystemTime::now());
    json!({"type": kind, "data": data, "id": uuid(), "timestamp": timestamp, "parentId": null})
}

/// Tells those attached to a session.
pub(super) fn send_event(state: &mut State, session: &str, event: &Value) {
    let params = json!({"sessionId": session, "event": event});
    state.send_attached(session, &wire::notification("session.event", &params));
}

/// Tells every connection of the server, attached or not, as the real server does.
pub(super) fn lifecycle(state: &mut State, kind: &str, session: &str) {
    let Some(live) = state.sessions.live.get(session) else { return };
    let metadata = json!({"startTime": stamp(live.started), "modifiedTime": stamp(live.modified)});
    let params = json!({"type": kind, "sessionId": session, "metadata": metadata});
    state.send_all(&wire::notification("session.lifecycle", &params));
}

/// Tells every connection that a session is gone for good.
pub(super) fn deleted(state: &mut State, session: &str) {
    let params = json!({"type": "session.deleted", "sessionId": session});
    state.send_all(&wire::notification("session.lifecycle", &params));
}

/// A session on disk, as lists show it.
pub(super) fn metadata(session: &str, stored: Stored) -> Value {
    let (started, modified) = (stamp(stored.started), stamp(stored.modified));
    json!({"sessionId": session, "startTime": started, "modifiedTime": modified, "isRemote": false})
}

/// A live session's events, as `session.getMessages` shows them.
pub(super) fn messages(state: &State, session: &str) -> Vec<Value> {
    let start = event("session.start", &json!({"sessionId": session}));
    let entries = state.memory(session).into_iter().map(|entry| match entry.role {
        Role::User => event("user.message", &json!({"content": entry.content})),
        Role::Assistant => event("assistant.message", &json!({"content": entry.content})),
    });
    std::iter::once(start).chain(entries).collect()
}

/// What an answer says of the session it opened.
pub(super) fn opened(state: &State, session: &str) -> Value {
    let started = state.sessions.live.get(session).map(|live| stamp(live.started));
    json!({"sessionId": session, "nativeSessionId": session, "startTime": started, "isRemote": false})
}

/// RFC 3339 with milliseconds.
pub(super) fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// A random ID in the form of a UUID. The hasher's keys are the randomness: this names sessions, it guards nothing.
pub(super) fn uuid() -> String {
    let (high, low) = (RandomState::new().hash_one(0_u8), RandomState::new().hash_one(1_u8));
    let high = (high & 0xffff_ffff_ffff_0fff) | 0x4000;
    let low = (low & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
    let hex = format!("{high:016x}{low:016x}");
    let part = |range| hex.get::<std::ops::Range<usize>>(range).unwrap_or_default();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}
