//! Links that no session asks for: a scout, the provisional backend that answers until a session is named, and links to
//! everyone, for the calls that must reach every server.

use std::sync::Arc;

use super::attempts::{Among, first_to_take, open};
use super::refused::Miss;
use super::{Refused, Want, addresses, until_probed};
use crate::balancer::Balancer;
use crate::fleet::{Avoided, Backend};
use crate::link::{Link, StateFrame};
use crate::wire::Refusal;

/// A greeted link to a ready backend, in turn; the next one if that cannot be dialled: see [`Among::Anyone`].
///
/// # Errors
/// What to tell the client: no backend, or one that refuses what an earlier scout took.
pub async fn scout(
    balancer: &Balancer,
    frames: &[StateFrame],
    version: Option<&[u8]>,
    authenticated: bool,
    avoided: &mut Avoided,
) -> Result<Link, Refused> {
    until_probed(balancer).await;
    let want =
        Want { session: None, tracked: false, must_exist: false, frames, version, have: &[], dials: None };
    let taken = first_to_take(balancer, &want, Among::Anyone { authenticated, avoided }).await?;
    // A client without a session has no other link.
    taken.opened.map(|opened| opened.link).ok_or_else(|| Refused::no_backend(&balancer.now()))
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
    let want = Want { session: None, tracked: false, must_exist: false, frames, version, have, dials: None };
    let mut links = Vec::new();
    for member in addresses(&snapshot).filter_map(|at| snapshot.members.get(at)) {
        match open(&want, &snapshot, &member.backend).await {
            Ok(opened) => links.extend(opened.map(|opened| opened.link)),
            Err(Miss::Refused(refused)) => return Err(refused),
            Err(Miss::Full | Miss::HungUp | Miss::Unreachable) => {
                let name = member.backend.name();
                let message = format!("{name} cannot be reached, and this call must reach every backend");
                return Err(Refused::later(Refusal::NoBackend, message, &snapshot.config));
            }
        }
    }
    Ok(links)
}
