//! Jobs: what the switch has to wait for.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use super::in_flight::At;
use crate::balancer::{Balancer, Whole};
use crate::fleet::{Avoided, Backend};
use crate::link::Link;
use crate::place::{self, Dials, Placed, Refused, Want};
use crate::proxy::handshake::Handshake;
use crate::runtime::jitter::stretched;
use crate::session::RevivalTurn;
use crate::wire::{Id, Named, SessionId};

/// A job on its way.
pub(super) type Job = Pin<Box<dyn Future<Output = Event> + Send>>;

/// What a job brings.
pub(super) enum Event {
    /// A session, or a session to be born, has a home or has none.
    Placed { job: u64, session: Option<SessionId>, placed: Result<Placed, Refused> },
    /// A session that is brought back has a home, and a turn there, or has none.
    Reviving { job: u64, placed: Result<(Placed, Option<RevivalTurn>), Refused> },
    /// The server that is to bring a session back has had its time, at this try.
    Unrevived { job: u64, tries: u8 },
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

/// Finds a home for a session that is to be brought back, and waits for a turn there. While its servers are down that is tried
/// again, for as long as a placement may take: with own homes the one that has it may be about to come back. So it is tried
/// when a backend comes up or goes down, and once for each round of probes, since one may only have been too slow to answer.
pub(super) fn revive(balancer: &Arc<Balancer>, job: u64, session: SessionId, known: Known) -> Job {
    let balancer = Arc::clone(balancer);
    Box::pin(async move {
        let patience = balancer.now().config.timeouts.rehome;
        let began = Instant::now();
        let want = Want {
            session: Some(&session),
            tracked: true,
            must_exist: true,
            frames: known.handshake.frames(),
            version: known.handshake.version(),
            have: &known.backends,
            dials: Some(&known.dials),
        };
        let placed = loop {
            match place::place(&balancer, &want).await {
                Err(refused) if refused.is_of_the_moment() && began.elapsed() < patience => {
                    let snapshot = balancer.snapshot();
                    let left = patience.saturating_sub(began.elapsed());
                    let round = stretched(snapshot.config.health.interval, 1000, 1500).min(left);
                    if tokio::time::timeout(round, snapshot.health_changes()).await.is_err() {}
                }
                placed => break placed,
            }
        };
        let placed = match placed {
            Ok(placed) => {
                let many = balancer.now().config.sessions.revivals;
                let turn = balancer.revivals.turn(placed.backend.server(), many);
                match tokio::time::timeout(patience, turn).await {
                    Ok(turn) => Ok((placed, turn)),
                    Err(_) => Err(Refused::crowded(&balancer.now().config)),
                }
            }
            Err(refused) => Err(refused),
        };
        Event::Reviving { job, placed }
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
