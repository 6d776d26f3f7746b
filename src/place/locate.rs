//! Locating: the fleet itself knows where its sessions are, so it is asked.
//!
//! Every backend that is up is asked at once over its standing connection. A live session ends the asking; a stored one
//! counts on local storage only, for on shared storage everybody has it. What must never be confused is "nobody has it"
//! and "somebody did not say".

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::{FutureExt, future};
use serde_json::{Value, json};

use crate::config::{LocatePolicy, Storage};
use crate::fleet::{Answer, Backend, Found};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::wire::SessionId;

/// Whether `session` is to be asked for at all: by policy, and never of a fleet that is one server.
pub(super) fn is_due(snapshot: &Snapshot, session: &SessionId, must_exist: bool) -> bool {
    let first = snapshot.members.first().map(|member| member.backend.address());
    let several = snapshot.members.iter().any(|member| Some(member.backend.address()) != first);
    several
        && match snapshot.config.placement.locate {
            LocatePolicy::Off => false,
            LocatePolicy::Always => true,
            LocatePolicy::Auto => must_exist || !is_random_uuid(session.as_str()),
        }
}

/// A version 4 UUID was made a moment ago, from chance: no backend can know it.
fn is_random_uuid(id: &str) -> bool {
    let bytes = id.as_bytes();
    bytes.len() == 36
        && bytes.get(14) == Some(&b'4')
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// One backend's word about a session.
#[derive(Debug)]
struct Word {
    at: usize,
    said: Option<Said>,
}

#[derive(Debug, Default)]
struct Said {
    live: bool,
    /// When what is stored there was last changed, in a form that sorts.
    stored: Option<String>,
}

/// Asks the fleet for `session`.
pub async fn locate(metrics: &Metrics, snapshot: &Snapshot, session: &SessionId) -> Found {
    let started = Instant::now();
    let placement = &snapshot.config.placement;
    let local = placement.storage == Storage::Local;
    let mut missing = false;
    let mut mute = false;
    let mut words = FuturesUnordered::new();
    for at in addresses(snapshot) {
        let Some(member) = snapshot.members.get(at) else { continue };
        let backend = &member.backend;
        if !backend.is_up() || backend.is_suspect() {
            missing |= local || backend.is_up();
        } else if backend.standing().borrow().mute {
            mute = true;
        } else {
            words.push(ask(at, Arc::clone(backend), session, local, snapshot.config.timeouts.locate));
        }
    }
    let mut live = Vec::new();
    let mut stored = Vec::new();
    // A backend that answers others is waited for, but not for ever: longer than anybody waits for this claim.
    let end = tokio::time::sleep(snapshot.config.timeouts.rehome.saturating_mul(2));
    tokio::pin!(end);
    loop {
        let mut next = tokio::select! {
            word = words.next() => word,
            () = &mut end => {
                missing = true;
                break;
            }
        };
        if next.is_none() {
            break;
        }
        // With one live answer at hand, only what has arrived as well is looked at.
        while let Some(Word { at, said }) = next {
            match said {
                None => missing = true,
                Some(said) if said.live => live.push((said.stored, at)),
                Some(Said { stored: Some(modified), .. }) => stored.push((Some(modified), at)),
                Some(_) => {}
            }
            next = words.next().now_or_never().flatten();
        }
        if !live.is_empty() {
            break;
        }
    }
    let found = match (newest(&live), newest(&stored)) {
        (Some(at), _) => Found::Live(at),
        (None, Some(at)) => Found::Stored(at),
        (None, None) if missing => Found::Unsure,
        (None, None) if mute => Found::Unasked,
        (None, None) => Found::Nobody,
    };
    if live.len().max(stored.len()) > 1 {
        metrics.locates.with_label_values(&["conflict"]).inc();
        let names: Vec<&str> = live.iter().chain(&stored).filter_map(|(_, at)| name(snapshot, *at)).collect();
        tracing::warn!(%session, backends = names.join(" "), ?found, "several backends have one session");
    }
    metrics.locates.with_label_values(&[label(found)]).inc();
    metrics.locate_duration.observe(started.elapsed().as_secs_f64());
    found
}

const fn label(found: Found) -> &'static str {
    match found {
        Found::Unasked => "unasked",
        Found::Nobody => "nobody",
        Found::Unsure => "unsure",
        Found::Live(_) => "live",
        Found::Stored(_) => "stored",
    }
}

fn name(snapshot: &Snapshot, at: usize) -> Option<&str> {
    snapshot.members.get(at).map(|member| &**member.backend.name())
}

/// One member of each address: two names may stand for one server, and it is asked once. A ready one stands for all. In
/// the order of addresses, so that the same fleet is asked alike every time.
pub fn addresses(snapshot: &Snapshot) -> impl Iterator<Item = usize> {
    let mut chosen: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for (at, member) in snapshot.members.iter().enumerate() {
        let known = chosen.entry(member.backend.address()).or_insert(at);
        let better = snapshot.members.get(*known).is_none_or(|known| !known.is_ready());
        if better && member.is_ready() {
            *known = at;
        }
    }
    chosen.into_values()
}

/// The newest copy; of equals, the first in the file.
fn newest(copies: &[(Option<String>, usize)]) -> Option<usize> {
    let newest = copies.iter().max_by(|(a, at_a), (b, at_b)| a.cmp(b).then(at_b.cmp(at_a)));
    newest.map(|(_, at)| *at)
}

async fn ask(
    at: usize,
    backend: Arc<Backend>,
    session: &SessionId,
    stored_too: bool,
    patience: Duration,
) -> Word {
    let params = json!({ "sessionId": session.as_str() });
    let live = backend.ask("session.metadata.isProcessing", params.clone(), patience);
    let stored =
        async { if stored_too { backend.ask("session.getMetadata", params, patience).await } else { None } };
    let (live, stored) = future::join(live, stored).await;
    let complete = live.is_some() && (stored.is_some() || !stored_too);
    let said = Said {
        live: matches!(&live, Some(Answer::Result(result)) if result.get("processing").is_some_and(Value::is_boolean)),
        stored: match &stored {
            Some(Answer::Result(result)) => result.get("session").map(modified),
            _ => None,
        },
    };
    // Half an answer that says yes is as good as a whole one.
    let known = complete || said.live || said.stored.is_some();
    Word { at, said: known.then_some(said) }
}

/// The time of the last change; ISO 8601 text and milliseconds both sort as text.
pub fn modified(session: &Value) -> String {
    match session.get("modifiedTime") {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_random_uuid_is_sure_to_be_new() {
        assert!(is_random_uuid("3f2b8c1e-9d4a-4e6f-8a7b-0c1d2e3f4a5b"));
        for id in [
            "user-7-chat",
            "",
            "3f2b8c1e-9d4a-1e6f-8a7b-0c1d2e3f4a5b",
            "3f2b8c1e-9d4a-4e6f-8a7b_0c1d2e3f4a5b",
        ] {
            assert!(!is_random_uuid(id), "{id}");
        }
    }

    #[test]
    fn the_newest_copy_wins_and_of_equals_the_first() {
        let copy = |time: &str, at| (Some(time.to_owned()), at);
        assert_eq!(newest(&[copy("2026-01-02", 2), copy("2026-01-03", 1), copy("2026-01-03", 0)]), Some(0));
        assert_eq!(newest(&[(None, 3), copy("2026", 4)]), Some(4));
        assert_eq!(newest(&[]), None);
    }
}
