//! How a session is opened and closed, and the tools that a connection brings to it.

use serde_json::{Value, json};

use super::answer::{After, Done, Options, failed, is_valid, plain};
use super::notice::{event, lifecycle, opened, uuid};
use super::session::Loaded;
use super::state::State;

/// The session that an ID means: itself, or the only one that begins so, if it is the beginning of a UUID.
pub(super) fn meant(state: &State, id: &str) -> String {
    let known = |id: &str| state.sessions.live.contains_key(id) || state.sessions.disk.stored(id).is_some();
    let is_beginning = (7..36).contains(&id.len())
        && id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if known(id) || !is_beginning {
        return id.to_owned();
    }
    let beginning = id.to_lowercase();
    let stored = state.sessions.disk.sessions();
    let mut all =
        stored.into_iter().map(|(session, _)| session).filter(|session| session.starts_with(&beginning));
    match (all.next(), all.next()) {
        (Some(only), None) => only,
        _ => id.to_owned(),
    }
}

/// The names of the tools that a connection brings.
pub(super) fn tools(params: &Value) -> impl Iterator<Item = &str> {
    let tools = params.get("tools").and_then(Value::as_array).into_iter().flatten();
    tools.filter_map(|tool| tool.get("name").and_then(Value::as_str))
}

/// Whether another connection has a tool of a name that this one brings.
pub(super) fn clash(state: &State, session: &str, number: u64, params: &Value) -> Result<(), String> {
    let Some(live) = state.sessions.live.get(session) else { return Ok(()) };
    match tools(params).find(|name| live.tools.get(*name).is_some_and(|of| *of != number)) {
        Some(name) => {
            Err(format!("External tool name clash: {name} already registered by another connection"))
        }
        None => Ok(()),
    }
}

pub(super) fn create(options: &Options, state: &mut State, number: u64, params: &Value) -> Done {
    const METHOD: &str = "session.create";
    let session = match params.get("sessionId") {
        None | Some(Value::Null) => uuid(),
        Some(Value::String(session)) if session.is_empty() => uuid(),
        Some(Value::String(session)) if is_valid(session) => session.clone(),
        Some(session) => {
            let session = session.as_str().map_or_else(|| session.to_string(), str::to_owned);
            let why = format!("Rejected session.create request with invalid sessionId: {session}");
            return Err(failed(METHOD, why));
        }
    };
    clash(state, &session, number, params).map_err(|why| failed(METHOD, why))?;
    let Some(loaded) = state.sessions.create(&session, number) else {
        return Err(failed(METHOD, "Too many sessions"));
    };
    state.sessions.bring(&session, number, tools(params));
    let mut after = Vec::new();
    if !loaded.was_live {
        let data = json!({"sessionId": session, "alreadyInUse": loaded.in_use});
        after.push(After::Event(session.clone(), event("session.start", &data)));
    }
    if options.created_after_answer {
        after.push(After::Created(session.clone()));
    } else {
        lifecycle(state, "session.created", &session);
    }
    Ok((opened(state, &session), after))
}

pub(super) fn resume(
    options: &Options,
    state: &mut State,
    number: u64,
    session: &str,
    params: &Value,
) -> Done {
    let session = &*meant(state, session);
    clash(state, session, number, params).map_err(|why| failed("session.resume", why))?;
    let Some(Loaded { was_live, in_use }) = state.sessions.resume(session, number) else {
        let why = format!("Failed to load session events: Session not found: {session}");
        return Err(failed("session.resume", why));
    };
    if params.get("tools").is_some() {
        state.sessions.bring(session, number, tools(params));
    }
    let mut after = Vec::new();
    if params.get("disableResume") != Some(&Value::Bool(true)) {
        lifecycle(state, "session.updated", session);
        let data = json!({"alreadyInUse": in_use, "sessionWasActive": was_live, "server": options.name});
        after.push(After::Event(session.to_owned(), event("session.resume", &data)));
    }
    Ok((opened(state, session), after))
}

/// `sessions.open`: which session by what kind.
pub(super) fn open(options: &Options, state: &mut State, number: u64, params: &Value) -> Done {
    const METHOD: &str = "sessions.open";
    let id = |value: &Value| value.get("sessionId").and_then(Value::as_str).map(str::to_owned);
    let (session, status) = match params.get("kind").and_then(Value::as_str) {
        Some("create") => {
            let chosen = params.get("options").cloned().unwrap_or_default();
            let (created, _) = create(options, state, number, &chosen)?;
            (id(&created), "created")
        }
        Some("resume") => {
            let asked = id(params).unwrap_or_default();
            if !is_valid(&asked) {
                return Err(failed(METHOD, format!("Invalid sessionId: \"{asked}\"")));
            }
            let resumed = resume(options, state, number, &asked, &json!({"disableResume": true}));
            (resumed.ok().and_then(|(resumed, _)| id(&resumed)), "resumed")
        }
        Some("attach") => {
            let live = id(params).filter(|session| state.sessions.live.contains_key(session));
            let attached = live.filter(|session| state.sessions.resume(session, number).is_some());
            (attached, "resumed")
        }
        Some("resumeLast") => {
            let last = state.sessions.disk.sessions().first().map(|(session, _)| session.clone());
            let resumed = last.filter(|session| state.sessions.resume(session, number).is_some());
            (resumed, "resumed")
        }
        _ => (None, "not_found"),
    };
    plain(match session {
        Some(session) => json!({"status": status, "sessionId": session, "startupPrompts": []}),
        None => json!({"status": "not_found"}),
    })
}

/// `sessions.close`: whoever asks, and whoever is attached.
pub(super) fn close(state: &mut State, session: &str) -> Value {
    if state.sessions.unload(session) {
        lifecycle(state, "session.updated", session);
    }
    json!({})
}

/// `sessions.delete`: by the whole ID only, and nobody is told.
pub(super) fn delete(state: &mut State, session: &str) -> Done {
    if state.sessions.delete(session) {
        return plain(json!({}));
    }
    Err(failed("sessions.delete", format!("Session file not found for {session}")))
}
