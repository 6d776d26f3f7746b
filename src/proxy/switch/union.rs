//! Several servers' results as one. Pure, but for the room it asks for.
//!
//! What servers answered is not copied before the whole is written: a union holds pieces of their answers, and only as
//! many as it needs.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer as _};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::balancer::Answers;
use crate::runtime::account::Charge;
use crate::wire::method::Merge;

/// What is held for each session or ID of a list beside its text, about.
const ENTRY_BYTES: usize = 192;
/// Members of a list's answer beside its sessions: servers have few. Further ones are left out.
const OTHERS_MAX: usize = 16;
/// What those may take, names included.
const OTHERS_BYTES_MAX: usize = 16 * 1024;

/// There is no room for a union.
#[derive(Debug)]
pub(super) struct Full;

/// What of the servers' results is to be the whole.
pub(super) struct Union {
    merge: Merge,
    sessions: HashMap<Bytes, Session>,
    in_use: HashSet<Bytes>,
    /// The session changed last, and when that was.
    last: Option<(String, Bytes)>,
    /// Other members of a list: those of the first server.
    others: Option<(usize, Others)>,
    /// For what it holds beside the answers' text.
    charge: Charge,
}

/// Members of a list's answer beside its sessions, by name.
#[derive(Default)]
struct Others {
    members: BTreeMap<Box<str>, Bytes>,
    bytes: usize,
}

impl Others {
    /// Keeps one, if there is room; of two that have one name, the last.
    fn keep(&mut self, name: &str, value: &str) {
        let known = self.members.get(name).map(|value| name.len().saturating_add(value.len()));
        let bytes = self.bytes.saturating_sub(known.unwrap_or_default());
        let bytes = bytes.saturating_add(name.len()).saturating_add(value.len());
        if bytes <= OTHERS_BYTES_MAX && (known.is_some() || self.members.len() < OTHERS_MAX) {
            self.members.insert(name.into(), Bytes::copy_from_slice(value.as_bytes()));
            self.bytes = bytes;
        }
    }

    /// What they take.
    fn takes(&self) -> usize {
        self.members.len().saturating_mul(ENTRY_BYTES).saturating_add(self.bytes)
    }
}

/// One server's copy of a session.
struct Session {
    modified: Box<str>,
    at: usize,
    text: Bytes,
}

impl Session {
    /// What it takes beside its text.
    fn takes(&self) -> usize {
        ENTRY_BYTES.saturating_add(self.modified.len())
    }
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow, rename = "sessionId")]
    id: Option<&'a RawValue>,
    #[serde(borrow, rename = "modifiedTime")]
    modified: Option<&'a RawValue>,
}

impl Listed<'_> {
    /// In a form that sorts: ISO 8601 text and milliseconds both do as text.
    fn modified(&self) -> Cow<'_, str> {
        let Some(raw) = self.modified.map(RawValue::get) else { return Cow::Borrowed("") };
        match serde_json::from_str(raw) {
            Ok(Value::String(text)) => Cow::Owned(text),
            Ok(Value::Null) | Err(_) => Cow::Borrowed(""),
            Ok(_) => Cow::Borrowed(raw),
        }
    }

    fn id(&self) -> Option<&str> {
        self.id.map(RawValue::get).filter(|id| id.starts_with('"'))
    }
}

/// What an answer with a list says, taken up one member at a time: however many it has, few are held.
#[derive(Default)]
struct List<'a> {
    sessions: Option<&'a RawValue>,
    others: Others,
}

impl<'de> Visitor<'de> for List<'de> {
    type Value = Self;

    fn expecting(&self, what: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        what.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Self, A::Error> {
        while let Some((name, value)) = members.next_entry::<Name<'de>, &RawValue>()? {
            if name.0 == "sessions" {
                self.sessions = Some(value);
            } else {
                self.others.keep(&name.0, value.get());
            }
        }
        Ok(self)
    }
}

/// The name of a member, borrowed if it can be.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Calls back with each element of a list, as far as it is one.
struct Each<F>(F);

