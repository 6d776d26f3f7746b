//! The scan against serde_json: same verdict on every JSON body, whatever the pieces it arrives in.

use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;

/// The oracle: what the other side would read of what this peer sends.
fn read(of: By, body: &[u8]) -> Envelope {
    let value: Value = serde_json::from_slice(body).unwrap();
    let field = |value: &Value| match value.as_str() {
        None | Some("") => Field::Absent,
        Some(text) if text.len() > 256 => panic!("the generator makes short IDs"),
        Some(text) => Field::Is(SessionId::new(text)),
    };
    Envelope {
        id: None,
        method: value["method"].as_str().map(Into::into),
        session: field(&value["params"]["sessionId"]),
        options_session: field(&value["params"]["options"]["sessionId"]),
        kind: value["params"]["kind"].as_str().map(Kind::of).unwrap_or_default(),
        event: value["params"]["event"].get("type").filter(|_| of == By::Backend).map(|kind| {
            match kind.as_str() {
                Some("user.message") => EventKind::UserMessage,
                Some("assistant.turn_start") => EventKind::TurnStart,
                Some("session.idle") => EventKind::Idle,
                Some("session.shutdown") => EventKind::Shutdown,
                _ => EventKind::Other,
            }
        }),
        is_answer: value.get("result").is_some() || value.get("error").is_some(),
        is_error: value.get("error").is_some_and(|error| !error.is_null()),
        error_code: value["error"]["code"].as_i64().and_then(|code| code.try_into().ok()),
        cancels: None,
        request: Field::Absent,
        result_session: field(&value["result"]["sessionId"]),
        protocol_version: value["result"]["protocolVersion"]
            .as_u64()
            .map(|n| n.to_string().into_bytes().into()),
    }
}

fn scan(of: By, body: &[u8], pieces: &[usize]) -> Result<Envelope, BodyFault> {
    let mut scan = Scan::of(of);
    let mut rest = body;
    for piece in pieces.iter().cycle() {
        let (now, later) = rest.split_at((*piece).min(rest.len()));
        scan.feed(now);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    scan.finish().map_err(|(fault, _)| fault)
}

/// Text with any character of a key escaped or not, as SDKs differ.
fn quoted(text: &str, escape: u64) -> String {
    let mut out = String::from('"');
    for (at, unit) in text.encode_utf16().enumerate() {
        match char::from_u32(u32::from(unit)) {
            Some(c) if escape >> (at % 64) & 1 == 0 && !c.is_control() && c != '"' && c != '\\' => {
                out.push(c)
            }
            _ => out.push_str(&format!("\\u{unit:04x}")),
        }
    }
    out.push('"');
    out
}

fn write(value: &Value, escape: u64, space: &str) -> String {
    match value {
        Value::Object(map) => {
            let members: Vec<String> = map
                .iter()
                .map(|(key, value)| {
                    format!("{}{space}:{}", quoted(key, escape), write(value, escape >> 1, space))
                })
                .collect();
            format!("{{{space}{}{space}}}", members.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| write(item, escape, space)).collect();
            format!("[{}]", items.join(&format!("{space},")))
        }
        Value::String(text) => quoted(text, escape.rotate_left(7)),
        other => other.to_string(),
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("sessionId".to_owned()),
        Just("params".to_owned()),
        Just("id".to_owned()),
        Just("options".to_owned()),
        Just("kind".to_owned()),
        Just("event".to_owned()),
        Just("type".to_owned()),
        ".{0,20}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("\\\"}{][,:")),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(key.clone(), inner, 0..6)
                .prop_map(|map| Value::from(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::hash_map(".{0,16}", any_json(), 0..4).prop_map(|map| map.into_iter().collect())
}

fn any_text() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), Just(json!("")), ".{1,40}".prop_map(Value::from)]
}

fn any_kind() -> impl Strategy<Value = Value> {
    let known = ["user.message", "assistant.turn_start", "session.idle", "session.shutdown"].map(Value::from);
    let near =
        ["session.idl", "session.idle\0", "assistant.turn_starts", "user.messag\u{e9}"].map(Value::from);
    prop_oneof![
        4 => prop::sample::select(known.to_vec()),
        1 => prop::sample::select(near.to_vec()),
        1 => any_json(),
    ]
}

prop_compose! {
    fn any_body()(
        mut top in any_object(), mut params in any_object(), mut options in any_object(), mut result in any_object(),
        mut event in any_object(), kind in any_kind(), method in ".{0,30}", session in any_text(), inner in any_text(), born in any_text(), version in any::<u16>(),
        has in any::<u16>(),
    ) -> Value {
        let put = |bit: u16, map: &mut Map<String, Value>, key: &str, value: Value| {
            map.remove(key);
            if has >> bit & 1 == 1 { map.insert(key.into(), value); }
        };
        put(0, &mut options, "sessionId", inner);
        put(1, &mut params, "sessionId", session);
        put(2, &mut params, "options", Value::from(options));
        put(8, &mut event, "type", kind);
        put(9, &mut params, "event", Value::from(event));
        params.remove("id");
        params.remove("requestId");
        put(3, &mut top, "params", Value::from(params));
        put(4, &mut top, "method", Value::from(method));
        put(5, &mut result, "sessionId", born);
        put(6, &mut result, "protocolVersion", Value::from(version));
        put(7, &mut top, "result", Value::from(result));
        if top.contains_key("result") { top.remove("method"); top.remove("error"); }
        if top.contains_key("method") { top.remove("error"); }
        if top.get("params").is_some_and(|params| !params.is_object() && !params.is_null()) { top.remove("params"); }
        top.insert("jsonrpc".into(), json!("2.0"));
        top.remove("id");
        Value::from(top)
    }
}

proptest! {
    #[test]
    fn the_scan_and_serde_json_agree(
        body in any_body(), escape in any::<u64>(), space in "[ \t\r\n]{0,2}",
        pieces in prop::collection::vec(1usize..9, 1..6),
    ) {
        let text = write(&body, escape, &space);
        for of in [By::Client, By::Backend] {
            let expected = read(of, text.as_bytes());
            let whole = scan(of, text.as_bytes(), &[usize::MAX]);
            prop_assert_eq!(whole.as_ref(), Ok(&expected), "{}", text);
            prop_assert_eq!(scan(of, text.as_bytes(), &pieces), Ok(expected), "{}", text);
        }
    }

    #[test]
    fn no_bytes_make_the_scan_panic_and_pieces_never_matter(
        body in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'"'), Just(b'{'), Just(b'\\'), Just(b':')], 0..80),
        pieces in prop::collection::vec(1usize..5, 1..4),
    ) {
        for of in [By::Client, By::Backend] {
            prop_assert_eq!(scan(of, &body, &[usize::MAX]), scan(of, &body, &pieces));
        }
    }

    #[test]
    fn a_body_cut_short_has_no_envelope(body in any_body(), cut in any::<prop::sample::Index>()) {
        let text = body.to_string();
        let cut = cut.index(text.len());
        prop_assert!(Scan::whole(&text.as_bytes()[..cut]).is_err());
    }
}
