//! Jobs: what the switch has to wait for.

use std::pin::Pin;
use std::sync::Arc;

use super::in_flight::At;
use crate::balancer::{Balancer, Whole};
use crate::fleet::{Avoided, Backend};
use crate::link::Link;
use crate::place::{self, Dials, Placed, Refused, Want};
use crate::proxy::handshake::Handshake;
use crate::wire::{Id, Named, SessionId};

/// A job on its way.
pub(super) type Job = Pin<Box<dyn Future<Output = Event> + Send>>;

/// What a job brings.
pub(super) enum Event {
    /// A session, or a session to be born, has a home or has none.
    Placed { job: u64, session: Option<SessionId>, placed: Result<Placed, Refused> },
    /// Whether somebody has a session of exactly this ID.
    Whole { job: u64, whole: Result<(), Refused> },
    /// The first upstream, or none.
    Scouted { job: u64, link: Result<Link, Refused> },
    /// A link to every server that had none, or the reason why not.
    Everyone { job: u64, links: Result<Vec<Link>, Refused> },
    /// A call of every server has had its time.
    Unprovided(u64),
    /// Sessions have to leave an upstream, for they go on elsewhere; none once the upstream is lost.
    Evicted { at: At, sessions: Vec<SessionId> },
    /// An upstream's backend has gone down.
    Down(At),
    /// The balancer stops.
    Shutdown,
    /// The fleet's answer to a request.
    Merged { id: Id, whole: Whole },
}

/// Finds a home for what `named` says.
pub(super) fn place(
    balancer: &Arc<Balancer>,
    job: u64,
    named: &Named,
    must_exist: bool,
    known: Known,
) -> Job {
    let balancer = Arc::clone(balancer);
    let (session, tracked) = match named {
        Named::Session(id) => (Some(id.clone()), true),
        Named::Untracked(id) => (Some(id.clone()), false),
        Named::Born | Named::Nothing | Named::Unsaid | Named::Two => (None, false),
    };
    Box::pin(async move {
        let want = Want {
            session: session.as_ref(),
            tracked,
            must_exist,
            frames: known.handshake.frames(),
            version: known.handshake.version(),
            have: &known.backends,
            dials: Some(&known.dials),
        };
        let placed = place::place(&balancer, &want).await;
        Event::Placed { job, session, placed }
    })
}

/// Asks the fleet whether an ID is a session's whole ID.
pub(super) fn whole(balancer: &Arc<Balancer>, job: u64, session: SessionId) -> Job {
    let balancer = Arc::clone(balancer);
    Box::pin(async move {
        let whole = place::whole(&balancer, &session).await;
        Event::Whole { job, whole }
    })
}

/// Finds a backend that can answer what any can.
pub(super) fn scout(balancer: &Arc<Balancer>, job: u64, known: Known) -> Job {
    let balancer = Arc::clone(balancer);
    Box::pin(async move {
        let mut avoided = known.avoided;
        let link = place::scout(
            &balancer,
            known.handshake.frames(),
            known.handshake.version(),
            known.handshake.is_authenticated(),
            &mut avoided,
        )
        .await;
        Event::Scouted { job, link }
    })
}

/// Finds a link to every server.
pub(super) fn everyone(balancer: &Arc<Balancer>, job: u64, known: Known) -> Job {
    let balancer = Arc::clone(balancer);
    Box::pin(async move {
        let Known { handshake, backends, .. } = &known;
        let links = place::everyone(&balancer, handshake.frames(), handshake.version(), backends).await;
        Event::Everyone { job, links }
    })
}

/// What a new upstream has to be told or need not be dialled for.
pub(super) struct Known {
    pub(super) handshake: Arc<Handshake>,
    pub(super) backends: Vec<Arc<Backend>>,
    pub(super) dials: Arc<Dials>,
    pub(super) avoided: Avoided,
}
