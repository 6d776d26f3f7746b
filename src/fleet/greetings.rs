//! What servers answer to `connect`, remembered: a client that sends the same request as another needs no scout.
//!
//! The answer depends on the server's version and on every byte of the request but its id, so it is used for exactly
//! these. A server is asked again every minute, in case servers of one version are started with other options. A `connect`
//! with a token or a credential always goes to a server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::close::By;
use crate::wire::{Id, Scan, reply};

/// Requests whose answers are remembered; SDKs of one version send the same one.
const KNOWN_MAX: usize = 64;
/// Of a request, and of an answer.
const BYTES_MAX: usize = 4096;
/// After this long a server is asked again.
const FRESH: Duration = Duration::from_secs(60);
/// The params that may be there: none that a server has to check.
const HARMLESS: [&str; 3] = ["supportedTaskKinds", "clientInfo", "enableGitHubTelemetryForwarding"];

/// Answers of one fleet.
#[derive(Debug, Default)]
pub struct Greetings {
    /// Searched one by one: they are few, and most differ in length already.
    known: Mutex<Vec<Known>>,
}

#[derive(Debug)]
struct Known {
    /// The request, but for its id.
    before: Box<[u8]>,
    after: Box<[u8]>,
    version: Arc<str>,
    answer: Box<[u8]>,
    id: Id,
    protocol_version: Option<Box<[u8]>>,
    since: Instant,
}

/// An answer to a client.
#[derive(Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The frame, with the id that was asked with.
    pub frame: Vec<u8>,
    /// `result.protocolVersion` in it.
    pub protocol_version: Option<Box<[u8]>>,
}

impl Greetings {
    /// What servers of `version` answer to the request `body`, which has this id.
    pub fn recall(&self, body: &[u8], id: &Id, version: &str, now: Instant) -> Option<Greeting> {
        if body.len() > BYTES_MAX {
            return None;
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.iter().find(|known| known.answers(body, id))?;
        let fresh = now.saturating_duration_since(known.since) < FRESH;
        (fresh && &*known.version == version).then(|| Greeting {
            frame: reply::with_id(&known.answer, known.id.span(), id.raw()),
            protocol_version: known.protocol_version.clone(),
        })
    }

    /// Remembers `answer`, which a server of a fleet of `version` has given to `body`, if every such server would have
    /// given it.
    pub fn learn(&self, body: &[u8], id: &Id, answer: &[u8], version: &Arc<str>, now: Instant) {
        if body.len() > BYTES_MAX || answer.len() > BYTES_MAX || !is_harmless(body) {
            return;
        }
        let Ok(envelope) = Scan::whole_of(By::Backend, answer) else { return };
        let Some(own) = envelope.id.filter(|own| own == id && !envelope.is_error) else { return };
        let said = serde_json::from_slice::<Value>(answer).unwrap_or_default();
        if said.pointer("/result/version").and_then(Value::as_str) != Some(&**version) {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known| !known.answers(body, id));
        if known.len() >= KNOWN_MAX {
            let oldest = known.iter().map(|known| known.since).min();
            known.retain(|known| Some(known.since) != oldest);
        }
        let (before, after) = around(body, id);
        known.push(Known {
            before: before.into(),
            after: after.into(),
            version: Arc::clone(version),
            answer: answer.into(),
            id: own,
            protocol_version: envelope.protocol_version,
            since: now,
        });
    }
}

impl Known {
    /// Whether this answers the request `body`, which has this id.
    fn answers(&self, body: &[u8], id: &Id) -> bool {
        around(body, id) == (&*self.before, &*self.after)
    }
}

/// The bytes before and after the id of a request.
fn around<'a>(body: &'a [u8], id: &Id) -> (&'a [u8], &'a [u8]) {
    let at = id.span();
    (body.get(..at.start).unwrap_or_default(), body.get(at.end..).unwrap_or_default())
}

