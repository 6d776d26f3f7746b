//! Placement: from a session ID to a greeted link, with the claim that keeps the session there.
//!
//! Claim, locate, decide, dial, greet; and again without the backends that could not be dialled. No byte of the client
//! has been spent when this fails, so it may try as often as there are backends, within `timeouts.rehome`.

mod attempts;
mod dials;
mod facts;
mod handover;
mod locate;
mod refused;
mod remember;
mod scout;
mod whole;

use std::sync::Arc;

use crate::balancer::Balancer;
use crate::fleet::{Backend, Decision, Facts, Found, Heard, Reason, decide};
use crate::link::StateFrame;
use crate::session::{Attachment, Claim, PlacementGuard};
use crate::snapshot::Snapshot;
use crate::wire::{Refusal, SessionId};

pub use attempts::Opened;
pub use dials::{Dials, InUse};

use attempts::{Among, Taken, first_to_take, open};
use refused::Miss;
use remember::Unasked;

pub use facts::Remembered;
pub use locate::{ASKED_BYTES, Locating, addresses};
pub use refused::Refused;
pub use scout::{everyone, scout};
pub use whole::whole;

/// What is known of a session that the fleet has not been asked about.
static NOTHING: Heard =
    Heard { found: Found::Unasked, silent: Vec::new(), may_be_live: false, stored: Vec::new() };

/// What a connection asks of placement.
#[derive(Debug)]
pub struct Want<'a> {
    /// The session; `None` for one the server will name.
    pub session: Option<&'a SessionId>,
    /// Whether the ID is short enough to be claimed, located and pinned.
    pub tracked: bool,
    /// Whether the request needs the session to exist.
    pub must_exist: bool,
    /// What the client has told its scout, to be replayed.
    pub frames: &'a [StateFrame],
    /// The protocol version that the scout answered.
    pub version: Option<&'a [u8]>,
    /// The backends this client is connected to already: chosen again, that connection is used.
    pub have: &'a [Arc<Backend>],
    /// Who else is dialled for this client at the same time, if it may be for several sessions.
    pub dials: Option<&'a Arc<Dials>>,
}

impl<'a> Want<'a> {
    /// The place of a session and nothing else: for whoever asks where it would go.
    pub fn of(session: &'a SessionId, must_exist: bool) -> Self {
        Self {
            session: Some(session),
            tracked: true,
            must_exist,
            frames: &[],
            version: None,
            have: &[],
            dials: None,
        }
    }
}

/// Where a session went.
#[derive(Debug)]
pub struct Placed {
    /// A new link; `None` = the client has one to this backend already.
    pub opened: Option<Opened>,
    /// The home.
    pub backend: Arc<Backend>,
    /// The connection's part in owning the session.
    pub attachment: Option<Attachment>,
    /// Why there.
    pub reason: Reason,
}

/// Finds the session's backend and opens a link to it.
///
/// # Errors
/// What to tell the client.
pub async fn place(balancer: &Balancer, want: &Want<'_>) -> Result<Placed, Refused> {
    until_probed(balancer).await;
    let placed = match want.session {
        Some(session) if want.tracked => claimed(balancer, want, session).await,
        _ => unclaimed(balancer, want).await,
    }?;
    balancer.metrics.placements.with_label_values(&[placed.reason.label()]).inc();
    Ok(placed)
}

/// Waits until every backend has been probed once, but no longer than a connection may take to be made.
async fn until_probed(balancer: &Balancer) {
    let patience = balancer.now().config.timeouts.connect;
    if tokio::time::timeout(patience, balancer.until_probed()).await.is_err() {
        tracing::debug!("placing before every backend has been probed");
    }
}

/// Where `session` would go now, and why: what `sessile route` prints. Nothing is claimed, dialled or remembered. Asked
/// before backends have been probed, it waits for that as a client would.
///
/// # Errors
/// Why it would go nowhere.
pub async fn route(balancer: &Balancer, session: &SessionId) -> Result<(Arc<Backend>, Reason), Refused> {
    until_probed(balancer).await;
    let snapshot = balancer.snapshot();
    let want = Want::of(session, true);
    let owner = balancer.directory.find(session);
    let ask = async || ask_fleet(balancer, &snapshot, &want).await;
    let heard = if owner.is_some() { Heard::default() } else { ask().await };
    let decision = match decision(balancer, &snapshot, &want, owner.as_ref(), &heard, &[]) {
        // Nothing is evicted for a question: this is where it would go after that.
        Decision::Evict => decision(balancer, &snapshot, &want, None, &ask().await, &[]),
        decision => decision,
    };
    match (decision, owner) {
        (Decision::Owner, Some(owner)) => Ok((owner, Reason::Owner)),
        (Decision::At(at, reason), _) => match snapshot.member(at) {
            Some(member) => Ok((Arc::clone(&member.backend), reason)),
            None => Err(Refused::no_backend(&snapshot)),
        },
        (Decision::Refuse(Refusal::OwnerDown), None) if heard.found == Found::Unsure && snapshot.is_up() => {
            Err(Refused::unsure(&snapshot, &heard))
        }
        (Decision::Refuse(Refusal::OwnerDown), Some(_)) => Err(Refused::owner_down(&snapshot.config)),
        (Decision::Refuse(Refusal::OwnerDown), None) if snapshot.is_up() => {
            Err(Refused::held(&snapshot, &heard))
        }
        _ => Err(Refused::no_backend(&snapshot)),
    }
}

