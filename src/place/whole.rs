//! Whether an ID is a session's whole ID.
//!
//! Servers take the beginning of a UUID for the session that alone begins so. sessile goes by IDs: a beginning would be
//! placed like any unknown ID, and the server chosen would open a session that is live on another. So where a server might
//! read an ID that way, the fleet is first asked whether it is one.

use super::locate::is_unasked;
use super::{Locating, Refused, until_probed};
use crate::balancer::Balancer;
use crate::fleet::Found;
use crate::wire::{Refusal, SessionId};

/// Makes sure that somebody has a session of exactly this ID. A fleet of one server needs no asking.
///
/// # Errors
/// Nobody has one, or somebody did not say.
pub async fn whole(balancer: &Balancer, session: &SessionId) -> Result<(), Refused> {
    until_probed(balancer).await;
    let snapshot = balancer.snapshot();
    if !snapshot.has_several() {
        return Ok(());
    }
    let (metrics, evidence) = (&*balancer.metrics, &balancer.evidence);
    let asking = Locating { metrics, evidence, snapshot: &snapshot, must_exist: true, any_copy: true };
    let heard = asking.exists(session).await;
    let told =
        |why: &str| format!("Session not found: {session}: sessile takes whole session IDs, and {why}");
    let message = match heard.found {
        Found::Live(_) | Found::Stored(_) => return Ok(()),
        // Who has not said may have it as well, which is asked again when it is placed.
        Found::Unsure if !heard.stored.is_empty() => return Ok(()),
        Found::Unsure => {
            let why = match is_unasked(&snapshot, &heard) {
                true => {
                    "without upstream.connection_token no server can be asked whether it has one of this name"
                }
                false => "not every server said whether it has one of this name",
            };
            let message = told(why);
            return Err(Refused::later(Refusal::OwnerDown, message, &snapshot.config));
        }
        Found::Unasked | Found::Nobody => told("no server has one of this name"),
    };
    Err(Refused { refusal: Refusal::Denied, message, retry_after: None })
}
