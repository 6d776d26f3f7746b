//! The scan of bodies, against serde_json: on whatever serde_json takes for an object, both see the same method, id and
//! session, and what the scan refuses is refused for a reason that is there.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use sessile::close::By;
use sessile::wire::envelope::{BodyFault, Envelope, EventKind, Field};
use sessile::wire::{Id, Scan};

/// JSON with every member of an object, doubles included.
#[derive(Debug)]
enum Node {
    Object(Vec<(String, Node)>),
    Array,
    Plain(Value),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("any JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Node::Object(members))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                while items.next_element::<Node>()?.is_some() {}
                Ok(Node::Array)
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Plain(Value::Null))
            }

            fn visit_bool<E>(self, it: bool) -> Result<Node, E> {
                Ok(Node::Plain(it.into()))
            }

            fn visit_i64<E>(self, it: i64) -> Result<Node, E> {
                Ok(Node::Plain(it.into()))
            }

            fn visit_u64<E>(self, it: u64) -> Result<Node, E> {
                Ok(Node::Plain(it.into()))
            }

            fn visit_f64<E>(self, it: f64) -> Result<Node, E> {
                Ok(Node::Plain(it.into()))
            }

            fn visit_str<E>(self, it: &str) -> Result<Node, E> {
                Ok(Node::Plain(it.into()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl Node {
    /// The last member of a name, as servers take it.
    fn last(&self, name: &str) -> Option<&Self> {
        let Self::Object(members) = self else { return None };
        members.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    fn has_twice(&self, name: &str) -> bool {
        let Self::Object(members) = self else { return false };
        members.iter().filter(|(key, _)| key == name).count() > 1
    }

    fn text(&self) -> Option<&str> {
        if let Self::Plain(Value::String(text)) = self { Some(text) } else { None }
    }

    fn is_null(&self) -> bool {
        matches!(self, Self::Plain(Value::Null))
    }
}

fn members<'n>(node: Option<&'n Node>, name: &'n str) -> impl Iterator<Item = &'n Node> {
    let all = match node {
        Some(Node::Object(members)) => members.as_slice(),
        _ => &[],
    };
    all.iter().filter(move |(key, _)| key == name).map(|(_, value)| value)
}

/// Whether the scan may refuse this with that fault.
fn is_reason(fault: BodyFault, top: &Node) -> bool {
    // Of a repeated object each occurrence is looked at, so a fault may be in any of them.
    let params: Vec<&Node> = members(Some(top), "params").collect();
    let options: Vec<&Node> = params.iter().flat_map(|node| members(Some(node), "options")).collect();
    let sessions: Vec<&Node> =
        params.iter().chain(&options).flat_map(|node| members(Some(node), "sessionId")).collect();
    match fault {
        BodyFault::NotJson | BodyFault::NotAnObject | BodyFault::TooDeep => false,
        BodyFault::Contradiction => {
            let says = |name: &str| members(Some(top), name).next().is_some();
            let means = |name: &str| members(Some(top), name).any(|node| !node.is_null());
            says("method") && (says("result") || says("error")) || means("result") && means("error")
        }
        BodyFault::Version => {
            members(Some(top), "jsonrpc").all(|version| version.text() != Some("2.0"))
                || members(Some(top), "jsonrpc").any(|version| version.text() != Some("2.0"))
        }
        BodyFault::Params => params.iter().any(|node| !matches!(node, Node::Object(_)) && !node.is_null()),
        BodyFault::Duplicate => {
            ["jsonrpc", "id", "method", "params", "result", "error"].iter().any(|name| top.has_twice(name))
                || ["sessionId", "options", "id", "requestId"]
                    .iter()
                    .any(|name| params.iter().any(|node| node.has_twice(name)))
                || options.iter().any(|node| node.has_twice("sessionId"))
        }
        BodyFault::BadId => members(Some(top), "id").any(|id| match id {
            Node::Object(_) | Node::Array | Node::Plain(Value::Bool(_)) => true,
            // The raw text is what counts: how it is spelled, and it may be longer than the value.
            Node::Plain(_) => true,
        }),
        BodyFault::WrongType => {
            members(Some(top), "method").any(|method| method.text().is_none())
                || sessions.iter().any(|session| session.text().is_none() && !session.is_null())
        }
    }
}

fn agrees(field: &Field, node: Option<&Node>) -> bool {
    match (field, node.and_then(Node::text)) {
        (Field::Absent, None | Some("")) => true,
        (Field::Is(id), Some(text)) => id.as_str() == text,
        (Field::Long(id), Some(text)) => text.len() > 256 && text.starts_with(id.as_str()),
        _ => false,
    }
}

fn compare(envelope: &Envelope, top: &Node) {
    let params = top.last("params");
    let method = top.last("method").and_then(Node::text);
    let kept = envelope.method.as_deref();
    assert!(
        method == kept
            || kept.zip(method).is_some_and(|(kept, all)| all.len() > 128 && all.starts_with(kept)),
        "method {kept:?}, not {method:?}"
    );
    let session = params.and_then(|params| params.last("sessionId"));
    assert!(agrees(&envelope.session, session), "session {:?}, not {session:?}", envelope.session);
    let options = params.and_then(|params| params.last("options"));
    let session = options.and_then(|options| options.last("sessionId"));
    assert!(agrees(&envelope.options_session, session), "{:?}, not {session:?}", envelope.options_session);
    let id = top.last("id").filter(|id| !id.is_null());
    let raw = envelope.id.as_ref().map(|id| serde_json::from_slice::<Value>(id.raw()).unwrap());
    match (id, &raw) {
        (None, None) => {}
        (Some(Node::Plain(id)), Some(raw)) => assert_eq!(id, raw),
        _ => panic!("id {raw:?}, not {id:?}"),
    }
    let answers = top.last("result").is_some() || top.last("error").is_some();
    assert_eq!(envelope.is_answer, answers);
    assert_eq!(envelope.is_error, top.last("error").is_some_and(|error| !error.is_null()));
    assert!(method.is_none() || !answers, "a request that is an answer");
    assert_eq!(top.last("jsonrpc").and_then(Node::text), Some("2.0"));
}

/// Whoever is told of an event twice takes the last, and so does the scan of what a server says.
fn compare_event(body: &[u8], top: &Node) {
    let event = top.last("params").and_then(|params| params.last("event"));
    let kind = event.and_then(|event| event.last("type")).map(|kind| match kind.text() {
        Some("user.message") => EventKind::UserMessage,
        Some("assistant.turn_start") => EventKind::TurnStart,
        Some("session.idle") => EventKind::Idle,
        Some("session.shutdown") => EventKind::Shutdown,
        _ => EventKind::Other,
    });
    assert_eq!(Scan::whole_of(By::Backend, body).unwrap().event, kind);
}

/// The scan in pieces whose sizes come from the bytes themselves.
fn in_pieces(body: &[u8]) -> Result<Envelope, (BodyFault, Option<Id>)> {
    let mut scan = Scan::default();
    let mut rest = body;
    let mut sizes = body.iter().map(|byte| usize::from(byte % 7) + 1).cycle();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
        scan.feed(now);
        rest = later;
    }
    scan.finish()
}

pub fn run(body: &[u8]) {
    let scanned = Scan::whole(body);
    assert_eq!(scanned, in_pieces(body), "the pieces matter");
    if let Ok(envelope) = &scanned {
        for id in [&envelope.id, &envelope.cancels].into_iter().flatten() {
            assert_eq!(&body[id.span()], id.raw(), "an id stands elsewhere");
        }
    }
    let Ok(top @ Node::Object(_)) = serde_json::from_slice::<Node>(body) else { return };
    match &scanned {
        Ok(envelope) => {
            compare(envelope, &top);
            compare_event(body, &top);
        }
        Err((fault, _)) => assert!(is_reason(*fault, &top), "{fault:?}, and there is no reason"),
    }
}
