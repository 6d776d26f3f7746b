//! `sessile status`, `reload`, `drain`, `ready` and `maint`: asked of a running balancer.

use std::process::ExitCode;

use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::CONFIG;
use super::client::{Desk, Fault, ask, encoded};
use super::shown;
use super::terminal::{Look, err, out};
use crate::config::AdminState;

/// Prints the status.
pub(super) fn status(desk: &Desk, json: bool) -> ExitCode {
    show(desk, json, Method::GET, "/api/v1/status", |status| shown::status(status, Look::of_output()))
}

/// Reloads the file.
pub(super) fn reload(desk: &Desk, json: bool) -> ExitCode {
    show(desk, json, Method::POST, "/api/v1/reload", shown::reloaded)
}

/// Gives a backend a state.
pub(super) fn tell(desk: &Desk, json: bool, name: &str, state: AdminState) -> ExitCode {
    let path = format!("/api/v1/backends/{}/{}", encoded(name), state.label());
    show(desk, json, Method::POST, &path, shown::told)
}

/// Asks, and prints the answer: as it came for scripts, errors included; else in words.
fn show<T: DeserializeOwned>(
    desk: &Desk,
    json: bool,
    method: Method,
    path: &str,
    words: impl Fn(&T) -> String,
) -> ExitCode {
    match ask(desk, method, path) {
        Ok(body) if json => {
            out(&format!("{}\n", String::from_utf8_lossy(&body)));
            ExitCode::SUCCESS
        }
        Ok(body) => match serde_json::from_slice(&body) {
            Ok(answer) => {
                out(&words(&answer));
                ExitCode::SUCCESS
            }
            Err(error) => {
                err(&format!(
                    "sessile: {desk} answered something else: {error}\n  is it another version? --json shows all of it\n"
                ));
                ExitCode::FAILURE
            }
        },
        Err(fault) => complain(&fault, json),
    }
}

pub(super) fn complain(fault: &Fault, json: bool) -> ExitCode {
    match fault {
        Fault::Refused { body, .. } if json => out(&format!("{}\n", String::from_utf8_lossy(body))),
        Fault::Refused { why, .. } => {
            err(&format!("sessile: {fault}\n{}", shown::problems(&why.problems)));
        }
        Fault::Silent(_) => err(&format!("sessile: {fault}\n")),
    }
    match fault {
        Fault::Refused { status: StatusCode::UNPROCESSABLE_ENTITY, .. } => ExitCode::from(CONFIG),
        _ => ExitCode::FAILURE,
    }
}
