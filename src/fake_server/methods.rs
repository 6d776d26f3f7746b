//! The methods, one by one, as the real server answers them.
//!
//! Pure but for the queues: a method changes the state, queues what must come before its answer, and says what comes
//! after. Error texts are the real server's to the letter where they were measured, because clients match on them.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::answer::{After, Done, Options, Refusal, failed, plain, refusal};
use super::message::{Request, session_of};
use super::notice::{deleted, event, lifecycle, messages, metadata, send_event, stamp, uuid};
use super::opening;
use super::state::State;
use super::wire;

/// Whether the method loads a session, which takes `create_delay`.
pub(super) fn loads(method: &str) -> bool {
    matches!(method, "session.create" | "session.resume")
}

/// Answers one request. `admitted` is whether its connection was authenticated when the request was **read**.
pub(super) fn answer(
    options: &Options,
    state: &mut State,
    number: u64,
    admitted: bool,
    request: &Request,
) -> Vec<After> {
    if let Some(instead) = state.instead.get(&request.method) {
        let mut answer = instead.clone();
        if let Some(fields) = answer.as_object_mut() {
            fields.insert("jsonrpc".to_owned(), json!("2.0"));
            fields.insert("id".to_owned(), request.id.clone());
            state.send(number, wire::frame(&answer));
        }
        return Vec::new();
    }
    let done = if request.method == "connect" {
        connect(options, state, number, &request.params)
    } else if !admitted {
        Err(refusal(-32001, "AUTHENTICATION_REQUIRED"))
    } else {
        call(options, state, number, request)
    };
    let (frame, after) = match done {
        Ok((result, after)) => (wire::result(&request.id, &result), after),
        Err(Refusal { code, message }) => (wire::error(&request.id, code, message), Vec::new()),
    };
    state.send(number, frame);
    after
}

fn connect(options: &Options, state: &mut State, number: u64, params: &Value) -> Done {
    const KNOWN: [&str; 5] =
        ["enableGitHubTelemetryForwarding", "clientInfo", "supportedTaskKinds", "token", "entra"];
    let mut fields = params.as_object().into_iter().flatten().map(|(field, _)| field);
    if let Some(field) = fields.find(|field| !KNOWN.contains(&field.as_str())) {
        return Err(refusal(-32602, format!("Invalid connect request: unknown field `{field}`")));
    }
    match (&options.token, params.get("token").and_then(Value::as_str)) {
        (None, Some(_)) => return Err(refusal(-32003, "AUTHENTICATION_NOT_CONFIGURED")),
        (Some(token), given) if given != Some(token.as_str()) => {
            return Err(refusal(-32002, "AUTHENTICATION_FAILED"));
        }
        _ => {}
    }
    if let Some(connection) = state.connections.get_mut(&number) {
        connection.authenticated = true;
    }
    if state.faults.zombie {
        return Err(shutting_down());
    }
    let mut kinds = vec!["agent", "shell"];
    let supported = params.get("supportedTaskKinds").and_then(Value::as_array);
    if supported.is_some_and(|supported| supported.iter().any(|kind| kind == "client")) {
        kinds.push("client");
    }
    let (protocol, version) = (options.protocol_version, &options.version);
    plain(json!({"ok": true, "protocolVersion": protocol, "version": version, "taskKinds": kinds}))
}

fn call(options: &Options, state: &mut State, number: u64, request: &Request) -> Done {
    let (method, params) = (request.method.as_str(), &request.params);
    if !KNOWN_METHODS.contains(&method) {
        return Err(refusal(-32601, format!("Unhandled method {method}")));
    }
    if state.faults.zombie {
        return Err(shutting_down());
    }
    match method {
        "ping" => plain(ping(options, params)),
        "status.get" => {
            plain(json!({"version": options.version, "protocolVersion": options.protocol_version}))
        }
        "auth.getStatus" => plain(json!({"isAuthenticated": false, "statusMessage": "Not authenticated"})),
        "models.list" => Err(failed(method, "Not authenticated. Please authenticate first.")),
        "session.list" | "sessions.list" => plain(json!({"sessions": list(state)})),
        "session.getLastId" => plain(match state.sessions.disk.sessions().first() {
            Some((session, _)) => json!({"sessionId": session}),
            None => json!({}),
        }),
        "plugins.builtin.set" => set_plugins(state, params),
        "sessionFs.setProvider" => set_fs_provider(state, number, params),
        "runtime.shutdown" => Ok((json!({}), vec![After::Shutdown])),
        "session.create" => opening::create(options, state, number, params),
        "sessions.open" => opening::open(options, state, number, params),
        _ => match session_of(params) {
            Some(session) => session_call(options, state, number, method, session, params),
            None if method == "session.metadata.isProcessing" => {
                Err(failed(method, format!("Missing sessionId in {method} request")))
            }
            None => Err(failed(method, "Missing sessionId parameter")),
        },
    }
}

const KNOWN_METHODS: [&str; 23] = [
    "auth.getStatus",
    "models.list",
    "ping",
    "plugins.builtin.set",
    "runtime.shutdown",
    "session.create",
    "session.delete",
    "session.destroy",
    "session.detach",
    "session.getLastId",
    "session.getMessages",
    "session.getMetadata",
    "session.list",
    "session.metadata.isProcessing",
    "session.resume",
    "session.send",
    "sessionFs.setProvider",
    "sessions.close",
    "sessions.delete",
    "sessions.fork",
    "sessions.list",
    "sessions.open",
    "status.get",
];

