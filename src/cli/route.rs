//! `sessile route`: where sessions would go, and why; as a running balancer sees it, or from a file alone.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Serialize;

use super::check;
use super::client::{AdminClient, AdminFault, PLAIN, ask, encoded};
use super::terminal::{Table, err, out, plain};
use crate::api::status::Route;
use crate::config::{AdminState, Config, Resolve, Strategy};
use crate::fleet::{Candidate, Decision, Facts, Heard, Ring, WARM, decide};
use crate::place::Want;
use crate::snapshot::Snapshot;
use crate::wire::SessionId;

/// Where new sessions with these IDs go, by the file at `path` and with every backend up.
pub(super) fn offline(path: &Path, json: bool, ids: &[String]) -> ExitCode {
    let config = match check::load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if config.placement.strategy == Strategy::RoundRobin {
        err(
            "round-robin: a new session goes to whichever backend's turn it is; this is the order of turns\n",
        );
    }
    if config.backends.iter().any(|backend| backend.resolve != Resolve::Dial) {
        err(
            "left out are backends that are looked up: a running balancer knows them, ask it without --offline\n",
        );
    }
    if !json {
        let file = plain(&path.display().to_string());
        err(&format!("from {file} alone, as if every backend were up and no session live:\n"));
    }
    let snapshot = Plan::new(config);
    let placement = |(turn, id): (usize, &String)| {
        let (backend, reason) = snapshot.route(&SessionId::new(id), turn);
        Placement { session: id.clone(), backend, reason: reason.into(), source: "file" }
    };
    show(&ids.iter().enumerate().map(placement).collect::<Vec<_>>(), json)
}

/// Where a session goes; `backend` is null if nowhere, and `reason` then says why.
#[derive(Debug, Serialize)]
struct Placement {
    session: String,
    backend: Option<String>,
    reason: String,
    /// Where the answer comes from: "balancer" or "file".
    source: &'static str,
}

/// Prints all placements; the exit code says whether every session has a backend.
fn show(placements: &[Placement], json: bool) -> ExitCode {
    if json {
        match serde_json::to_string(placements) {
            Ok(text) => out(&format!("{text}\n")),
            Err(error) => err(&format!("sessile: {error}\n")),
        }
    } else {
        let mut table = Table::bare();
        for Placement { session, backend, reason, .. } in placements {
            table.row([session.clone(), backend.clone().unwrap_or_else(|| "-".into()), reason.clone()]);
        }
        out(&table.render(""));
    }
    if placements.iter().all(|placement| placement.backend.is_some()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A configuration and its ring, without a fleet.
pub(super) struct Plan(Snapshot);

impl Plan {
    /// The plan of `config`, as far as the file names its backends.
    pub(super) fn new(mut config: Config) -> Self {
        config.backends.retain(|backend| backend.resolve == Resolve::Dial);
        let names = config.backends.iter().map(|backend| (backend.name.as_str(), backend.weight));
        let ring = Arc::new(Ring::new(names, config.placement.hash_key.reveal()));
        Self(Snapshot {
            generation: 0,
            config: Arc::new(config),
            members: Vec::new(),
            retired: Vec::new(),
            ring,
        })
    }

    /// Where a session goes that nobody has, while all backends are up and empty: the backend's name, and the reason;
    /// or the reason why nowhere.
    pub(super) fn route(&self, session: &SessionId, turn: usize) -> (Option<String>, &'static str) {
        let Snapshot { config, ring, .. } = &self.0;
        // Nobody has it, and no balancer runs: a create.
        let (want, heard) = (Want::of(session, false), Heard::default());
        let facts = Facts::of(&self.0, None, &want, None, &heard, turn);
        let candidate = |at: usize| {
            let state = config.backends.get(at).map_or(AdminState::Maint, |backend| backend.state);
            Candidate {
                suspect: false,
                ready: state == AdminState::Ready,
                up: true,
                maint: state == AdminState::Maint,
                weight: config.backends.get(at).map_or(0, |backend| backend.weight),
                ramp: WARM,
                sessions: 0,
            }
        };
        match decide(&facts, ring, config.backends.len(), candidate) {
            Decision::At(at, reason) => {
                (config.backends.get(at).map(|backend| backend.name.clone()), reason.label())
            }
            Decision::Refuse(refusal) => (None, refusal.label()),
            Decision::Owner | Decision::Evict => (None, "owner"),
        }
    }
}

/// Where a running balancer would send these sessions now.
pub(super) fn online(admin_client: &AdminClient, json: bool, ids: &[String]) -> ExitCode {
    let mut placements = Vec::new();
    let placement =
        |id: &String, backend, reason| Placement { session: id.clone(), backend, reason, source: "balancer" };
    for id in ids {
        let path = format!("/api/v1/route?session={}", encoded(id));
        let answer = ask(admin_client, Method::GET, &path);
        match answer.map(|body| serde_json::from_slice::<Route>(&body)) {
            Ok(Ok(Route { backend, reason, .. })) => placements.push(placement(id, Some(backend), reason)),
            Err(AdminFault::Refused {
                status: StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_REQUEST,
                why,
                ..
            }) if why.error.reason != PLAIN => placements.push(placement(id, None, why.error.reason)),
            Ok(Err(error)) => {
                err(&format!("sessile: {admin_client} answered something else: {error}\n"));
                return ExitCode::FAILURE;
            }
            Err(fault) => {
                let silent = matches!(fault, AdminFault::Silent(_));
                let or =
                    "\n  without a balancer, a file can answer: sessile route --offline --config FILE ID";
                err(&format!("sessile: {fault}{}\n", if silent { or } else { "" }));
                return ExitCode::FAILURE;
            }
        }
    }
    if !json {
        err(&format!("asked the balancer at {admin_client}:\n"));
    }
    show(&placements, json)
}
