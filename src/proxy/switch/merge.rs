//! Requests whose true answer is the whole fleet's: asked of every server, and the answers made one.
//!
//! A server that does not answer makes the answer partial, which is counted and logged; it is no error as long as one
//! server has answered. A list that is too long to be taken, or for which there is no room now, is asked for once more in
//! its short form, so that a client with long names for its sessions keeps no other from its lists.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::union::{Full, Union};
use crate::balancer::{Balancer, Whole};
use crate::config::Timeouts;
use crate::fleet::{Askers, Backend, Told, Untold, Wanted, modified};
use crate::place::addresses;
use crate::snapshot::Snapshot;
use crate::wire::method::Merge;

/// Of the two methods that list sessions, the one that heeds `metadataLimit`.
const SHORT_METHOD: &str = "sessions.list";

/// One server's part.
pub(super) enum Part {
    /// The result in an answer.
    Result(Bytes),
    /// The error in one.
    Error(Bytes),
    /// An answer that cannot be taken.
    TooLong,
    /// It was not asked, for others' questions.
    Crowded,
    /// No answer.
    Nothing,
}

/// What an answer is looked at for.
#[derive(Deserialize)]
struct Answered<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// The fleet's answer to the question of these askers.
pub(super) async fn merged(
    balancer: Arc<Balancer>,
    merge: Merge,
    method: Box<str>,
    params: Bytes,
    askers: Arc<Askers>,
) -> Whole {
    let full = Arc::new(Wanted::new(&method, params.clone(), Arc::clone(&askers)));
    let short = (merge == Merge::Sessions).then(|| shortened(&params)).flatten();
    let short = short.map(|params| Arc::new(Wanted::new(SHORT_METHOD, params, askers)));
    let snapshot = balancer.snapshot();
    let whole = match asked(&balancer, &snapshot, merge, &full, short.as_ref()).await {
        Ok(whole) => whole,
        Err(Full) => match &short {
            Some(short) => asked(&balancer, &snapshot, merge, short, None).await.unwrap_or(Whole::TooLong),
            None => Whole::TooLong,
        },
    };
    if !matches!(whole, Whole::Result(_, 0)) {
        tracing::warn!(method, ?merge, "an answer of the fleet lacks the answers of some servers");
    }
    whole
}

/// The parameters with which a list has only as much of each session as cannot be long.
fn shortened(params: &[u8]) -> Option<Bytes> {
    let mut params: serde_json::Map<String, Value> = serde_json::from_slice(params).ok()?;
    params.insert("metadataLimit".into(), json!(0));
    Some(Bytes::from(Value::Object(params).to_string()))
}

/// Whom to ask: every server of the fleet, and those that have left it and may have what is asked for. A session may be in
/// use on any of them; what is stored there is listed where a resume would find it.
fn asks(snapshot: &Snapshot, merge: Merge) -> impl Iterator<Item = (usize, Arc<Backend>)> {
    let has_a_say = move |at: &usize| match merge {
        Merge::InUse => true,
        Merge::Sessions | Merge::LastId => snapshot.keeps(*at),
    };
    let retired = snapshot.retired().filter(has_a_say);
    let of = |at: usize| Some((at, Arc::clone(&snapshot.member(at)?.backend)));
    // A server that has left and is down does not count as missing.
    let retired = retired.filter_map(of).filter(|(_, backend)| backend.is_up());
    addresses(snapshot).filter_map(of).chain(retired)
}

/// Asks every server that has a say.
///
/// # Errors
/// There is no room for what they have answered.
async fn asked(
    balancer: &Balancer,
    snapshot: &Snapshot,
    merge: Merge,
    wanted: &Arc<Wanted>,
    short: Option<&Arc<Wanted>>,
) -> Result<Whole, Full> {
    let timeouts = &snapshot.config.timeouts;
    let mut parts = FuturesUnordered::new();
    for (at, backend) in asks(snapshot, merge) {
        parts.push(async move { (at, part(&backend, merge, wanted, short, timeouts).await) });
    }
    let mut union = Union::new(merge, &balancer.answers);
    let (mut missing, mut had, mut too_long, mut crowded, mut error) = (0_usize, false, false, false, None);
    while let Some((at, part)) = parts.next().await {
        match part {
            Part::Result(result) => {
                union.add(at, &result)?;
                had = true;
                continue;
            }
            Part::Error(said) => error = error.or(Some(said)),
            Part::TooLong => too_long = true,
            Part::Crowded => crowded = true,
            Part::Nothing => {}
        }
        missing = missing.saturating_add(1);
    }
    if had {
        return union.keep(&balancer.answers).map(|text| Whole::Result(text, missing)).ok_or(Full);
    }
    Ok(match error {
        Some(error) => Whole::Error(error),
        None if too_long => Whole::TooLong,
        None if crowded => Whole::Crowded,
        None => Whole::Nobody,
    })
}

