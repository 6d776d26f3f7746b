//! What clients are refused with, in both routings.

use crate::config::Config;
use crate::link::StateFault;
use crate::place::Refused;
use crate::wire::Refusal;

/// What a client is told whose request leaves it to the server which session it means.
pub(super) const UNSAID_SESSION: &str = "which session this opens is known to one server only, and there are several: name it with \
                                  kind \"resume\" and its whole ID (session.getLastId answers with the fleet's last)";
/// What a client is told that would end a session and names none that can be.
pub(super) const NO_SESSION: &str = "no session of a valid ID is named in a frame that is not too long";
/// What a client is told whose request servers could not read.
pub(super) const NOT_JSON: &str =
    "the body is not JSON: half a surrogate pair, say, or a number beyond all bounds";
/// What a client is told that names two sessions at once.
pub(super) const TWO_SESSIONS: &str = "sessionId and options.sessionId name different sessions";

/// A refusal that trying again does not mend.
pub(super) fn plain(refusal: Refusal, message: &str) -> Refused {
    Refused { refusal, message: message.to_owned(), retry_after: None }
}

pub(super) fn lost(config: &Config) -> Refused {
    Refused::later(Refusal::BackendLost, "the backend went away before it answered", config)
}

pub(super) fn malformed(message: &str) -> Refused {
    plain(Refusal::Malformed, message)
}

/// A state frame is larger than it may be.
pub(super) fn too_much(fault: StateFault) -> Refused {
    plain(Refusal::Limit, &fault.to_string())
}

pub(super) fn draining(config: &Config) -> Refused {
    Refused::later(Refusal::Draining, "this balancer is stopping", config)
}
