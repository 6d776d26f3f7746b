//! `sessile drain NAME --wait` and `sessile maint NAME --wait`: until the last session has left.
//!
//! Polls instead of holding a request open, so that the wait outlasts an upgrade of the balancer, and notices a state
//! that another operator sets.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hyper::Method;
use serde::Serialize;

use super::WAITED;
use super::client::{AdminClient, AdminFault, ask, encoded};
use super::remote::complain;
use super::shown;
use super::terminal::{err, out, plain};
use crate::api::status::{BackendStatus, Status};
use crate::config::AdminState;
use crate::upgrade::OldProcessStatus;

/// The time between two requests.
const INTERVAL: Duration = Duration::from_millis(250);
/// A balancer that leaves so many requests in a row unanswered is gone.
const SILENT_MAX: u32 = 20;

/// What a backend still has, through all processes of the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rest {
    sessions: usize,
    connections: usize,
}

/// The end of a wait, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Left<'a> {
    backend: &'a str,
    state: &'a str,
    /// Whether the last session has left.
    left: bool,
    sessions: usize,
    connections: usize,
    waited_seconds: f64,
}

/// Gives a backend its state and waits until its last session has left, for `patience` at most.
pub(super) fn leave(
    admin_client: &AdminClient,
    json: bool,
    name: &str,
    state: AdminState,
    patience: Option<Duration>,
) -> ExitCode {
    let started = Instant::now();
    let path = format!("/api/v1/backends/{}/{}", encoded(name), state.label());
    match ask(admin_client, Method::POST, &path).map(|body| serde_json::from_slice::<BackendStatus>(&body)) {
        Ok(Ok(told)) if !json => err(&shown::told(&told)),
        Ok(_) => {}
        Err(fault) => return complain(&fault, json),
    }
    let (mut silent, mut said) = (0_u32, None);
    loop {
        match look(admin_client, name) {
            Ok((word, rest)) => {
                silent = 0;
                let end = |left, meanwhile, code| {
                    let all = Left {
                        backend: name,
                        state: &word,
                        left,
                        sessions: rest.sessions,
                        connections: rest.connections,
                        waited_seconds: started.elapsed().as_secs_f64(),
                    };
                    if json {
                        out(&format!("{}\n", serde_json::to_string(&all).unwrap_or_default()));
                    } else {
                        finish(&all, meanwhile);
                    }
                    code
                };
                if word != state.label() && word != GONE {
                    return end(false, true, ExitCode::FAILURE);
                }
                if rest.sessions == 0 {
                    return end(true, false, ExitCode::SUCCESS);
                }
                if patience.is_some_and(|patience| started.elapsed() >= patience) {
                    return end(false, false, ExitCode::from(WAITED));
                }
                if !json && said != Some(rest) {
                    err(&format!("{}: {} left\n", plain(name), words(rest)));
                    said = Some(rest);
                }
            }
            Err(fault) => {
                silent = silent.saturating_add(1);
                if silent >= SILENT_MAX || patience.is_some_and(|patience| started.elapsed() >= patience) {
                    return complain(&fault, json);
                }
            }
        }
        sleep(INTERVAL);
    }
}

/// The state of a backend that has left the file.
const GONE: &str = "gone";

/// The state in force and what is left.
fn look(admin_client: &AdminClient, name: &str) -> Result<(String, Rest), AdminFault> {
    let body = ask(admin_client, Method::GET, "/api/v1/status")?;
    let status: Status = serde_json::from_slice(&body)
        .map_err(|error| AdminFault::Silent(format!("{admin_client} answered something else: {error}")))?;
    Ok(rest(&status.backends, &status.predecessors, name))
}

