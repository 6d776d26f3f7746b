//! The admin API: what operators, scripts and Prometheus can ask a running balancer, and what they can tell it.
//!
//! It has no password: it is on loopback or behind the mode of a socket file, and that is its lock. The one who could
//! turn the key unseen is a web page in the operator's browser, so what changes anything is refused when the request
//! names a foreign `Origin`, or a `Host` that a DNS name could have been rebound from.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::http::Endpoint;
use super::outcome::Trouble;
use super::reload::Reloader;
use super::status::{BackendStatus, Backends, Failed, Reloaded, Route, Status};
use crate::config::{AdminAddress, AdminState};
use crate::place;
use crate::wire::SessionId;
use crate::wire::envelope::SESSION_ID_BYTES_MAX;

/// A longer body is refused. No route has a use for one, but clients send `{}` out of habit.
const BODY_BYTES_MAX: u64 = 4 << 10;

const READS: [&str; 3] = ["GET /metrics", "GET /healthz", "GET /readyz"];
const API: [&str; 5] = [
    "GET /api/v1/status",
    "GET /api/v1/backends",
    "GET /api/v1/route?session=ID",
    "POST /api/v1/reload",
    "POST /api/v1/backends/NAME/{ready,drain,maint}",
];

/// What is served on `endpoint`.
pub fn pages(reloader: &Arc<Reloader>, endpoint: &Endpoint) -> Router {
    let reads = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz));
    let router = match endpoint {
        Endpoint::Metrics(_) => reads.fallback(|| lost(&READS, &[])),
        Endpoint::Admin(address) => reads
            .route("/api/v1/status", get(status))
            .route("/api/v1/backends", get(backends))
            .route("/api/v1/route", get(route))
            .route("/api/v1/reload", post(reload))
            .route("/api/v1/backends/{name}/{state}", post(command))
            .fallback(|| lost(&READS, &API))
            .layer(from_fn_with_state(Arc::new(address.clone()), guard)),
    };
    let router = router.method_not_allowed_fallback(wrong_method);
    router.layer(from_fn(bound)).with_state(Arc::clone(reloader))
}

async fn metrics(State(reloader): State<Arc<Reloader>>) -> Response {
    const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let balancer = reloader.balancer();
    let own = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let tasks = balancer.workers.tasks().saturating_add(own);
    balancer.metrics.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
    ([(CONTENT_TYPE, TEXT_FORMAT)], balancer.metrics.text()).into_response()
}

async fn healthz() -> Response {
    Json(serde_json::json!({ "alive": true })).into_response()
}

async fn readyz(State(reloader): State<Arc<Reloader>>) -> Response {
    let balancer = reloader.balancer();
    let why = if balancer.draining.is_cancelled() {
        ("draining", "sessile is stopping and takes no new connections")
    } else if !balancer.is_ready() {
        ("no_backend", "no backend is up")
    } else {
        return Json(serde_json::json!({ "ready": true })).into_response();
    };
    failed(StatusCode::SERVICE_UNAVAILABLE, Failed::new(why.0, why.1))
}

async fn status(State(reloader): State<Arc<Reloader>>) -> Json<Status> {
    Json(Status::of(&reloader).await)
}

async fn backends(State(reloader): State<Arc<Reloader>>) -> Json<Backends> {
    Json(Backends::of(&reloader).await)
}

#[derive(Deserialize)]
struct Asked {
    session: String,
}

