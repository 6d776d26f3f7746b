//! The scan against serde_json: same verdict on every JSON body, whatever the pieces it arrives in.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::envelope::{Envelope, Fault, Field, Named};
use super::{Scan, SessionId};

/// The oracle: what a server would read.
fn read(body: &[u8]) -> Envelope {
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
        is_answer: value.get("result").is_some() || value.get("error").is_some(),
        is_error: value.get("error").is_some(),
        error_code: value["error"]["code"].as_i64().and_then(|code| code.try_into().ok()),
        cancels: None,
        request: Field::Absent,
        result_session: field(&value["result"]["sessionId"]),
        protocol_version: value["result"]["protocolVersion"]
            .as_u64()
            .map(|n| n.to_string().into_bytes().into()),
    }
}

fn scan(body: &[u8], pieces: &[usize]) -> Result<Envelope, Fault> {
    let mut scan = Scan::default();
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

prop_compose! {
    fn any_body()(
        mut top in any_object(), mut params in any_object(), mut options in any_object(), mut result in any_object(),
        method in ".{0,30}", session in any_text(), inner in any_text(), born in any_text(), version in any::<u16>(),
        has in any::<u8>(),
    ) -> Value {
        let put = |bit: u8, map: &mut Map<String, Value>, key: &str, value: Value| {
            map.remove(key);
            if has >> bit & 1 == 1 { map.insert(key.into(), value); }
        };
        put(0, &mut options, "sessionId", inner);
        put(1, &mut params, "sessionId", session);
        put(2, &mut params, "options", Value::from(options));
        params.remove("id");
        params.remove("requestId");
        put(3, &mut top, "params", Value::from(params));
        put(4, &mut top, "method", Value::from(method));
        put(5, &mut result, "sessionId", born);
        put(6, &mut result, "protocolVersion", Value::from(version));
        put(7, &mut top, "result", Value::from(result));
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
        let expected = read(text.as_bytes());
        let whole = scan(text.as_bytes(), &[usize::MAX]);
        prop_assert_eq!(whole.as_ref(), Ok(&expected), "{}", text);
        prop_assert_eq!(scan(text.as_bytes(), &pieces), Ok(expected), "{}", text);
    }

    #[test]
    fn no_bytes_make_the_scan_panic_and_pieces_never_matter(
        body in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'"'), Just(b'{'), Just(b'\\'), Just(b':')], 0..80),
        pieces in prop::collection::vec(1usize..5, 1..4),
    ) {
        prop_assert_eq!(scan(&body, &[usize::MAX]), scan(&body, &pieces));
    }

    #[test]
    fn a_body_cut_short_has_no_envelope(body in any_body(), cut in any::<prop::sample::Index>()) {
        let text = body.to_string();
        let cut = cut.index(text.len());
        prop_assert!(Scan::whole(&text.as_bytes()[..cut]).is_err());
    }
}

fn named(body: &str) -> Named {
    Scan::whole(body.as_bytes()).unwrap().named()
}

fn session(id: &str) -> Named {
    Named::Session(SessionId::new(id))
}

