//! Placement: from a session ID to a greeted link, with the claim that keeps the session there.
//!
//! Claim, locate, decide, dial, greet; and again without the backends that could not be dialled. No byte of the client
//! has been spent when this fails, so it may try as often as there are backends, within `timeouts.rehome`.

mod locate;
mod scout;

use std::sync::Arc;
use std::time::Duration;

use crate::balancer::Balancer;
use crate::chance::stretched;
use crate::config::{Config, Storage};
use crate::fleet::{Backend, Claim, Decision, Facts, Found, Hold, Lead, Lease, Reason, decide};
use crate::link::{DialFault, GreetFault, Link, StateFrame, dial, greet};
use crate::snapshot::Snapshot;
use crate::wire::{Refusal, SessionId};

pub use locate::{addresses, locate, modified};
pub use scout::{everyone, scout};

/// Backends whose last dial failed that one placement tries: with all of a fleet gone, its clients must not dial all of it
/// again and again.
const SUSPECTS_MAX: usize = 3;

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
}

/// Where a session went.
#[derive(Debug)]
pub struct Placed {
    /// A new link; `None` = the client has one to this backend already.
    pub link: Option<Link>,
    /// The home.
    pub backend: Arc<Backend>,
    /// The connection's part in owning the session.
    pub hold: Option<Hold>,
    /// Why there.
    pub reason: Reason,
}

/// Why a session went nowhere: what the client is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// The code and reason.
    pub refusal: Refusal,
    /// For people.
    pub message: String,
    /// When another try may be worth it.
    pub retry_after: Option<Duration>,
}

impl Refused {
    /// A refusal that trying again soon may mend.
    pub fn later(refusal: Refusal, message: impl Into<String>, config: &Config) -> Self {
        // Clients that were turned away together must not come back together.
        let retry_after = Some(stretched(config.health.interval, 1000, 1500));
        Self { refusal, message: message.into(), retry_after }
    }

    fn no_backend(snapshot: &Snapshot) -> Self {
        if snapshot.is_full() {
            return Self::full(&snapshot.config);
        }
        Self::later(Refusal::NoBackend, "no backend is up and ready", &snapshot.config)
    }

    fn full(config: &Config) -> Self {
        Self::later(
            Refusal::Limit,
            "the backend has as many connections as backend.connections allows",
            config,
        )
    }

    fn owner_down(config: &Config) -> Self {
        let message = "the backend that holds this session cannot be reached now";
        Self::later(Refusal::OwnerDown, message, config)
    }
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
    let want = Want {
        session: Some(session),
        tracked: true,
        must_exist: true,
        frames: &[],
        version: None,
        have: &[],
    };
    let owner = balancer.owners.find(session);
    let found = if owner.is_some() { Found::Unasked } else { ask_fleet(balancer, &snapshot, &want).await };
    let owner_up = owner.as_ref().map(|owner| owner.is_up());
    let decision = match decision(balancer, &snapshot, &want, owner_up, found, &[]) {
        // Nothing is closed for a question: pretend that it had been.
        Decision::Evict => decision(balancer, &snapshot, &want, None, Found::Nobody, &[]),
        decision => decision,
    };
    match (decision, owner) {
        (Decision::Owner, Some(owner)) => Ok((owner, Reason::Owner)),
        (Decision::At(at, reason), _) => match snapshot.members.get(at) {
            Some(member) => Ok((Arc::clone(&member.backend), reason)),
            None => Err(Refused::no_backend(&snapshot)),
        },
        (Decision::Refuse(Refusal::OwnerDown), _) => Err(Refused::owner_down(&snapshot.config)),
        _ => Err(Refused::no_backend(&snapshot)),
    }
}

