//! What is said again of a session, and what is kept for that.

use serde_json::{Value, json};

use super::*;
use crate::wire::{Called, Head};

const SESSION: &str = "user-1-\"chat\"";

fn config() -> Sessions {
    Sessions::default()
}

fn journals(config: &Sessions) -> (Arc<Journals>, Arc<Metrics>) {
    let metrics = Metrics::new().unwrap();
    (Journals::new(&metrics, config), metrics)
}

fn request(method: &str, mut params: Value) -> Vec<u8> {
    params["sessionId"] = SESSION.into();
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string().into_bytes()
}

fn said(frame: &[u8]) -> Value {
    let head = Head::read(frame).unwrap().unwrap();
    assert_eq!(frame.len().checked_sub(head.head_bytes), Some(head.body_bytes));
    serde_json::from_slice(&frame[head.head_bytes..]).unwrap()
}

fn resumed(opening: &Opening) -> Value {
    said(&opening.resume("\"sessile-1\"", &SessionId::new(SESSION)))
}

/// Methods and params of the settings that are said again.
fn settings(opening: &Opening) -> Vec<(String, Value)> {
    let mut numbers = 0..;
    let id = || numbers.next().unwrap_or_default().to_string();
    let frames = opening.settings(id, &SessionId::new(SESSION));
    let told = |(at, frame): (usize, &Vec<u8>)| {
        let mut frame = said(frame);
        assert_eq!(frame["id"], at);
        assert_eq!(frame["params"]["sessionId"].take(), SESSION);
        frame["params"].as_object_mut().unwrap().remove("sessionId");
        (frame["method"].as_str().unwrap().to_owned(), frame["params"].take())
    };
    frames.iter().enumerate().map(told).collect()
}

fn note(journal: &Journal, opening: &mut Opening, method: &str, params: Value) {
    let body = request(method, params);
    journal.note(Called::from(method).known(), &body, Some(opening));
}

#[test]
fn an_opening_is_said_again_as_a_resume_less_what_is_stored() {
    let (journals, metrics) = journals(&config());
    let journal = journals.journal();
    let body = request(
        "session.create",
        json!({
            "model": "m", "reasoningEffort": "high", "workingDirectory": "/w", "cloud": {}, "continuePendingWork": true,
            "disableResume": false, "tools": [{"name": "t", "parameters": {"z": 1, "a": 2}}], "streaming": true,
            "systemMessage": {"content": "be kind \u{7f}ü"}, "provider": {"apiKey": "k"}, "nothing": null,
        }),
    );
    let opening = Opening::of(&journal, &body).unwrap();
    let again = resumed(&opening);
    assert_eq!((&again["method"], &again["id"]), (&json!("session.resume"), &json!("sessile-1")));
    let expected = json!({
        "sessionId": SESSION, "disableResume": true, "tools": [{"name": "t", "parameters": {"z": 1, "a": 2}}],
        "streaming": true, "systemMessage": {"content": "be kind \u{7f}ü"}, "provider": {"apiKey": "k"}, "nothing": null,
    });
    assert_eq!(again["params"], expected);
    assert!(metrics.revivals.journal_bytes.get() > 0);
    assert!(!format!("{opening:?} {journal:?}").contains("be kind"));
}

#[test]
fn sessions_open_has_its_params_one_level_deeper() {
    let (journals, _) = journals(&config());
    let journal = journals.journal();
    let options = json!({"sessionId": SESSION, "streaming": true, "model": "m"});
    let body = request("sessions.open", json!({"kind": "create", "options": options}));
    let again = resumed(&Opening::of(&journal, &body).unwrap());
    assert_eq!(again["params"], json!({"sessionId": SESSION, "streaming": true, "disableResume": true}));
    let body = request("sessions.open", json!({"kind": "attach"}));
    let again = resumed(&Opening::of(&journal, &body).unwrap());
    assert_eq!(again["params"], json!({"sessionId": SESSION, "disableResume": true}));
}