/// One server's part, in its short form if its long one cannot be taken.
async fn part(
    backend: &Backend,
    merge: Merge,
    wanted: &Arc<Wanted>,
    short: Option<&Arc<Wanted>>,
    timeouts: &Timeouts,
) -> Part {
    if !backend.is_up() || backend.standing().borrow().mute {
        return Part::Nothing;
    }
    let part = match (asked_of(backend, wanted, timeouts).await, short) {
        (Part::TooLong, Some(short)) => match asked_of(backend, short, timeouts).await {
            // It may not know the method.
            Part::Error(_) => Part::TooLong,
            part => part,
        },
        (part, _) => part,
    };
    match part {
        Part::Result(last) if merge == Merge::LastId => {
            Part::Result(dated(backend, last, wanted, timeouts).await)
        }
        part => part,
    }
}

/// What one server says. It may wait for its turn for as long as a session for its place.
async fn asked_of(backend: &Backend, wanted: &Arc<Wanted>, timeouts: &Timeouts) -> Part {
    of(backend.inquire(wanted, timeouts.connect, timeouts.rehome).await)
}

fn of(told: Result<Told, Untold>) -> Part {
    let body = match told {
        Ok(Told::Body(body)) => body,
        Ok(Told::TooLong) => return Part::TooLong,
        Err(Untold::Crowded) => return Part::Crowded,
        Err(Untold::Silent) => return Part::Nothing,
    };
    match serde_json::from_slice(&body) {
        Ok(Answered { error: Some(error), .. }) => Part::Error(body.slice_ref(error.get().as_bytes())),
        Ok(Answered { result: Some(result), .. }) => Part::Result(body.slice_ref(result.get().as_bytes())),
        _ => Part::Nothing,
    }
}

/// The session a server changed last, with when that was.
async fn dated(backend: &Backend, last: Bytes, asked: &Wanted, timeouts: &Timeouts) -> Bytes {
    #[derive(Deserialize)]
    struct Last<'a> {
        #[serde(borrow, rename = "sessionId")]
        id: Cow<'a, str>,
    }
    #[derive(Deserialize)]
    struct Metadata {
        session: Option<HashMap<String, Value>>,
    }
    let Ok(Last { id }) = serde_json::from_slice(&last) else { return last };
    let params = Bytes::from(json!({ "sessionId": id }).to_string());
    let wanted = Arc::new(asked.then("session.getMetadata", params));
    match asked_of(backend, &wanted, timeouts).await {
        Part::Result(metadata) => {
            let metadata: Option<Metadata> = serde_json::from_slice(&metadata).ok();
            let session = metadata.and_then(|metadata| metadata.session);
            let when = session.and_then(|mut session| session.remove("modifiedTime"));
            let when = when.map(|when| modified(&json!({ "modifiedTime": when }))).unwrap_or_default();
            Bytes::from(json!({ "sessionId": id, "modifiedTime": when }).to_string())
        }
        _ => last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_list_is_what_was_asked_for_without_names() {
        let short = |params: &str| {
            shortened(params.as_bytes()).map(|short| String::from_utf8(short.to_vec()).unwrap())
        };
        assert_eq!(short("{}").unwrap(), r#"{"metadataLimit":0}"#);
        assert_eq!(
            short(r#"{"metadataLimit":7,"filter":{"cwd":"/"}}"#).unwrap(),
            r#"{"filter":{"cwd":"/"},"metadataLimit":0}"#
        );
        assert_eq!(short("[]"), None);
    }

    #[test]
    fn an_answer_is_its_result_or_its_error() {
        let of = |body: &'static str| match of(Ok(Told::Body(Bytes::from_static(body.as_bytes())))) {
            Part::Result(result) => format!("result {}", str::from_utf8(&result).unwrap()),
            Part::Error(error) => format!("error {}", str::from_utf8(&error).unwrap()),
            Part::TooLong | Part::Crowded | Part::Nothing => "nothing".to_owned(),
        };
        assert_eq!(of(r#"{"id":1,"result":{ "a":1}}"#), r#"result { "a":1}"#);
        assert_eq!(of(r#"{"id":1,"error":{"code":-1}}"#), r#"error {"code":-1}"#);
        assert_eq!(of("[]"), "nothing");
    }
}