fn session_call(
    options: &Options,
    state: &mut State,
    number: u64,
    method: &str,
    session: &str,
    params: &Value,
) -> Done {
    let live = state.sessions.live.get(session);
    match method {
        "session.resume" => opening::resume(options, state, number, session, params),
        "session.send" => send(state, session, params),
        "session.metadata.isProcessing" => match live {
            Some(live) => plain(json!({"processing": live.processing})),
            None => Err(failed(method, format!("Session not found for sessionId: {session}"))),
        },
        "session.getMessages" => match live {
            Some(_) => plain(json!({"events": messages(state, session)})),
            None => Err(failed(method, format!("Session not found for sessionId: {session}"))),
        },
        "session.getMetadata" => plain(match state.sessions.disk.stored(session) {
            Some(stored) => json!({"session": metadata(session, stored)}),
            None => json!({}),
        }),
        "session.detach" => {
            let last = state.sessions.detach(session, number) == Some(true);
            Ok((json!({"success": true}), unload_if(last, session)))
        }
        "session.destroy" => {
            let left = state.sessions.detach(session, number);
            Ok((json!({"success": left.is_some()}), unload_if(left == Some(true), session)))
        }
        "session.delete" => plain(delete(state, &opening::meant(state, session))),
        "sessions.close" => plain(opening::close(state, session)),
        "sessions.delete" => opening::delete(state, session),
        "sessions.fork" => fork(state, method, session),
        _ => Err(refusal(-32601, format!("Unhandled method {method}"))),
    }
}

fn ping(options: &Options, params: &Value) -> Value {
    let message = match params.get("message").and_then(Value::as_str) {
        Some(message) => format!("pong: {message}"),
        None => "pong".to_owned(),
    };
    let timestamp = stamp(SystemTime::now());
    json!({"message": message, "timestamp": timestamp, "protocolVersion": options.protocol_version})
}

fn send(state: &mut State, session: &str, params: &Value) -> Done {
    let prompt = params.get("prompt").and_then(Value::as_str).unwrap_or_default();
    let Some(epoch) = state.sessions.begin_turn(session, prompt) else {
        return Err(failed("session.send", format!("Session not found for sessionId: {session}")));
    };
    let id = uuid();
    let asked = event("user.message", &json!({"content": prompt, "messageId": id}));
    let session = session.to_owned();
    let after = vec![After::Event(session.clone(), asked), After::Turn { session, epoch }];
    Ok((json!({"messageId": id}), after))
}

/// Ends a turn: the answer names the server and how many prompts it remembers, so that a lost memory shows.
pub(super) fn finish_turn(options: &Options, state: &mut State, session: &str, epoch: u64) {
    let turns = state.sessions.live.get(session).map_or(0, |live| live.turns());
    let content = format!("{}, turn {turns}", options.name);
    if state.sessions.end_turn(session, epoch, &content) {
        for event in
            [event("assistant.message", &json!({"content": content})), event("session.idle", &json!({}))]
        {
            send_event(state, session, &event);
        }
        lifecycle(state, "session.updated", session);
    }
}

fn delete(state: &mut State, session: &str) -> Value {
    if state.sessions.delete(session) {
        deleted(state, session);
        json!({"success": true})
    } else {
        json!({"success": false, "error": format!("Session file not found for {session}")})
    }
}

fn fork(state: &mut State, method: &str, session: &str) -> Done {
    let fork = uuid();
    if state.sessions.fork(session, &fork) {
        plain(json!({"sessionId": fork, "name": format!("{session} (fork)")}))
    } else {
        Err(failed(method, format!("Session not found: {session}")))
    }
}

fn set_plugins(state: &State, params: &Value) -> Done {
    const METHOD: &str = "plugins.builtin.set";
    if !params.get("paths").is_some_and(Value::is_array) {
        return Err(failed(METHOD, "plugins.builtin.set requires a paths array."));
    }
    if !state.sessions.live.is_empty() {
        let why = "Cannot set built-in plugins while sessions are active. \
                   Call plugins.builtin.set before creating any sessions.";
        return Err(failed(METHOD, why));
    }
    plain(Value::Null)
}

fn set_fs_provider(state: &mut State, number: u64, params: &Value) -> Done {
    const METHOD: &str = "sessionFs.setProvider";
    if !params.get("initialCwd").is_some_and(Value::is_string) {
        return Err(failed(METHOD, "Invalid sessionFs.setProvider params: missing field `initialCwd`"));
    }
    if !state.sessions.live.is_empty() {
        let why = "Cannot set session filesystem provider while sessions are active. \
                   Call sessionFs.setProvider before creating any sessions.";
        return Err(failed(METHOD, why));
    }
    state.fs_provider.get_or_insert(number);
    plain(json!({"success": true}))
}

fn list(state: &State) -> Vec<Value> {
    let sessions = state.sessions.disk.sessions();
    sessions.iter().map(|(session, stored)| metadata(session, *stored)).collect()
}

fn unload_if(last: bool, session: &str) -> Vec<After> {
    if last { vec![After::Unload(session.to_owned())] } else { Vec::new() }
}

fn shutting_down() -> Refusal {
    refusal(-32000, "SERVER_SHUTTING_DOWN")
}