impl<'de, F: FnMut(&'de RawValue) -> bool> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, what: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        what.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element()? {
            if !(self.0)(element) {
                return Err(serde::de::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

/// Calls `with` for each element of a list, until it says that it has had enough. What is no list has none.
fn each<'a>(list: &'a RawValue, mut with: impl FnMut(&'a RawValue) -> Result<(), Full>) -> Result<(), Full> {
    let mut had = Ok(());
    let mut take = |element| {
        had = with(element);
        had.is_ok()
    };
    let _no_list = serde_json::Deserializer::from_str(list.get()).deserialize_seq(Each(&mut take));
    had
}

impl Union {
    /// Of nothing.
    pub(super) fn new(merge: Merge, answers: &Answers) -> Self {
        Self {
            merge,
            sessions: HashMap::new(),
            in_use: HashSet::new(),
            last: None,
            others: None,
            charge: answers.memory().charge(),
        }
    }

    /// Takes the result of the server at `at`. The order in which they come does not matter.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn add(&mut self, at: usize, result: &Bytes) -> Result<(), Full> {
        match self.merge {
            Merge::Sessions => {
                let mut json = serde_json::Deserializer::from_slice(result);
                let Ok(List { sessions, others }) = json.deserialize_map(List::default()) else {
                    return Ok(());
                };
                if let Some(sessions) = sessions {
                    each(sessions, |session| self.add_session(at, result, session))?;
                }
                if self.others.as_ref().is_none_or(|(first, _)| at < *first) {
                    let before = self.others.as_ref().map_or(0, |(_, others)| others.takes());
                    self.make_room(before, others.takes())?;
                    self.others = Some((at, others));
                }
            }
            Merge::LastId => {
                if let Ok(last) = serde_json::from_slice::<Listed<'_>>(result)
                    && let Some(id) = last.id()
                {
                    let when = last.modified().into_owned();
                    if self.last.as_ref().is_none_or(|(known, _)| *known < when) {
                        self.last = Some((when, result.slice_ref(id.as_bytes())));
                    }
                }
            }
            Merge::InUse => {
                #[derive(Deserialize)]
                struct InUse<'a> {
                    #[serde(borrow, rename = "inUse")]
                    ids: &'a RawValue,
                }
                let Ok(InUse { ids }) = serde_json::from_slice(result) else { return Ok(()) };
                each(ids, |id| {
                    let id = result.slice_ref(id.get().as_bytes());
                    if !self.in_use.contains(&id) {
                        self.make_room(0, ENTRY_BYTES)?;
                        self.in_use.insert(id);
                    }
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Has `after` bytes in place of `before`.
    fn make_room(&mut self, before: usize, after: usize) -> Result<(), Full> {
        let bytes = self.charge.bytes().saturating_sub(before).saturating_add(after);
        if self.charge.resize(bytes) { Ok(()) } else { Err(Full) }
    }

    /// The newest copy of each session stays; of equals, the one that says most, of those the first server's.
    fn add_session(&mut self, at: usize, result: &Bytes, raw: &RawValue) -> Result<(), Full> {
        let Ok(session) = serde_json::from_str::<Listed<'_>>(raw.get()) else { return Ok(()) };
        let Some(id) = session.id() else { return Ok(()) };
        let text = raw.get().as_bytes();
        let modified = session.modified();
        let id = result.slice_ref(id.as_bytes());
        let known = self.sessions.get(&id);
        let is_better = known.is_none_or(|known| {
            (&*known.modified, known.text.len(), Reverse(known.at)) < (&*modified, text.len(), Reverse(at))
        });
        if is_better {
            let before = known.map_or(0, Session::takes);
            let session = Session { modified: (&*modified).into(), at, text: result.slice_ref(text) };
            self.make_room(before, session.takes())?;
            // The key as well: it would hold on to the answer in which the older copy stood.
            self.sessions.remove(&id);
            self.sessions.insert(id, session);
        }
        Ok(())
    }

    /// The whole, as JSON text; `None` if there is no room for it.
    pub(super) fn keep(&self, answers: &Answers) -> Option<Bytes> {
        match self.merge {
            Merge::Sessions => {
                let mut sessions: Vec<_> = self.sessions.iter().collect();
                sessions.sort_by(|(id, a), (other, b)| b.modified.cmp(&a.modified).then(other.cmp(id)));
                let others = self.others.iter().flat_map(|(_, others)| &others.members);
                let others: Vec<_> =
                    others.map(|(key, text)| (Value::from(&**key).to_string(), text)).collect();
                answers.keep(|write| {
                    write(b"{");
                    for (key, text) in &others {
                        for piece in [key.as_bytes(), b":", text, b","] {
                            write(piece);
                        }
                    }
                    write(b"\"sessions\":[");
                    listed(sessions.iter().map(|(_, session)| &session.text), write);
                    write(b"]}");
                })
            }
            Merge::LastId => answers.keep(|write| match &self.last {
                Some((_, id)) => [b"{\"sessionId\":", &**id, b"}"].into_iter().for_each(write),
                None => write(b"{}"),
            }),
            Merge::InUse => {
                let mut ids: Vec<_> = self.in_use.iter().collect();
                ids.sort_unstable();
                answers.keep(|write| {
                    write(b"{\"inUse\":[");
                    listed(ids.iter().copied(), write);
                    write(b"]}");
                })
            }
        }
    }
}

/// With commas between them.
fn listed<'a>(texts: impl Iterator<Item = &'a Bytes>, write: &mut dyn FnMut(&[u8])) {
    for (number, text) in texts.enumerate() {
        if number > 0 {
            write(b",");
        }
        write(text);
    }
}

#[cfg(test)]
mod tests {
    use prometheus::IntGauge;
    use serde_json::json;

    use super::*;

    /// The union of these results, which came in the order of `order`.
    fn united(merge: Merge, results: &[Value], order: &[usize]) -> Value {
        let answers = Answers::new(IntGauge::new("g", "g").unwrap());
        let mut union = Union::new(merge, &answers);
        for at in order {
            union.add(*at, &Bytes::from(results[*at].to_string())).unwrap();
        }
        let whole = union.keep(&answers).unwrap();
        serde_json::from_slice(&whole).unwrap()
    }

    #[test]
    fn the_newest_copy_of_each_session_is_listed() {
        let one = json!({ "sessions": [
            { "sessionId": "a", "modifiedTime": "2026-01-01T00:00:00Z", "summary": "old" },
            { "sessionId": "b", "modifiedTime": "2026-01-02T00:00:00Z" },
            { "sessionId": 7 }, "x",
        ], "more": false, "a\"b": [1, 2] });
        let two = json!({ "sessions": [
            { "sessionId": "a", "modifiedTime": "2026-01-03T00:00:00Z", "summary": "new" },
            { "sessionId": "b", "modifiedTime": "2026-01-02T00:00:00Z", "name": "said" },
        ], "more": true });
        for order in [[0, 1], [1, 0]] {
            let united = united(Merge::Sessions, &[one.clone(), two.clone()], &order);
            assert_eq!(united["sessions"][0]["summary"], "new");
            assert_eq!(
                united["sessions"][1],
                json!({ "sessionId": "b", "modifiedTime": "2026-01-02T00:00:00Z", "name": "said" })
            );
            assert_eq!(united["sessions"].as_array().unwrap().len(), 2);
            assert_eq!((&united["more"], &united["a\"b"]), (&json!(false), &json!([1, 2])));
        }
        assert_eq!(united(Merge::Sessions, &[json!({}), json!([])], &[0, 1]), json!({ "sessions": [] }));
    }

    #[test]
    fn an_answer_that_is_not_needed_is_not_held() {
        let answers = Answers::new(IntGauge::new("g", "g").unwrap());
        let list = json!({ "sessions": [{ "sessionId": "a", "modifiedTime": "1" }], "more": false });
        let results: Vec<Bytes> = (0..3).map(|_| Bytes::from(list.to_string())).collect();
        let mut union = Union::new(Merge::Sessions, &answers);
        for at in [1, 2, 0] {
            union.add(at, &results[at]).unwrap();
        }
        let needed: Vec<bool> = results.into_iter().map(|result| !result.is_unique()).collect();
        assert_eq!(needed, [true, false, false]);
    }

    #[test]
    fn few_of_an_answers_members_are_kept_and_all_that_is_kept_is_counted() {
        let gauge = IntGauge::new("g", "g").unwrap();
        let answers = Answers::new(gauge.clone());
        let many: String = (0..100_000).map(|number| format!(r#""{number:x}":1,"#)).collect();
        let mut union = Union::new(Merge::Sessions, &answers);
        union.add(0, &Bytes::from(format!(r#"{{{many}"sessions":[]}}"#))).unwrap();
        let whole: HashMap<String, Value> = serde_json::from_slice(&union.keep(&answers).unwrap()).unwrap();
        assert_eq!(whole.len(), OTHERS_MAX + 1);
        assert!(union.charge.bytes() >= OTHERS_MAX * ENTRY_BYTES);
        let large = "x".repeat(OTHERS_BYTES_MAX);
        let list = json!({ "a": large, "b": 7, "sessions": [{ "sessionId": "s", "modifiedTime": large }] });
        let mut union = Union::new(Merge::Sessions, &answers);
        union.add(0, &Bytes::from(list.to_string())).unwrap();
        assert!((OTHERS_BYTES_MAX..OTHERS_BYTES_MAX + 1000).contains(&union.charge.bytes()));
        let whole: HashMap<String, Value> = serde_json::from_slice(&union.keep(&answers).unwrap()).unwrap();
        assert!(whole.contains_key("b") && !whole.contains_key("a"));
        drop(union);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn the_last_session_is_the_fleets() {
        let last = |id: &str, when: &str| json!({ "sessionId": id, "modifiedTime": when });
        let results = [last("a", "2026-01-01"), json!({}), last("b", "2026-01-02")];
        assert_eq!(united(Merge::LastId, &results, &[2, 1, 0]), json!({ "sessionId": "b" }));
        assert_eq!(united(Merge::LastId, &[json!({})], &[0]), json!({}));
    }

    #[test]
    fn a_session_somebody_uses_is_in_use() {
        let results = [json!({ "inUse": ["a", "b"] }), json!({ "inUse": ["b", "c"] }), json!({})];
        assert_eq!(united(Merge::InUse, &results, &[1, 0, 2]), json!({ "inUse": ["a", "b", "c"] }));
    }
}