/// What is left on the server of this name, under any name that the server has.
fn rest(backends: &[BackendStatus], predecessors: &[OldProcessStatus], name: &str) -> (String, Rest) {
    let named = backends.iter().filter(|backend| backend.name == name && !backend.leaving);
    let servers: Vec<&String> = named.filter_map(|backend| backend.server.as_ref()).collect();
    let is_it = |other: &str, server: Option<&String>| {
        other == name || server.is_some_and(|server| servers.contains(&server))
    };
    let own = backends.iter().filter(|backend| is_it(&backend.name, backend.server.as_ref()));
    let own = own.map(|backend| (backend.sessions, backend.connections));
    let old = predecessors.iter().flat_map(|old| &old.backends);
    let old = old.filter(|carried| is_it(&carried.name, carried.server.as_ref()));
    let old = old.map(|carried| (carried.sessions, carried.connections));
    let rest =
        own.chain(old).fold(Rest { sessions: 0, connections: 0 }, |rest, (sessions, connections)| Rest {
            sessions: rest.sessions.saturating_add(sessions),
            connections: rest.connections.saturating_add(connections),
        });
    let state = backends.iter().filter(|backend| backend.name == name).find_map(|b| b.state.clone());
    (state.unwrap_or_else(|| GONE.into()), rest)
}

/// Prints how the wait ended; `meanwhile` = another operator gave the backend another state.
fn finish(left: &Left<'_>, meanwhile: bool) {
    let name = plain(left.backend);
    let rest = Rest { sessions: left.sessions, connections: left.connections };
    let after = humantime::format_duration(Duration::from_secs_f64(left.waited_seconds.round()));
    if left.left {
        let without = match left.connections {
            0 => String::new(),
            _ => format!("; {} without a session", count(left.connections, "connection")),
        };
        out(&format!("{name}: the last session has left, after {after}{without}\n"));
    } else if meanwhile {
        err(&format!("sessile: {name} was made {} meanwhile; it has {}\n", plain(left.state), words(rest)));
    } else {
        err(&format!("sessile: {name} still has {} after {after}\n", words(rest)));
    }
}

fn words(rest: Rest) -> String {
    format!("{}, {}", count(rest.sessions, "session"), count(rest.connections, "connection"))
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_counted_over_all_processes() {
        let backend = serde_json::json!({
            "name": "a", "address": "a:1", "weight": 1, "state": "drain", "file_state": "ready", "health": "up",
            "suspect": false, "version": null, "error": null, "probe_seconds": null,
            "connections": 2, "sessions": 1, "leaving": false, "warmth": 100,
        });
        let old = serde_json::json!({
            "pid": 7, "version": "0", "uptime_seconds": 1.0, "connections": 9,
            "backends": [{"name": "b", "connections": 5, "sessions": 5}, {"name": "a", "connections": 3, "sessions": 2}],
        });
        let backends: Vec<BackendStatus> = vec![serde_json::from_value(backend).unwrap()];
        let old = vec![serde_json::from_value(old).unwrap()];
        assert_eq!(rest(&backends, &old, "a"), ("drain".to_owned(), Rest { sessions: 3, connections: 5 }));
        assert_eq!(rest(&backends, &old, "b"), (GONE.to_owned(), Rest { sessions: 5, connections: 5 }));
    }

    #[test]
    fn what_is_left_is_a_server_s_whatever_it_was_called() {
        let backend = |name: &str, server: &str, sessions: usize, leaving: bool| -> BackendStatus {
            serde_json::from_value(serde_json::json!({
                "name": name, "address": server, "server": server, "weight": 1, "state": "drain", "file_state": "ready",
                "health": "up", "suspect": false, "version": null, "error": null, "probe_seconds": null,
                "connections": sessions, "sessions": sessions, "leaving": leaving, "warmth": 100,
            }))
            .unwrap()
        };
        let backends = [
            backend("new", "127.0.0.1:1", 1, false),
            backend("old", "127.0.0.1:1", 2, true),
            backend("other", "127.0.0.1:2", 4, false),
        ];
        let carried = r#"[{"name": "old", "server": "127.0.0.1:1", "connections": 8, "sessions": 8}]"#;
        let old = serde_json::json!({
            "pid": 7, "version": "0", "uptime_seconds": 1.0, "connections": 8,
            "backends": serde_json::from_str::<serde_json::Value>(carried).unwrap(),
        });
        let left = rest(&backends, &[serde_json::from_value(old).unwrap()], "new");
        assert_eq!(left, ("drain".to_owned(), Rest { sessions: 11, connections: 11 }));
    }
}
