//! The admin API: what operators, scripts and Prometheus can ask a running balancer, and what they can change.
//!
//! `guard` decides who may; here are the routes.

use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::guard::{self, Lock};
use super::page;
use super::status::{BackendStatus, Backends, Failed, Probes, Reloaded, Route, Status};
use crate::config::AdminState;
use crate::control::Reloader;
use crate::control::Trouble;
use crate::place;
use crate::sockets::Endpoint;
use crate::wire::SessionId;
use crate::wire::envelope::SESSION_ID_BYTES_MAX;

/// A longer body is refused. No route has a use for one, but clients send `{}` out of habit.
const BODY_BYTES_MAX: u64 = 4 << 10;

const READS: [&str; 4] = ["GET /metrics", "GET /metrics/PID", "GET /healthz", "GET /readyz"];
const API: [&str; 7] = [
    "GET /",
    "GET /api/v1/status",
    "GET /api/v1/backends",
    "GET /api/v1/probes",
    "GET /api/v1/route?session=ID",
    "POST /api/v1/reload",
    "POST /api/v1/backends/NAME/{ready,drain,maint}",
];

/// What is served on `endpoint`.
pub fn pages(reloader: &Arc<Reloader>, endpoint: &Endpoint) -> Router {
    let reads = Router::new()
        .route("/metrics", get(metrics))
        .route("/metrics/{pid}", get(old_metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz));
    let router = match endpoint {
        Endpoint::Metrics(_) => reads.fallback(|| lost(&READS, &[])),
        Endpoint::Admin(address) => {
            let lock = Arc::new(Lock::new(address.clone(), reloader));
            let api = Router::new()
                .route("/api/v1/status", get(status))
                .route("/api/v1/backends", get(backends))
                .route("/api/v1/probes", get(probes))
                .route("/api/v1/route", get(route))
                .route("/api/v1/reload", post(reload))
                .route("/api/v1/backends/{name}/{state}", post(command))
                .fallback(|| lost(&READS, &API))
                .method_not_allowed_fallback(wrong_method)
                .layer(from_fn_with_state(Arc::clone(&lock), guard::token_and_origin));
            let all = api.merge(reads.layer(from_fn_with_state(lock, guard::token)));
            all.route("/", get(page::page))
        }
    };
    let router = router.method_not_allowed_fallback(wrong_method);
    router.layer(from_fn(bound)).with_state(Arc::clone(reloader))
}

const TEXT_FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

async fn metrics(State(reloader): State<Arc<Reloader>>) -> Response {
    let balancer = reloader.balancer();
    let own = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let tasks = balancer.workers.tasks().saturating_add(own);
    let metrics = &balancer.metrics;
    metrics.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
    metrics.upgrades.old(reloader.old_processes().status().await.iter().map(|old| old.connections));
    ([(CONTENT_TYPE, TEXT_FORMAT)], metrics.text()).into_response()
}

/// The metrics of an old process, which has no socket of its own any more.
async fn old_metrics(
    State(reloader): State<Arc<Reloader>>,
    pid: Result<Path<u32>, PathRejection>,
) -> Result<Response, Response> {
    let Ok(Path(pid)) = pid else { return Err(lost(&READS, &API).await) };
    match reloader.old_processes().ask(pid, "metrics").await {
        Some(text) => Ok(([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response()),
        None => {
            let message = "no process before this one has that id: /api/v1/status lists them as predecessors";
            Err(failed(StatusCode::NOT_FOUND, Failed::new("unknown_process", message)))
        }
    }
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
    let old = reloader.old_processes().status().await;
    Json(Backends::of(&reloader).await.with_old(&old))
}

async fn probes(State(reloader): State<Arc<Reloader>>) -> Json<Probes> {
    Json(Probes::of(&reloader).await)
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
    let id = SessionId::new(&session);
    match place::route(reloader.balancer(), &id).await {
        Ok((backend, reason)) => {
            let usage = reloader.balancer().directory.usage(&id);
            Ok(Json(Route {
                session,
                backend: backend.name().to_string(),
                reason: reason.label().into(),
                turn: usage.and_then(|usage| usage.activity.label()).map(Into::into),
                unused_seconds: usage.map(|usage| usage.unused.as_secs()),
            }))
        }
        Err(refused) => {
            let why = Failed::new(refused.refusal.label(), refused.message);
            Err(failed(StatusCode::SERVICE_UNAVAILABLE, why))
        }
    }
}

async fn reload(State(reloader): State<Arc<Reloader>>) -> Result<Json<Reloaded>, Response> {
    if reloader.balancer().draining.is_cancelled() {
        let why = Failed::new(
            "draining",
            "this process takes no configuration any more: it is stopping, or another has just taken over; if so, ask again",
        );
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
    let Some(state) = AdminState::of(&word) else { return Err(lost(&READS, &API).await) };
    let told = reloader.command(&name, state).await;
    let snapshot = reloader.balancer().snapshot();
    let member = snapshot.named(&name).and_then(|at| snapshot.members.get(at));
    if let (Ok(()), Some(member)) = (told, member) {
        let old = reloader.old_processes().status().await;
        return Ok(Json(BackendStatus::of(&snapshot, member).with_old(&old)));
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

/// Refuses bodies, which no route reads, and keeps answers out of caches.
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