#[test]
fn settings_are_said_again_in_the_order_of_their_success_and_patches_are_one() {
    let (journals, _) = journals(&config());
    let journal = journals.journal();
    let mut opening = Opening::of(&journal, &request("session.create", json!({}))).unwrap();
    for (method, params) in [
        ("session.options.update", json!({"a": 1, "b": [1]})),
        ("session.eventLog.registerInterest", json!({"eventType": "x"})),
        ("session.permissions.setApproveAll", json!({"enabled": true})),
        ("session.agent.select", json!({"name": "one"})),
        ("session.options.update", json!({"b": [2], "c": null})),
        ("session.eventLog.registerInterest", json!({"eventType": "y"})),
        ("session.eventLog.registerInterest", json!({"eventType": "x"})),
        ("session.permissions.setApproveAll", json!({"enabled": false})),
        ("session.tools.set", json!({"tools": ["t"]})),
    ] {
        note(&journal, &mut opening, method, params);
    }
    let expected = [
        ("session.agent.select", json!({"name": "one"})),
        ("session.options.update", json!({"a": 1, "b": [2], "c": null})),
        ("session.permissions.setApproveAll", json!({"enabled": false})),
        ("session.eventLog.registerInterest", json!({"eventType": "y"})),
        ("session.eventLog.registerInterest", json!({"eventType": "x"})),
        ("session.tools.set", json!({"tools": ["t"]})),
    ];
    assert_eq!(settings(&opening), expected.map(|(method, params)| (method.to_owned(), params)));
    // What belongs to a connection is not said for another one.
    let other = Opening::of(&journal, &request("session.resume", json!({}))).unwrap();
    assert_eq!(settings(&other).len(), 3);
    assert_eq!(journal.unmovable(), None);
}