/// Placement of a session with an ID: lead, join or wait for whoever leads.
async fn claimed(balancer: &Balancer, want: &Want<'_>, session: &SessionId) -> Result<Placed, Refused> {
    let within = balancer.now().config.timeouts.rehome;
    let mut waited = Box::pin(tokio::time::sleep(within));
    loop {
        match balancer.directory.claim(session) {
            Claim::Wait(over) => tokio::select! {
                () = over.cancelled() => {}
                () = &mut waited => return Err(Refused::locked(&balancer.now().config)),
            },
            Claim::Lead(lead) => return lead_home(balancer, want, session, lead).await,
            Claim::Join(attachment) => {
                let snapshot = balancer.snapshot();
                let owner = Some(attachment.backend());
                match decision(balancer, &snapshot, want, owner, &NOTHING, &[]) {
                    Decision::Owner => {
                        handover::take_over(balancer, want, &snapshot.config, &attachment).await;
                        return join(want, &snapshot, attachment).await;
                    }
                    Decision::Evict => {
                        tracing::info!(%session, backend = %attachment.backend().name(), "session leaves a backend that is down");
                        let over = attachment.evict();
                        tokio::select! {
                            () = over.cancelled() => {}
                            () = &mut waited => return Err(Refused::locked(&snapshot.config)),
                        }
                    }
                    _ => return Err(Refused::owner_down(&snapshot.config)),
                }
            }
        }
    }
}

/// Another connection to a session that is attached already. If its backend cannot be dialled, nobody else will do:
/// the session may well be alive there.
async fn join(want: &Want<'_>, snapshot: &Snapshot, attachment: Attachment) -> Result<Placed, Refused> {
    let backend = Arc::clone(attachment.backend());
    match open(want, snapshot, &backend).await {
        Ok(opened) => Ok(Placed { opened, backend, attachment: Some(attachment), reason: Reason::Owner }),
        Err(Miss::Refused(refused)) => Err(refused),
        Err(Miss::Full | Miss::HungUp) => Err(Refused::full(&snapshot.config)),
        Err(Miss::Unreachable) => Err(Refused::owner_down(&snapshot.config)),
    }
}

/// The first connection to a session: the fleet is asked, and one backend after another tried.
async fn lead_home(
    balancer: &Balancer,
    want: &Want<'_>,
    session: &SessionId,
    lead: PlacementGuard,
) -> Result<Placed, Refused> {
    let snapshot = balancer.snapshot();
    let unasked = Unasked::of(&snapshot);
    let heard = ask_fleet(balancer, &snapshot, want).await;
    let among = Among::Homes { snapshot: &snapshot, heard: &heard };
    let Taken { backend, opened, reason } = first_to_take(balancer, want, among).await?;
    unasked.note(&snapshot, want, session, &backend).await?;
    remember::pin(balancer, &snapshot, session, &backend, reason);
    let attachment = lead.settle(&backend);
    Ok(Placed { opened, backend, attachment: Some(attachment), reason })
}

/// A session without an ID, or with one too long to be tracked.
async fn unclaimed(balancer: &Balancer, want: &Want<'_>) -> Result<Placed, Refused> {
    let snapshot = balancer.snapshot();
    let among = Among::Homes { snapshot: &snapshot, heard: &NOTHING };
    let Taken { backend, opened, reason } = first_to_take(balancer, want, among).await?;
    Ok(Placed { opened, backend, attachment: None, reason })
}

async fn ask_fleet(balancer: &Balancer, snapshot: &Snapshot, want: &Want<'_>) -> Heard {
    match want.session {
        Some(session) if locate::is_due(snapshot, session, want.must_exist) => {
            let (metrics, evidence) = (&*balancer.metrics, &balancer.evidence);
            let must_exist = want.must_exist;
            Locating { metrics, evidence, snapshot, must_exist, any_copy: false }.locate(session).await
        }
        _ => Heard::default(),
    }
}

/// The decision on the facts of this moment.
fn decision(
    balancer: &Balancer,
    snapshot: &Snapshot,
    want: &Want<'_>,
    owner: Option<&Arc<Backend>>,
    heard: &Heard,
    failed: &[usize],
) -> Decision {
    let remembered = Some(Remembered::by(balancer));
    let facts = Facts::of(snapshot, remembered, want, owner, heard, balancer.turn());
    decide(&facts, &snapshot.ring, snapshot.members.len(), |at| snapshot.candidate(at, failed, want.have))
}