/// Placement of a session with an ID: lead, join or wait for whoever leads.
async fn claimed(balancer: &Balancer, want: &Want<'_>, session: &SessionId) -> Result<Placed, Refused> {
    let within = balancer.now().config.timeouts.rehome;
    let mut waited = Box::pin(tokio::time::sleep(within));
    loop {
        match balancer.owners.claim(session) {
            Claim::Wait(over) => tokio::select! {
                () = over.cancelled() => {}
                () = &mut waited => return Err(locked(&balancer.now().config)),
            },
            Claim::Lead(lead) => return lead_home(balancer, want, session, lead).await,
            Claim::Join(hold) => {
                let snapshot = balancer.snapshot();
                let up = hold.backend().is_up();
                match decision(balancer, &snapshot, want, Some(up), Found::Unasked, &[]) {
                    Decision::Owner => return join(want, &snapshot, hold).await,
                    Decision::Evict => {
                        tracing::info!(%session, backend = %hold.backend().name(), "session leaves a backend that is down");
                        let over = hold.evict();
                        tokio::select! {
                            () = over.cancelled() => {}
                            () = &mut waited => return Err(locked(&snapshot.config)),
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
async fn join(want: &Want<'_>, snapshot: &Snapshot, hold: Hold) -> Result<Placed, Refused> {
    let backend = Arc::clone(hold.backend());
    match open(want, snapshot, &backend).await {
        Ok(link) => Ok(Placed { link, backend, hold: Some(hold), reason: Reason::Owner }),
        Err(Miss::Refused(refused)) => Err(refused),
        Err(Miss::Full) => Err(Refused::full(&snapshot.config)),
        Err(Miss::Unreachable) => Err(Refused::owner_down(&snapshot.config)),
    }
}

/// The first connection to a session: the fleet is asked, and one backend after another tried.
async fn lead_home(
    balancer: &Balancer,
    want: &Want<'_>,
    session: &SessionId,
    lead: Lead,
) -> Result<Placed, Refused> {
    let snapshot = balancer.snapshot();
    let found = ask_fleet(balancer, &snapshot, want).await;
    let (backend, link, reason) = try_members(balancer, want, &snapshot, found).await?;
    let config = &snapshot.config;
    let pinned = match reason {
        Reason::RoundRobin | Reason::Spill | Reason::SlowStart => true,
        Reason::Failover => config.placement.storage == Storage::Local,
        Reason::Owner | Reason::Located | Reason::Pin | Reason::Hash | Reason::Blind => false,
    };
    if pinned {
        balancer.pins.pin(session, backend.name(), config.limits.pins);
    }
    let hold = lead.settle(&backend);
    Ok(Placed { link, backend, hold: Some(hold), reason })
}

/// A session without an ID, or with one too long to be tracked.
async fn unclaimed(balancer: &Balancer, want: &Want<'_>) -> Result<Placed, Refused> {
    let snapshot = balancer.snapshot();
    let (backend, link, reason) = try_members(balancer, want, &snapshot, Found::Unasked).await?;
    Ok(Placed { link, backend, hold: None, reason })
}

async fn ask_fleet(balancer: &Balancer, snapshot: &Snapshot, want: &Want<'_>) -> Found {
    match want.session {
        Some(session) if locate::is_due(snapshot, session, want.must_exist) => {
            locate(&balancer.metrics, snapshot, session).await
        }
        _ => Found::Unasked,
    }
}

/// Decides and dials until a backend takes the connection, none is left, or time is up.
async fn try_members(
    balancer: &Balancer,
    want: &Want<'_>,
    snapshot: &Snapshot,
    found: Found,
) -> Result<(Arc<Backend>, Option<Link>, Reason), Refused> {
    let trying = try_each(balancer, want, snapshot, found);
    let tried = tokio::time::timeout(snapshot.config.timeouts.rehome, trying).await;
    tried.unwrap_or_else(|_| Err(Refused::no_backend(snapshot)))
}

async fn try_each(
    balancer: &Balancer,
    want: &Want<'_>,
    snapshot: &Snapshot,
    found: Found,
) -> Result<(Arc<Backend>, Option<Link>, Reason), Refused> {
    let mut failed = Vec::new();
    let mut desperate: usize = 0;
    loop {
        let (at, reason) = match decision(balancer, snapshot, want, None, found, &failed) {
            Decision::At(at, reason) => (at, reason),
            Decision::Refuse(Refusal::OwnerDown) => return Err(Refused::owner_down(&snapshot.config)),
            _ => return Err(Refused::no_backend(snapshot)),
        };
        let Some(member) = snapshot.members.get(at) else {
            return Err(Refused::no_backend(snapshot));
        };
        desperate = desperate.saturating_add(usize::from(member.backend.is_suspect()));
        if desperate > SUSPECTS_MAX {
            return Err(Refused::no_backend(snapshot));
        }
        match open(want, snapshot, &member.backend).await {
            Ok(link) => return Ok((Arc::clone(&member.backend), link, reason)),
            Err(Miss::Refused(refused)) => return Err(refused),
            Err(Miss::Full) if reason == Reason::Located => return Err(Refused::full(&snapshot.config)),
            Err(Miss::Full | Miss::Unreachable) => failed.push(at),
        }
    }
}

/// The facts of this moment, decided.
fn decision(
    balancer: &Balancer,
    snapshot: &Snapshot,
    want: &Want<'_>,
    owner_up: Option<bool>,
    found: Found,
    failed: &[usize],
) -> Decision {
    let placement = &snapshot.config.placement;
    let pin = want.session.filter(|_| want.tracked).and_then(|session| balancer.pins.find(session));
    let facts = Facts {
        key: want.session.map(|session| snapshot.affinity_key(session)),
        must_exist: want.must_exist,
        owner_up,
        panic: owner_up == Some(false) && snapshot.is_panic(),
        found,
        pin: pin.and_then(|name| snapshot.named(&name)),
        strategy: placement.strategy,
        storage: placement.storage,
        load_factor: placement.load_factor,
        sessions: balancer.owners.len(),
        turn: balancer.turn(),
    };
    decide(&facts, &snapshot.ring, snapshot.members.len(), |at| snapshot.candidate(at, failed, want.have))
}

/// Why a chosen backend did not take the connection.
enum Miss {
    /// Another may.
    Unreachable,
    /// It has as many connections as it may.
    Full,
    /// It answered, and no other would do better.
    Refused(Refused),
}

/// A greeted link to `backend`, or `None` if the client has one already.
async fn open(want: &Want<'_>, snapshot: &Snapshot, backend: &Arc<Backend>) -> Result<Option<Link>, Miss> {
    if want.have.iter().any(|known| Arc::ptr_eq(known, backend)) {
        return Ok(None);
    }
    let config = &snapshot.config;
    let lease = Lease::within_bound(backend).ok_or(Miss::Full)?;
    let mut link = dial(lease, &config.timeouts).await.map_err(|fault| match fault {
        DialFault::Local(error) => {
            let message = format!("this balancer cannot connect anywhere: {error}");
            Miss::Refused(Refused::later(Refusal::Limit, message, config))
        }
        _ => Miss::Unreachable,
    })?;
    // A server that takes connections but says nothing is as good as one that takes none.
    let greeted = tokio::time::timeout(config.timeouts.connect, greet(&mut link, want.frames)).await;
    match greeted {
        Ok(Ok(version))
            if version.is_none() || want.version.is_none() || version.as_deref() == want.version =>
        {
            Ok(Some(link))
        }
        Ok(Ok(_)) => Err(Miss::Refused(mismatch("the session's backend speaks another protocol version"))),
        Ok(Err(GreetFault::Refused)) => Err(Miss::Refused(mismatch(
            "the session's backend refused what another backend had accepted from this client",
        ))),
        Ok(Err(GreetFault::Lost(_))) | Err(_) => {
            backend.series().connect_failed("silent");
            backend.suspect();
            Err(Miss::Unreachable)
        }
    }
}

fn locked(config: &Config) -> Refused {
    let message = "another connection is opening this session and has not finished";
    Refused::later(Refusal::SessionLocked, message, config)
}

fn mismatch(message: &str) -> Refused {
    Refused { refusal: Refusal::ProtocolMismatch, message: message.into(), retry_after: None }
}