#[test]
fn what_does_not_fit_pins_the_session_and_is_counted_until_it_is_gone() {
    let small = Sessions { journal_bytes: 4096, ..config() };
    let (journals, metrics) = journals(&small);
    let journal = journals.journal();
    let long = |n: usize| "x".repeat(n);
    let create = request("session.create", json!({"prompt": long(4096)}));
    assert_eq!(Opening::of(&journal, &create).map(drop), Err(Unmovable::Size));
    assert_eq!(Opening::of(&journal, br#"{"params":[]}"#).map(drop), Err(Unmovable::Unread));
    let mut opening =
        Opening::of(&journal, &request("session.create", json!({"prompt": long(500)}))).unwrap();
    assert_eq!(journal.unmovable(), None);
    note(&journal, &mut opening, "session.agent.select", json!({"name": long(1000)}));
    note(&journal, &mut opening, "session.permissions.setApproveAll", json!({"enabled": true}));
    note(&journal, &mut opening, "session.agent.select", json!({"name": long(5000)}));
    assert_eq!(journal.unmovable(), Some(Unmovable::Size));
    assert_eq!(settings(&opening).len(), 1, "the first name does not hold any more, nor is it said");
    // By the thousand, each of its own.
    for n in 0..1000 {
        note(&journal, &mut opening, "session.eventLog.registerInterest", json!({"eventType": n}));
    }
    assert!(settings(&opening).len() < 100);
    assert_eq!(metrics.revivals.unmovable("size").get(), 1);
    journal.pin(Unmovable::Method);
    assert_eq!(metrics.revivals.unmovable("method").get(), 0, "the first reason stays");
    drop((opening, journal));
    assert_eq!((metrics.revivals.unmovable("size").get(), metrics.revivals.journal_bytes.get()), (0, 0));
}

#[test]
fn all_journals_together_have_a_bound_and_sessions_of_one_app_share_what_is_large() {
    let bounded = Sessions { journal_memory: Some(256 << 10), ..config() };
    let (journals, metrics) = journals(&bounded);
    let create = |n: usize| {
        let tools = "t".repeat(30_000);
        request("session.create", json!({"tools": tools, "user": format!("{n}-{}", "u".repeat(1500))}))
    };
    let open = |n: usize| {
        let journal = journals.journal();
        Opening::of(&journal, &create(n))
    };
    let mut openings: Vec<Opening> = (0..200).filter_map(|n| open(n).ok()).collect();
    assert!(openings.len() > 100 && openings.len() < 200, "{}", openings.len());
    assert!(metrics.revivals.journal_bytes.get() <= (256 << 10) + 4096);
    assert!(matches!(open(1000), Err(Unmovable::Memory)));
    openings.truncate(50);
    assert!(open(1000).is_ok());
    drop(openings);
    assert_eq!(metrics.revivals.journal_bytes.get(), 0);
}

#[test]
fn a_request_is_kept_whole_or_not_at_all() {
    let (journals, metrics) = journals(&config());
    let body = request("session.create", json!({"a": 1}));
    let (begun, rest) = body.split_at(20);
    let mut kept = journals.keep(&journals.account(), begun, rest.len(), 1 << 20).unwrap();
    assert_eq!(kept.body(), None);
    for piece in rest.chunks(7) {
        kept.more(piece);
    }
    assert_eq!(kept.body(), Some(&body[..]));
    kept.more(b"more than was said");
    assert_eq!(kept.body(), Some(&body[..]));
    assert!(matches!(
        journals.keep(&journals.account(), begun, rest.len(), body.len() - 1),
        Err(Unmovable::Size)
    ));
    let account = journals.account();
    let many: Vec<_> = (0..1000).map(|_| journals.keep(&account, &[b'x'; 8192], 0, 64 << 10)).collect();
    let few = many.iter().filter(|kept| kept.is_ok()).count();
    assert_eq!(few, 7, "of one client so many are kept");
    assert!(journals.keep(&journals.account(), begun, 0, 64).is_ok(), "another one has room");
    drop(many);
    drop(kept);
    assert_eq!(metrics.revivals.journal_bytes.get(), 0);
    let off = Sessions { revive: false, ..config() };
    journals.set(&off);
    assert!(!journals.is_on());
}

#[test]
fn what_is_stored_after_an_option_takes_its_place() {
    let (journals, metrics) = journals(&config());
    let journal = journals.journal();
    let mut opening = Opening::of(&journal, &request("session.create", json!({}))).unwrap();
    let empty = metrics.revivals.journal_bytes.get();
    note(
        &journal,
        &mut opening,
        "session.options.update",
        json!({"model": "m", "reasoningEffort": "high", "clientName": "c"}),
    );
    let overrides = |method: &str| Called::from(method).known().overrides;
    journal.forget_options(overrides("session.model.setReasoningEffort"));
    let update = |left: Value| [("session.options.update".to_owned(), left)];
    assert_eq!(settings(&opening), update(json!({"model": "m", "clientName": "c"})));
    journal.forget_options(overrides("session.model.switchTo"));
    assert_eq!(settings(&opening), update(json!({"clientName": "c"})));
    note(&journal, &mut opening, "session.options.update", json!({"model": "n"}));
    assert_eq!(settings(&opening), update(json!({"clientName": "c", "model": "n"})));
    journal.forget_options(&["clientName", "model"]);
    assert_eq!(settings(&opening), []);
    assert_eq!(metrics.revivals.journal_bytes.get(), empty);
}

#[test]
fn an_agent_that_was_deselected_stays_so() {
    let (journals, _) = journals(&config());
    let journal = journals.journal();
    let mut opening = Opening::of(&journal, &request("session.create", json!({"agent": "a"}))).unwrap();
    let (select, deselect) = ("session.agent.select", "session.agent.deselect");
    for (method, params) in
        [(select, json!({"name": "b"})), (deselect, json!({})), (select, json!({"name": "c"}))]
    {
        note(&journal, &mut opening, method, params.clone());
        assert_eq!(settings(&opening), [(method.to_owned(), params)]);
    }
}

#[test]
fn what_a_second_opening_does_not_name_stays() {
    let config = Sessions { journal_bytes: 4096, ..config() };
    let (journals, metrics) = journals(&config);
    let journal = journals.journal();
    let open = |params: Value| Opening::of(&journal, &request("session.resume", params)).unwrap();
    let mut second = open(json!({"streaming": true, "tools": []}));
    second.upon(open(json!({"provider": {"apiKey": "k"}, "streaming": false}))).unwrap();
    let expected = json!({
        "sessionId": SESSION, "disableResume": true, "provider": {"apiKey": "k"}, "streaming": true, "tools": [],
    });
    assert_eq!(resumed(&second)["params"], expected);
    let long = |name: &str| open(json!({name: "x".repeat(3000)}));
    assert_eq!(long("a").upon(long("b")), Err(Unmovable::Size));
    drop((second, journal));
    assert_eq!(metrics.revivals.journal_bytes.get(), 0);
}
