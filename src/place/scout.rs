//! Links that no session asks for: a scout, the provisional backend that answers until a session is named, and links to
//! everyone, for the calls that must reach every server.

use std::sync::Arc;

use super::{Miss, Refused, SUSPECTS_MAX, Want, addresses, open};
use crate::balancer::Balancer;
use crate::fleet::Backend;
use crate::fleet::decide::anyone;
use crate::link::{Link, StateFrame};
use crate::wire::Refusal;

/// A greeted link to a ready backend, in turn; the next one if that cannot be dialled.
///
/// # Errors
/// What to tell the client: no backend, or one that refuses what an earlier scout took.
pub async fn scout(
    balancer: &Balancer,
    frames: &[StateFrame],
    version: Option<&[u8]>,
) -> Result<Link, Refused> {
    let config = Arc::clone(&balancer.now().config);
    if tokio::time::timeout(config.timeouts.connect, balancer.until_probed()).await.is_err() {
        tracing::debug!("scouting before every backend has been probed");
    }
    let want = Want { session: None, tracked: false, must_exist: false, frames, version, have: &[] };
    let mut failed = Vec::new();
    let mut desperate: usize = 0;
    let seeking = async {
        loop {
            let snapshot = balancer.snapshot();
            let candidate = |at| snapshot.candidate(at, &failed, &[]);
            let next = anyone(balancer.turn(), snapshot.members.len(), candidate);
            let Some((at, member)) = next.and_then(|at| Some((at, snapshot.members.get(at)?))) else {
                return Err(Refused::no_backend(&snapshot));
            };
            desperate = desperate.saturating_add(usize::from(member.backend.is_suspect()));
            if desperate > SUSPECTS_MAX {
                return Err(Refused::no_backend(&snapshot));
            }
            match open(&want, &snapshot, &member.backend).await {
                Ok(Some(link)) => return Ok(link),
                Err(Miss::Refused(refused)) => return Err(refused),
                Ok(None) | Err(Miss::Full | Miss::Unreachable) => failed.push(at),
            }
        }
    };
    let sought = tokio::time::timeout(config.timeouts.rehome, seeking).await;
    sought.unwrap_or_else(|_| Err(Refused::no_backend(&balancer.now())))
}

/// A greeted link to every server that is in none of `have`.
///
/// # Errors
/// What to tell the client if one server cannot be reached: then none is kept.
pub async fn everyone(
    balancer: &Balancer,
    frames: &[StateFrame],
    version: Option<&[u8]>,
    have: &[Arc<Backend>],
) -> Result<Vec<Link>, Refused> {
    let snapshot = balancer.snapshot();
    let want = Want { session: None, tracked: false, must_exist: false, frames, version, have };
    let mut links = Vec::new();
    for member in addresses(&snapshot).filter_map(|at| snapshot.members.get(at)) {
        match open(&want, &snapshot, &member.backend).await {
            Ok(link) => links.extend(link),
            Err(Miss::Refused(refused)) => return Err(refused),
            Err(Miss::Full | Miss::Unreachable) => {
                let name = member.backend.name();
                let message = format!("{name} cannot be reached, and this call must reach every backend");
                return Err(Refused::later(Refusal::NoBackend, message, &snapshot.config));
            }
        }
    }
    Ok(links)
}
