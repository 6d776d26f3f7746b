//! How long servers that have left the fleet are still asked, and how the next process learns of them.
//!
//! A server that has left the file, or an answer of DNS, may still have live sessions, perhaps through another
//! balancer. So it is probed and asked until it has held nothing, or has been silent, for `discovery.forget`. Sessions
//! that are live there are joined there; sessions stored there count if only DNS left it out and each server has its
//! own storage.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;

use super::reloader::Reloader;
use super::retired::{RETIRED_MAX, section, state};
use crate::config::{AdminState, BackendTls, Config, Storage};
use crate::fleet::{Answer, Backend, Question, Said, Told, Wanted};
use crate::snapshot::{Member, Snapshot};
use crate::upgrade::Seen;
use crate::wire::SessionId;

/// Stored sessions of one server that are asked for at a time.
const AT_A_TIME: usize = 64;

/// Forgets retired servers when it is time.
pub(super) async fn forget_in_time(reloader: Arc<Reloader>) {
    // By backend: when it last held something, or was first seen here.
    let mut held: HashMap<usize, Instant> = HashMap::new();
    loop {
        let snapshot = reloader.balancer().snapshot();
        let config = Arc::clone(&snapshot.config);
        let forget = config.discovery.forget;
        let mut gone = Vec::new();
        held.retain(|known, _| snapshot.retired.iter().any(|one| Arc::as_ptr(&one.backend).addr() == *known));
        for member in &snapshot.retired {
            let backend = &member.backend;
            let held = held.entry(Arc::as_ptr(backend).addr()).or_insert_with(Instant::now);
            if backend.silent_for() >= forget && backend.connections() == 0 {
                gone.push((Arc::clone(backend), "it has been silent"));
            } else if holds(member, &config).await {
                *held = Instant::now();
            } else if held.elapsed() >= forget {
                gone.push((Arc::clone(backend), "it holds nothing"));
            }
        }
        drop(snapshot);
        if !gone.is_empty() {
            reloader.forget(&gone).await;
        }
        drop(gone);
        let pause = forget.checked_div(4).unwrap_or(forget);
        // A new `discovery.forget` counts from the next reload on.
        let mut generation = reloader.generation();
        generation.mark_unchanged();
        drop(tokio::time::timeout(pause, generation.changed()).await);
    }
}

/// Whether a retired server has sessions, or has not said that it has none.
async fn holds(member: &Member, config: &Config) -> bool {
    let backend = &member.backend;
    if backend.connections() > 0 {
        return true;
    }
    if !backend.is_up() || backend.standing().borrow().mute {
        return false;
    }
    let patience = config.timeouts.connect;
    // `session.list` ignores the limit.
    let params = Bytes::from_static(br#"{"metadataLimit":0}"#);
    let wanted = Arc::new(Wanted::new("sessions.list", params, Arc::default()));
    let Ok(Told::Body(body)) = backend.inquire(&wanted, patience, patience).await else { return true };
    let Ok(answer) = serde_json::from_slice::<Value>(&body).map(Answer::of) else { return true };
    let sessions = match &answer {
        Answer::Result(listed) => listed.get("sessions").and_then(Value::as_array),
        // A server that does not know the method is not kept longer than one that holds nothing.
        Answer::Error(Answer::METHOD_NOT_FOUND, _) => return false,
        Answer::Error(..) | Answer::TooLong => None,
    };
    let Some(sessions) = sessions else { return true };
    if member.state == AdminState::Drain && config.placement.storage != Storage::Shared {
        return !sessions.is_empty();
    }
    let ids = sessions.iter().filter_map(|session| Some(session.get("sessionId")?.as_str()?.to_owned()));
    let ids: Vec<String> = ids.collect();
    let asked = ids.into_iter().map(|id| is_live(Arc::clone(backend), id, patience));
    let mut live = stream::iter(asked).buffer_unordered(AT_A_TIME);
    while let Some(is_live) = live.next().await {
        if is_live {
            return true;
        }
    }
    false
}

async fn is_live(backend: Arc<Backend>, session: String, patience: Duration) -> bool {
    backend.ask_in_turn(Question::Live(&SessionId::new(&session)), patience).await != Said::Not
}

impl Reloader {
    async fn forget(&self, gone: &[(Arc<Backend>, &'static str)]) {
        let inner = self.inner.lock().await;
        let now = self.balancer().snapshot();
        let is_gone = |one: &Member| {
            one.backend.is_retired() && gone.iter().any(|(gone, _)| Arc::ptr_eq(gone, &one.backend))
        };
        let retired = now.retired.iter().filter(|one| !is_gone(one)).cloned().collect();
        self.balancer().commit(Snapshot { retired, ..Snapshot::clone(&now) });
        for (backend, why) in gone.iter().filter(|(backend, _)| backend.is_retired()) {
            tracing::info!(backend = %backend.name(), server = %backend.server(), why, "a server that left is not asked any more");
            backend.forget();
        }
        drop(inner);
    }

    /// Every server that may have sessions, for the next process.
    pub fn seen(&self) -> Vec<Seen> {
        let now = self.balancer().now();
        let seen = |member: &Member| {
            let backend = &member.backend;
            Some(Seen {
                name: backend.name().to_string(),
                address: backend.address().to_string(),
                at: backend.socket()?,
                source: member.source.as_ref().map(ToString::to_string),
                tls: backend.tls().is_some(),
            })
        };
        now.retired.iter().chain(&now.members).filter_map(seen).collect()
    }

    /// Takes over the servers that the process before has seen and that are not in the fleet any more. To be called
    /// after the first lookups.
    pub(super) async fn recall(&self) {
        let turn = self.turn().await;
        let inner = &mut *self.inner.lock().await;
        let now = self.balancer().snapshot();
        let mut retired = now.retired.clone();
        for Seen { name, address, at, source, tls } in std::mem::take(&mut inner.seen) {
            let is_known = |member: &Member| member.backend.socket() == Some(at);
            if now.members.iter().chain(&retired).any(is_known) || retired.len() >= RETIRED_MAX {
                continue;
            }
            let section = section(&now.config, &name, &address, source.as_deref());
            let own = section.map_or(now.config.upstream.tls.clone(), |spec| spec.tls.clone());
            let own: Option<Arc<BackendTls>> = own.filter(|_| tls);
            if tls && own.is_none() {
                tracing::warn!(
                    backend = name,
                    "a server that left cannot be asked: the configuration has no TLS for it"
                );
                continue;
            }
            let state = state(&now.config, &name, &address, source.as_deref());
            let backend = self.make(inner, &name, &address, Some(at), own);
            backend.retire();
            let source = source.map(Into::into);
            retired.push(Member { backend, weight: 0, state, file_state: state, source });
        }
        self.balancer().commit(Snapshot { retired, ..Snapshot::clone(&now) });
        drop(turn);
    }
}