#[test]
fn a_session_is_named_where_the_protocol_says() {
    assert_eq!(named(r#"{"id":1,"method":"session.send","params":{"sessionId":"s"}}"#), session("s"));
    assert_eq!(named(r#"{"id":1,"method":"session.create","params":{"sessionId":""}}"#), Named::Born);
    assert_eq!(named(r#"{"id":1,"method":"session.create","params":{"sessionId":null}}"#), Named::Born);
    assert_eq!(named(r#"{"id":1,"method":"session.create"}"#), Named::Born);
    assert_eq!(named(r#"{"id":1,"method":"connect","params":{}}"#), Named::Nothing);
    assert_eq!(named(r#"{"id":1,"method":"session.list","params":{"sessionId":"s"}}"#), Named::Nothing);
    assert_eq!(
        named(r#"{"id":1,"method":"sessions.open","params":{"kind":"create","options":{"sessionId":"o"}}}"#),
        session("o")
    );
    assert_eq!(
        named(r#"{"id":1,"method":"session.create","params":{"options":{"sessionId":"o"}}}"#),
        Named::Born
    );
    assert_eq!(named(r#"{"id":1,"result":{"sessionId":"s"}}"#), Named::Nothing);
}

#[test]
fn decoys_are_not_taken_and_escapes_are_read() {
    let decoy = r#"{"id":1,"method":"session.create","params":{"tools":[{"sessionId":"no","p":{"sessionId":"no"}}],
        "x\"sessionId\":\"no":"\"sessionId\":\"no\"","s\u0065ssionId":"\ud83d\ude00\u002Dyes\/"}}"#;
    assert_eq!(named(decoy), session("😀-yes/"));
    let long = format!(r#"{{"method":"m","params":{{"sessionId":"{}"}}}}"#, "a".repeat(300));
    assert_eq!(named(&long), Named::Untracked(SessionId::new(&"a".repeat(256))));
}

#[test]
fn what_could_be_read_two_ways_is_a_fault_with_the_id_if_it_is_sure() {
    let fault =
        |body: &str| Scan::whole(body.as_bytes()).map_err(|(f, id)| (f, id.map(|id| id.raw().to_vec())));
    let one = Some(b"1".to_vec());
    let twice = [
        r#"{"id":1,"params":{"sessionId":"a","session\u0049d":"b"}}"#,
        r#"{"params":{},"id":1,"params":{"sessionId":"b"}}"#,
        r#"{"method":"a","method":"b","id":1}"#,
        r#"{"id":1,"params":{"options":{"sessionId":"a","sessionId":"a"}}}"#,
    ];
    for body in twice {
        assert_eq!(fault(body), Err((Fault::Duplicate, one.clone())), "{body}");
    }
    assert_eq!(fault(r#"{"id":1,"id":2}"#), Err((Fault::Duplicate, None)));
    assert_eq!(fault(r#"{"id":{},"method":"m"}"#), Err((Fault::BadId, None)));
    assert_eq!(fault(r#"{"id":12x,"method":"m"}"#), Err((Fault::BadId, None)));
    assert_eq!(fault(&format!(r#"{{"id":"{}"}}"#, "a".repeat(256))), Err((Fault::BadId, None)));
    let no_text = Scan::whole(b"{\"id\":\"a\xbe\",\"method\":\"m\"}").map_err(|(fault, _)| fault);
    assert_eq!(no_text, Err(Fault::BadId), "it would be echoed");
    assert_eq!(fault(r#"{"id":1,"params":{"sessionId":7}}"#), Err((Fault::WrongType, one.clone())));
    assert_eq!(fault(r#"[{"id":1}]"#), Err((Fault::NotAnObject, None)));
    assert_eq!(fault("{\"id\":1} x"), Err((Fault::NotJson, one.clone())));
    assert_eq!(fault(&format!(r#"{{"id":1,"a":{}"#, "[".repeat(100_000))), Err((Fault::TooDeep, one)));
}

#[test]
fn ids_keep_their_bytes_and_place() {
    for (body, raw) in [
        (r#"{"id":0}"#, "0"),
        (r#"{ "id" : -1.5e3 , "method":"m"}"#, "-1.5e3"),
        (r#"{"method":"m","id":"a\"\\b"}"#, r#""a\"\\b""#),
    ] {
        let id = Scan::whole(body.as_bytes()).unwrap().id.unwrap();
        assert_eq!(id.raw(), raw.as_bytes());
        assert_eq!(&body[id.span()], raw);
    }
    assert_eq!(Scan::whole(br#"{"id":null,"method":"m"}"#).unwrap().id, None);
}

#[test]
fn what_a_cancellation_and_an_inference_answer_point_at_is_found() {
    let envelope = |body: &str| Scan::whole(body.as_bytes()).unwrap();
    for (body, raw) in [(r#"{"params":{"id":7}}"#, "7"), (r#"{"params":{"x":1,"id": "a-b" }}"#, "\"a-b\"")] {
        let id = envelope(body).cancels.unwrap();
        assert_eq!((id.raw(), &body[id.span()]), (raw.as_bytes(), raw));
    }
    assert_eq!(envelope(r#"{"params":{"id":{"sessionId":"x"}}}"#).cancels, None);
    assert_eq!(envelope(&format!(r#"{{"id":1,"params":{{"id":"{}"}}}}"#, "a".repeat(300))).cancels, None);
    assert_eq!(envelope(r#"{"params":{"requestId":"r1"}}"#).request, Field::Is(SessionId::new("r1")));
    assert_eq!(envelope(r#"{"params":{"requestId":9}}"#).request, Field::Absent);
}