async fn route(
    State(reloader): State<Arc<Reloader>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Route>, Response> {
    let bad = |message: &str| failed(StatusCode::BAD_REQUEST, Failed::new("bad_request", message));
    let Ok(Query(Asked { session })) = asked else {
        return Err(bad("one session must be given, such as /api/v1/route?session=user-7-chat"));
    };
    if session.is_empty() {
        return Err(bad("a session without an ID goes to whichever backend's turn it is"));
    }
    if session.len() > SESSION_ID_BYTES_MAX {
        return Err(bad("servers take no session ID as long as this"));
    }
    match place::route(reloader.balancer(), &SessionId::new(&session)).await {
        Ok((backend, reason)) => {
            Ok(Json(Route { session, backend: backend.name().to_string(), reason: reason.label().into() }))
        }
        Err(refused) => {
            let why = Failed::new(refused.refusal.label(), refused.message);
            Err(failed(StatusCode::SERVICE_UNAVAILABLE, why))
        }
    }
}

async fn reload(State(reloader): State<Arc<Reloader>>) -> Result<Json<Reloaded>, Response> {
    if reloader.balancer().draining.is_cancelled() {
        let why = Failed::new("draining", "sessile is stopping and takes no configuration any more");
        return Err(failed(StatusCode::SERVICE_UNAVAILABLE, why));
    }
    match reloader.reload("asked for").await {
        Ok(applied) => Ok(Json(Reloaded { generation: applied.generation, changes: applied.changes })),
        Err(problems) => Err(refused_file(&reloader, problems)),
    }
}

fn refused_file(reloader: &Reloader, problems: Vec<Trouble>) -> Response {
    let file = reloader.path().display();
    let plural = if problems.len() == 1 { "" } else { "s" };
    let message = format!("{file} has {} problem{plural}; nothing was changed", problems.len());
    let why = Failed { problems, ..Failed::new("config", message) };
    failed(StatusCode::UNPROCESSABLE_ENTITY, why)
}

async fn command(
    State(reloader): State<Arc<Reloader>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<BackendStatus>, Response> {
    let Ok(Path((name, word))) = path else { return Err(lost(&READS, &API).await) };
    let state = AdminState::ALL.into_iter().find(|state| state.label() == word);
    let Some(state) = state else { return Err(lost(&READS, &API).await) };
    let told = reloader.command(&name, state).await;
    let snapshot = reloader.balancer().snapshot();
    let member = snapshot.named(&name).and_then(|at| snapshot.members.get(at));
    if let (Ok(()), Some(member)) = (told, member) {
        return Ok(Json(BackendStatus::new(&member.backend, Some(member))));
    }
    let known: Vec<&str> = snapshot.members.iter().map(|member| &**member.backend.name()).collect();
    let message = format!(
        "there is no backend called {}; there are {}",
        name.escape_debug().take(80).collect::<String>(),
        known.join(", ")
    );
    Err(failed(StatusCode::NOT_FOUND, Failed::new("unknown_backend", message)))
}

async fn lost(reads: &[&str], api: &[&str]) -> Response {
    let routes = reads.iter().chain(api).map(ToString::to_string).collect();
    let why = Failed { routes, ..Failed::new("not_found", "there is no such page") };
    failed(StatusCode::NOT_FOUND, why)
}

async fn wrong_method() -> Response {
    let why = Failed::new("wrong_method", "what changes something is asked for with POST, all else with GET");
    failed(StatusCode::METHOD_NOT_ALLOWED, why)
}

fn failed(status: StatusCode, why: Failed) -> Response {
    (status, Json(why)).into_response()
}

/// Refuses bodies that nobody would read, and keeps answers out of caches.
async fn bound(request: Request, next: Next) -> Response {
    let small = request.body().size_hint().upper().is_some_and(|bytes| bytes <= BODY_BYTES_MAX);
    let mut response = if small {
        next.run(request).await
    } else {
        let why = Failed::new("too_large", "no route reads a body: send none");
        failed(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    let fixed: [(HeaderName, &str); 2] = [(CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    for (name, value) in fixed {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses writes that a web page could have sent.
async fn guard(State(address): State<Arc<AdminAddress>>, request: Request<Body>, next: Next) -> Response {
    let reads_only = matches!(*request.method(), Method::GET | Method::HEAD);
    match reads_only || is_own(&address, &request) {
        true => next.run(request).await,
        false => {
            let message = "the Origin or Host of this request is foreign: call the admin address itself, as \
                           127.0.0.1, [::1] or localhost, and not from a page that came from elsewhere";
            failed(StatusCode::FORBIDDEN, Failed::new("foreign", message))
        }
    }
}

fn is_own(address: &AdminAddress, request: &Request<Body>) -> bool {
    let Ok(host) = only(request.headers(), &HOST) else { return false };
    let Ok(origin) = only(request.headers(), &ORIGIN) else { return false };
    // In a request line, an authority outranks the header.
    let host = request.uri().authority().map(|authority| authority.as_str()).or(host);
    let same_origin = origin.is_none_or(|origin| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority.is_some() && authority.map(str::to_lowercase) == host.map(str::to_lowercase)
    });
    same_origin
        && match address {
            // No page reaches a Unix socket, and its clients put anything there.
            AdminAddress::Unix(_) => true,
            AdminAddress::Tcp(_) => host.is_some_and(is_loopback),
        }
}

/// The one value of a header; `None` if it is absent, an error if it is there twice or is no text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
        (Some(_), Some(_)) => Err(()),
    }
}

/// Whether a `Host` is a loopback address or `localhost`, with any port: tunnels and published ports change it.
fn is_loopback(host: &str) -> bool {
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if digits(port) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(address: &AdminAddress, host: Option<&str>, origin: Option<&str>) -> bool {
        let mut request = Request::builder().method(Method::POST).uri("/api/v1/reload");
        for (name, value) in [(HOST, host), (ORIGIN, origin)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        is_own(address, &request.body(Body::empty()).unwrap())
    }

    #[test]
    fn only_hosts_that_no_name_can_be_rebound_to_may_write() {
        let tcp = AdminAddress::Tcp("127.0.0.1:9321".parse().unwrap());
        for host in ["127.0.0.1:9321", "127.0.0.1", "localhost:80", "LocalHost", "[::1]:9321", "127.9.9.9:1"]
        {
            assert!(own(&tcp, Some(host), None), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9321",
            "localhost.evil.example",
            "10.0.0.1:9321",
            "127.0.0.1.evil.example",
            "",
            "[::2]:9321",
            "127.0.0.1:9321@evil.example",
        ] {
            assert!(!own(&tcp, Some(host), None), "{host}");
        }
        assert!(!own(&tcp, None, None), "no Host");
        let unix = AdminAddress::Unix("/run/sessile.sock".into());
        assert!(own(&unix, Some("anything"), None) && own(&unix, None, None));
    }

    #[test]
    fn an_origin_must_be_the_host_itself() {
        let tcp = AdminAddress::Tcp("127.0.0.1:9321".parse().unwrap());
        let host = Some("localhost:9321");
        assert!(own(&tcp, host, Some("http://localhost:9321")));
        for origin in [
            "http://localhost:9322",
            "http://127.0.0.1:9321",
            "null",
            "",
            "localhost:9321",
            "https://evil.example",
        ] {
            assert!(!own(&tcp, host, Some(origin)), "{origin}");
        }
        let unix = AdminAddress::Unix("/run/sessile.sock".into());
        assert!(!own(&unix, host, Some("http://evil.example")));
    }

    #[test]
    fn a_host_given_twice_is_foreign() {
        let tcp = AdminAddress::Tcp("127.0.0.1:9321".parse().unwrap());
        let request = Request::builder().method(Method::POST).uri("/api/v1/reload");
        let request = request.header(HOST, "127.0.0.1").header(HOST, "evil.example");
        assert!(!is_own(&tcp, &request.body(Body::empty()).unwrap()));
    }
}
