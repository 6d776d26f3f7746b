//! Where a session is named.

use super::*;

#[test]
fn a_session_is_named_where_the_protocol_says() {
    assert_eq!(named(r#""id":1,"method":"session.send","params":{"sessionId":"s"}}"#), session("s"));
    assert_eq!(named(r#""id":1,"method":"session.create","params":{"sessionId":""}}"#), Named::Born);
    assert_eq!(named(r#""id":1,"method":"session.create","params":{"sessionId":null}}"#), Named::Born);
    assert_eq!(named(r#""id":1,"method":"session.create"}"#), Named::Born);
    assert_eq!(named(r#""id":1,"method":"connect","params":{}}"#), Named::Nothing);
    assert_eq!(named(r#""id":1,"method":"session.list","params":{"sessionId":"s"}}"#), Named::Nothing);
    assert_eq!(
        named(r#""id":1,"method":"sessions.open","params":{"kind":"create","options":{"sessionId":"o"}}}"#),
        session("o")
    );
    assert_eq!(
        named(r#""id":1,"method":"session.create","params":{"options":{"sessionId":"o"}}}"#),
        Named::Born
    );
    assert_eq!(named(r#""id":1,"result":{"sessionId":"s"}}"#), Named::Nothing);
}

#[test]
fn what_is_opened_is_named_where_its_kind_says() {
    let open = |params: &str| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"sessions.open","params":{params}}}"#);
        let envelope = Scan::whole(body.as_bytes()).unwrap();
        (envelope.named(), envelope.creates(), envelope.may_mean_another())
    };
    let uuid = "a2cba803-45a2-4d61-a024-e0394fe2e5c9";
    for (params, named, creates, may_mean_another) in [
        (r#"{"kind":"create","options":{"sessionId":"o"}}"#.to_owned(), session("o"), true, false),
        (r#"{"options":{"sessionId":"o"},"kind":"cr\u0065ate"}"#.to_owned(), session("o"), true, false),
        (r#"{"kind":"create","options":{}}"#.to_owned(), Named::Born, true, false),
        (
            r#"{"kind":"create","sessionId":"d","options":{"sessionId":"o"}}"#.to_owned(),
            Named::Two,
            true,
            false,
        ),
        (r#"{"kind":"create","sessionId":"d"}"#.to_owned(), Named::Two, true, false),
        (
            r#"{"kind":"create","sessionId":"o","options":{"sessionId":"o"}}"#.to_owned(),
            session("o"),
            true,
            false,
        ),
        (
            r#"{"kind":"resume","sessionId":"s","options":{"sessionId":"o"}}"#.to_owned(),
            session("s"),
            false,
            false,
        ),
        (r#"{"kind":"resume","options":{"sessionId":"o"}}"#.to_owned(), Named::Unsaid, false, false),
        (format!(r#"{{"kind":"resume","sessionId":"{uuid}"}}"#), session(uuid), false, false),
        (format!(r#"{{"kind":"resume","sessionId":"{}"}}"#, &uuid[..8]), session(&uuid[..8]), false, true),
        (format!(r#"{{"kind":"attach","sessionId":"{}"}}"#, &uuid[..8]), session(&uuid[..8]), false, false),
        (r#"{"kind":"resumeLast"}"#.to_owned(), Named::Unsaid, false, false),
        (r#"{"kind":"resumeLast","sessionId":"s"}"#.to_owned(), Named::Unsaid, false, false),
        (r#"{"kind":"cloud","sessionId":"s"}"#.to_owned(), Named::Unsaid, false, false),
        (r#"{"kind":7,"sessionId":"s"}"#.to_owned(), Named::Unsaid, false, false),
        (r#"{"kind":["create"],"sessionId":"s"}"#.to_owned(), Named::Unsaid, false, false),
        (format!(r#"{{"kind":"{}","sessionId":"s"}}"#, "create".repeat(50)), Named::Unsaid, false, false),
        (r#"{"sessionId":"s"}"#.to_owned(), Named::Unsaid, false, false),
        ("null".to_owned(), Named::Unsaid, false, false),
    ] {
        assert_eq!(open(&params), (named, creates, may_mean_another), "{params}");
    }
    let twice = r#"{"jsonrpc":"2.0","id":1,"method":"sessions.open","params":{"kind":"resume","k\u0069nd":"create"}}"#;
    let twice = Scan::whole(twice.as_bytes());
    assert_eq!(twice.unwrap_err().0, BodyFault::Duplicate);
}

#[test]
fn decoys_are_not_taken_and_escapes_are_read() {
    let decoy = r#""id":1,"method":"session.create","params":{"tools":[{"sessionId":"no","p":{"sessionId":"no"}}],
        "x\"sessionId\":\"no":"\"sessionId\":\"no\"","s\u0065ssionId":"\ud83d\ude00\u002Dyes\/"}}"#;
    assert_eq!(named(decoy), session("😀-yes/"));
    let long = format!(r#""method":"m","params":{{"sessionId":"{}"}}}}"#, "a".repeat(300));
    assert_eq!(named(&long), Named::Untracked(SessionId::new(&"a".repeat(256))));
}

#[test]
fn events_are_told_apart_however_they_are_written() {
    let event = |of: By, params: &str| {
        let body = format!(r#"{{"params":{params},"method":"session.event","jsonrpc":"2.0"}}"#);
        let whole = Scan::whole_of(of, body.as_bytes()).unwrap().event;
        for at in 0..body.len() {
            let mut scan = Scan::of(of);
            let (one, two) = body.as_bytes().split_at(at);
            scan.feed(one);
            scan.feed(two);
            assert_eq!(scan.finish().unwrap().event, whole, "{body} in two pieces, at {at}");
        }
        whole
    };
    for (params, expected) in [
        (r#"{"event":{"type":"session.idle"}}"#, Some(EventKind::Idle)),
        (
            r#"{"event":{"data":{"type":"user.message"},"type":"session.idle","id":7},"x":1}"#,
            Some(EventKind::Idle),
        ),
        (r#"{"event" : {"type" : "user.mess\u0061ge"},"sessionId":"s"}"#, Some(EventKind::UserMessage)),
        (r#"{"\u0065vent":{"t\u0079pe":"assistant.turn_start"}}"#, Some(EventKind::TurnStart)),
        (r#"{"event":{"type":"session.shutdown"}}"#, Some(EventKind::Shutdown)),
        (r#"{"event":{"type":"assistant.turn_start_"}}"#, Some(EventKind::Other)),
        (r#"{"event":{"type":"session.idle\u0000"}}"#, Some(EventKind::Other)),
        (r#"{"event":{"type":null}}"#, Some(EventKind::Other)),
        (r#"{"event":{"type":["session.idle"]}}"#, Some(EventKind::Other)),
        (r#"{"event":{}}"#, None),
        (r#"{"event":"session.idle"}"#, None),
        (r#"{"event":[{"type":"session.idle"}]}"#, None),
        (r#"{"type":"session.idle","options":{"event":{"type":"session.idle"}}}"#, None),
        // Clients take the last of two.
        (r#"{"event":{"type":"user.message"},"event":{"type":"session.idle"}}"#, Some(EventKind::Idle)),
        (r#"{"event":{"type":"user.message","type":"session.idle"}}"#, Some(EventKind::Idle)),
        (r#"{"event":{"type":"session.idle","type":7}}"#, Some(EventKind::Other)),
        (r#"{"event":{"type":"session.idle"},"event":null}"#, None),
    ] {
        assert_eq!(event(By::Backend, params), expected, "{params}");
        assert_eq!(event(By::Client, params), None, "{params}: no server asks what a client says of events");
    }
}
