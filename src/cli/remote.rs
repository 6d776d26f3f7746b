//! `sessile status`, `reload`, `drain`, `ready` and `maint`: requests to a running balancer.

use std::process::ExitCode;

use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::CONFIG;
use super::client::{AdminClient, AdminFault, ask, encoded};
use super::shown;
use super::terminal::{Look, err, out};
use crate::api::status::Status;
use crate::config::AdminState;

/// Prints the status; the exit code says whether it is ready.
pub(super) fn status(admin_client: &AdminClient, json: bool) -> ExitCode {
    let words = |status: &Status| shown::status(status, Look::of_output());
    show(admin_client, json, Method::GET, "/api/v1/status", words, |status| status.ready)
}

/// Reloads the file.
pub(super) fn reload(admin_client: &AdminClient, json: bool) -> ExitCode {
    show(admin_client, json, Method::POST, "/api/v1/reload", shown::reloaded, |_| true)
}

/// Gives a backend a state.
pub(super) fn tell(admin_client: &AdminClient, json: bool, name: &str, state: AdminState) -> ExitCode {
    let path = format!("/api/v1/backends/{}/{}", encoded(name), state.label());
    show(admin_client, json, Method::POST, &path, shown::told, |_| true)
}

/// Asks, and prints the answer: for scripts as it came, errors included; else as text. `good` says whether to exit with 0.
fn show<T: DeserializeOwned>(
    admin_client: &AdminClient,
    json: bool,
    method: Method,
    path: &str,
    words: impl Fn(&T) -> String,
    good: impl Fn(&T) -> bool,
) -> ExitCode {
    match ask(admin_client, method, path) {
        Ok(body) => {
            let answer = serde_json::from_slice::<T>(&body);
            match &answer {
                _ if json => out(&format!("{}\n", String::from_utf8_lossy(&body))),
                Ok(answer) => out(&words(answer)),
                Err(error) => err(&format!(
                    "sessile: {admin_client} answered something else: {error}\n  is it another version? --json shows all of it\n"
                )),
            }
            // The answer of another version is passed on as it is.
            if answer.map_or(json, |answer| good(&answer)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(fault) => complain(&fault, json),
    }
}

pub(super) fn complain(fault: &AdminFault, json: bool) -> ExitCode {
    match fault {
        AdminFault::Refused { body, .. } if json => out(&format!("{}\n", String::from_utf8_lossy(body))),
        AdminFault::Refused { why, .. } => {
            err(&format!("sessile: {fault}\n{}", shown::problems(&why.problems)));
        }
        AdminFault::Silent(_) => err(&format!("sessile: {fault}\n")),
    }
    match fault {
        AdminFault::Refused { status: StatusCode::UNPROCESSABLE_ENTITY, .. } => ExitCode::from(CONFIG),
        _ => ExitCode::FAILURE,
    }
}