/// Whether a request is a plain `connect`, with nothing that a server has to check.
fn is_harmless(body: &[u8]) -> bool {
    let Ok(Value::Object(request)) = serde_json::from_slice(body) else { return false };
    let params = match request.get("params") {
        None => true,
        Some(Value::Object(params)) => params.keys().all(|key| HARMLESS.contains(&key.as_str())),
        Some(_) => false,
    };
    let plain = request.keys().all(|key| ["jsonrpc", "id", "method", "params"].contains(&key.as_str()));
    let is = |key: &str, value: &str| request.get(key).and_then(Value::as_str) == Some(value);
    plain && params && is("jsonrpc", "2.0") && is("method", "connect")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &str =
        r#"{"jsonrpc":"2.0","id":0,"method":"connect","params":{"supportedTaskKinds":["shell"]}}"#;
    const ANSWER: &str =
        r#"{"jsonrpc":"2.0","id":0,"result":{"ok":true,"protocolVersion":3,"version":"1.2"}}"#;

    fn id_of(body: &str) -> Id {
        Scan::whole(body.as_bytes()).map_or_else(|(_, id)| id, |envelope| envelope.id).unwrap()
    }

    fn version() -> Arc<str> {
        Arc::from("1.2")
    }

    fn learned(asked: &str, answer: &str, now: Instant) -> Greetings {
        let greetings = Greetings::default();
        greetings.learn(asked.as_bytes(), &id_of(asked), answer.as_bytes(), &version(), now);
        greetings
    }

    fn recalled(greetings: &Greetings, asked: &str, version: &str, now: Instant) -> Option<String> {
        let greeting = greetings.recall(asked.as_bytes(), &id_of(asked), version, now)?;
        assert_eq!(greeting.protocol_version.as_deref(), Some(b"3".as_slice()));
        Some(String::from_utf8(greeting.frame).unwrap())
    }

    #[test]
    fn only_the_id_may_differ() {
        let now = Instant::now();
        let greetings = learned(ASKED, ANSWER, now);
        let with =
            |id: &str| ASKED.replacen('0', "_", 1).replacen(":0", &format!(":{id}"), 1).replacen('_', "0", 1);
        for id in ["0", "17", "\"a-b\""] {
            let expected = ANSWER.replace("\"id\":0", &format!("\"id\":{id}"));
            let expected = format!("Content-Length: {}\r\n\r\n{expected}", expected.len());
            assert_eq!(recalled(&greetings, &with(id), "1.2", now), Some(expected));
        }
        for other in [
            ASKED.replace("shell", "agent"),
            ASKED.replace("\"id\":0", "\"id\": 0"),
            ASKED.replace("\"jsonrpc\":\"2.0\",\"id\":0", "\"id\":0,\"jsonrpc\":\"2.0\""),
            ASKED.replace("}}", "} }"),
        ] {
            assert_eq!(recalled(&greetings, &other, "1.2", now), None, "{other}");
        }
        assert_eq!(recalled(&greetings, ASKED, "1.3", now), None, "servers were replaced");
    }

    #[test]
    fn what_is_old_is_asked_again() {
        let now = Instant::now();
        let greetings = learned(ASKED, ANSWER, now);
        let before = now + FRESH.checked_sub(Duration::from_millis(1)).unwrap();
        assert!(recalled(&greetings, ASKED, "1.2", before).is_some());
        assert!(recalled(&greetings, ASKED, "1.2", now + FRESH).is_none());
        greetings.learn(ASKED.as_bytes(), &id_of(ASKED), ANSWER.as_bytes(), &version(), now + FRESH);
        assert!(recalled(&greetings, ASKED, "1.2", now + FRESH).is_some());
    }

    #[test]
    fn what_a_server_has_to_judge_is_not_learned() {
        let now = Instant::now();
        for params in [
            r#"{"token":"t"}"#,
            r#"{"\u0074oken":"t"}"#,
            r#"{"entra":{}}"#,
            r#"{"supportedTaskKinds":[],"another":1}"#,
            "[]",
        ] {
            let asked = format!(r#"{{"jsonrpc":"2.0","id":0,"method":"connect","params":{params}}}"#);
            assert!(recalled(&learned(&asked, ANSWER, now), &asked, "1.2", now).is_none(), "{asked}");
        }
        for asked in [
            ASKED.replace("\"2.0\"", "\"1.0\""),
            ASKED.replace("\"connect\"", "\"ping\""),
            ASKED.replace("\"params\"", "\"more\":1,\"params\""),
            ASKED.replace("shell", &"s".repeat(BYTES_MAX)),
        ] {
            assert!(recalled(&learned(&asked, ANSWER, now), &asked, "1.2", now).is_none(), "{asked}");
        }
        for answer in [
            r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32601,"message":"m"}}"#.to_owned(),
            ANSWER.replace("1.2", "1.3"),
            ANSWER.replace("\"id\":0", "\"id\":1"),
            ANSWER.replace(",\"version\":\"1.2\"", ""),
        ] {
            assert!(recalled(&learned(ASKED, &answer, now), ASKED, "1.2", now).is_none(), "{answer}");
        }
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let start = Instant::now();
        let greetings = Greetings::default();
        let asked = |number: usize| ASKED.replace("shell", &number.to_string());
        let at = |number: usize| start + Duration::from_millis(u64::try_from(number).unwrap());
        for number in 0..=KNOWN_MAX {
            let asked = asked(number);
            greetings.learn(asked.as_bytes(), &id_of(&asked), ANSWER.as_bytes(), &version(), at(number));
        }
        assert_eq!(greetings.known.lock().unwrap().len(), KNOWN_MAX);
        assert!(recalled(&greetings, &asked(0), "1.2", at(KNOWN_MAX)).is_none());
        assert!(recalled(&greetings, &asked(1), "1.2", at(KNOWN_MAX)).is_some());
    }
}
