//! Requests whose true answer is the whole fleet's: asked of every server, and the answers made one.
//!
//! They go over the standing query connections, each with a deadline of its own. A server that does not answer makes the
//! answer partial, which is counted and logged; it is no error as long as one server has answered.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::method::Merge;
use crate::balancer::Balancer;
use crate::fleet::{Answer, Backend};
use crate::metrics::Outcome;
use crate::place::{addresses, modified};
use crate::wire::{Id, Refusal, reply};

/// The fleet's answer to a request with this id, as a frame.
pub(super) async fn merged(
    balancer: &Balancer,
    merge: Merge,
    method: &str,
    params: Value,
    id: &Id,
) -> (Vec<u8>, Outcome) {
    let snapshot = balancer.snapshot();
    let patience = snapshot.config.timeouts.connect;
    let members = addresses(&snapshot).filter_map(|at| snapshot.members.get(at));
    let asked = members.map(|member| {
        let (backend, params) = (Arc::clone(&member.backend), params.clone());
        async move {
            if !backend.is_up() || backend.standing().borrow().mute {
                return None;
            }
            let answer = backend.ask(method, params, patience).await;
            match (merge, answer) {
                (Merge::LastId, Some(Answer::Result(last))) => Some(dated(&backend, last, patience).await),
                (_, Some(Answer::Result(result))) => Some(result),
                _ => None,
            }
        }
    });
    let answers = join_all(asked).await;
    let missing = answers.iter().filter(|answer| answer.is_none()).count();
    let results: Vec<Value> = answers.into_iter().flatten().collect();
    let label = match (results.len(), missing) {
        (0, _) => "failed",
        (_, 0) => "full",
        _ => "partial",
    };
    balancer.metrics.merged_answers.with_label_values(&[label]).inc();
    if missing > 0 {
        tracing::warn!(method, missing, "an answer of the fleet lacks some servers'");
    }
    if results.is_empty() {
        let message = "no server of the fleet could be asked";
        let refused = Refusal::NoBackend;
        balancer.metrics.errors_answered.with_label_values(&[refused.label()]).inc();
        let frame = reply::error(id, refused, message, Some(snapshot.config.health.interval));
        return (frame, Outcome::Error(Some(refused.code())));
    }
    (reply::result(id, &united(merge, results)), Outcome::Success)
}

/// The session a server changed last, with when that was.
async fn dated(backend: &Backend, last: Value, patience: std::time::Duration) -> Value {
    let Some(id) = last.get("sessionId").filter(|id| id.is_string()) else { return last };
    match backend.ask("session.getMetadata", json!({ "sessionId": id }), patience).await {
        Some(Answer::Result(metadata)) => {
            let when = metadata.get("session").map(modified).unwrap_or_default();
            json!({ "sessionId": id, "modifiedTime": when })
        }
        _ => last,
    }
}

/// Several servers' results as one.
fn united(merge: Merge, results: Vec<Value>) -> Value {
    match merge {
        Merge::Sessions => sessions(results),
        Merge::LastId => {
            let newest = results
                .iter()
                .filter(|last| last.get("sessionId").is_some())
                .max_by_key(|last| modified(last));
            newest
                .and_then(|last| last.get("sessionId"))
                .map_or_else(|| json!({}), |id| json!({ "sessionId": id }))
        }
        Merge::InUse => {
            let mut ids: Vec<Value> = Vec::new();
            for id in results.iter().filter_map(|result| result.get("inUse")?.as_array()).flatten() {
                if !ids.contains(id) {
                    ids.push(id.clone());
                }
            }
            json!({ "inUse": ids })
        }
    }
}

/// The newest copy of each session, the newest first; other members of the result are the first server's.
fn sessions(results: Vec<Value>) -> Value {
    let mut newest: HashMap<String, Value> = HashMap::new();
    let lists = results.iter().filter_map(|result| result.get("sessions")?.as_array());
    for session in lists.flatten() {
        let Some(id) = session.get("sessionId").and_then(Value::as_str) else { continue };
        if newest.get(id).is_none_or(|known| modified(known) < modified(session)) {
            newest.insert(id.to_owned(), session.clone());
        }
    }
    let mut all: Vec<Value> = newest.into_values().collect();
    all.sort_by_cached_key(|session| {
        std::cmp::Reverse((modified(session), session.get("sessionId").map(Value::to_string)))
    });
    let mut result = results.into_iter().next().unwrap_or_default();
    if let Some(map) = result.as_object_mut() {
        map.insert("sessions".into(), Value::Array(all));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_copy_of_each_session_is_listed() {
        let one = json!({ "sessions": [
            { "sessionId": "a", "modifiedTime": "2026-01-01T00:00:00Z", "summary": "old" },
            { "sessionId": "b", "modifiedTime": "2026-01-02T00:00:00Z" },
        ], "more": false });
        let two = json!({ "sessions": [{ "sessionId": "a", "modifiedTime": "2026-01-03T00:00:00Z", "summary": "new" }] });
        let united = united(Merge::Sessions, vec![one, two]);
        assert_eq!(united["sessions"][0]["summary"], "new");
        assert_eq!(united["sessions"][1]["sessionId"], "b");
        assert_eq!(united["sessions"].as_array().unwrap().len(), 2);
        assert_eq!(united["more"], false);
    }

    #[test]
    fn the_last_session_is_the_fleets() {
        let last = |id: &str, when: &str| json!({ "sessionId": id, "modifiedTime": when });
        let results = vec![last("a", "2026-01-01"), json!({}), last("b", "2026-01-02")];
        assert_eq!(united(Merge::LastId, results), json!({ "sessionId": "b" }));
        assert_eq!(united(Merge::LastId, vec![json!({})]), json!({}));
    }

    #[test]
    fn a_session_somebody_uses_is_in_use() {
        let results = vec![json!({ "inUse": ["a", "b"] }), json!({ "inUse": ["b", "c"] })];
        assert_eq!(united(Merge::InUse, results), json!({ "inUse": ["a", "b", "c"] }));
    }
}
