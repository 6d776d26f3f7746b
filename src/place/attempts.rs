//! One server after the other, until one has taken the connection: dialled and greeted.
//!
//! What a session and a scout want differs in who comes next, and in what is remembered of who fails; the rest is one loop.
//! No byte of the client is spent before a server has answered, so it may try as many as there are, within
//! `timeouts.rehome`.

use std::sync::Arc;

use super::dials::{Dialling, InUse, Turn};
use super::refused::Miss;
use super::{Refused, Want, decision};
use crate::balancer::Balancer;
use crate::fleet::decide::anyone;
use crate::fleet::{Avoided, Backend, Candidate, Decision, Found, Heard, Lease, Reason};
use crate::link::{DialFault, GreetFault, Link, dial, greet, hung_up};
use crate::snapshot::{Member, Snapshot};
use crate::wire::Refusal;

/// Backends whose last dial failed that one connection tries: with all of a fleet gone, its clients must not dial all of it
/// again and again.
const SUSPECTS_MAX: usize = 3;

/// Who may take a connection.
pub(super) enum Among<'a> {
    /// The homes of a session, by what the fleet has said of it: its members are numbered as in this snapshot.
    Homes {
        /// What was in force when the fleet was asked.
        snapshot: &'a Arc<Snapshot>,
        /// What it said.
        heard: &'a Heard,
    },
    /// Anybody in turn who may hear the client ([`Balancer::may_hear`]), by what is in force at each try. Those that have
    /// failed this client come last. While nobody is ready, any server that is up will do, also one that has left: what is
    /// live there can be joined only by a client whose `connect` was answered.
    Anyone {
        /// Whether the client has sent a good token.
        authenticated: bool,
        /// Who has failed this client; who fails it now is added.
        avoided: &'a mut Avoided,
    },
}

/// A new link, dialled and greeted.
#[derive(Debug)]
pub struct Opened {
    /// Where it goes is known by its lease.
    pub link: Link,
    dialling: Option<Dialling>,
}

impl Opened {
    /// The link, and what is held for as long as the client uses it: from now on others of that client find it.
    pub fn into_use(self) -> (Link, Option<InUse>) {
        (self.link, self.dialling.map(Dialling::in_use))
    }
}

/// Who has taken it.
pub(super) struct Taken {
    pub(super) backend: Arc<Backend>,
    /// `None`: the client has one already.
    pub(super) opened: Option<Opened>,
    pub(super) reason: Reason,
}

impl Among<'_> {
    fn snapshot(&self, balancer: &Balancer) -> Arc<Snapshot> {
        match self {
            Self::Homes { snapshot, .. } => Arc::clone(snapshot),
            Self::Anyone { .. } => balancer.snapshot(),
        }
    }

    /// Whom to try next, those that have `failed` left out.
    fn next(
        &self,
        balancer: &Balancer,
        want: &Want<'_>,
        snapshot: &Snapshot,
        failed: &[usize],
    ) -> Result<(usize, Reason), Refused> {
        match self {
            Self::Homes { heard, .. } => next_home(balancer, want, snapshot, heard, failed),
            Self::Anyone { authenticated, avoided } => {
                let next = next_of_all(balancer, snapshot, *authenticated, avoided, failed);
                next.map(|at| (at, Reason::RoundRobin)).ok_or_else(|| Refused::no_backend(snapshot))
            }
        }
    }

    /// It was reached and did not answer, or could not be reached.
    fn has_failed(&mut self, backend: &Arc<Backend>) {
        if let Self::Anyone { avoided, .. } = self {
            avoided.add(backend);
        }
    }
}

fn next_home(
    balancer: &Balancer,
    want: &Want<'_>,
    snapshot: &Snapshot,
    heard: &Heard,
    failed: &[usize],
) -> Result<(usize, Reason), Refused> {
    match decision(balancer, snapshot, want, None, heard, failed) {
        Decision::At(at, reason) => Ok((at, reason)),
        // With nobody up, no owner is known to be the one that is missed.
        Decision::Refuse(Refusal::OwnerDown) if heard.found == Found::Unsure && snapshot.is_up() => {
            Err(Refused::unsure(snapshot, heard))
        }
        Decision::Refuse(Refusal::OwnerDown) if heard.found != Found::Unsure => {
            Err(Refused::held(snapshot, heard))
        }
        _ => Err(Refused::no_backend(snapshot)),
    }
}

fn next_of_all(
    balancer: &Balancer,
    snapshot: &Snapshot,
    authenticated: bool,
    avoided: &Avoided,
    failed: &[usize],
) -> Option<usize> {
    let is_avoided = |at: usize| snapshot.member(at).is_some_and(|known| avoided.has(&known.backend));
    let candidate = |at| {
        let candidate = snapshot.candidate(at, failed, &[]);
        let may_hear = |known: &Member| balancer.may_hear(&known.backend, authenticated);
        match snapshot.member(at) {
            Some(known) if !may_hear(known) => {
                Candidate { ready: false, suspect: false, up: false, ..candidate }
            }
            _ if is_avoided(at) => candidate.avoided(),
            _ => candidate,
        }
    };
    anyone(balancer.turn(), snapshot.members.len(), candidate).or_else(|| {
        let is_due = !snapshot.members.iter().any(Member::is_ready);
        let mut up = (0..snapshot.servers()).filter(|at| is_due && candidate(*at).up);
        up.clone().find(|at| !is_avoided(*at)).or_else(|| up.next())
    })
}

/// The first that takes the connection.
///
/// # Errors
/// What to tell the client: nobody is left, or time is up, or one answered so that no other would do better.
pub(super) async fn first_to_take(
    balancer: &Balancer,
    want: &Want<'_>,
    mut among: Among<'_>,
) -> Result<Taken, Refused> {
    let within = among.snapshot(balancer).config.timeouts.rehome;
    let tried = tokio::time::timeout(within, try_each(balancer, want, &mut among)).await;
    tried.unwrap_or_else(|_| Err(Refused::no_backend(&among.snapshot(balancer))))
}

async fn try_each(balancer: &Balancer, want: &Want<'_>, among: &mut Among<'_>) -> Result<Taken, Refused> {
    let (mut failed, mut full) = (Vec::new(), false);
    let mut suspects: usize = 0;
    loop {
        let snapshot = among.snapshot(balancer);
        let (at, reason) = match among.next(balancer, want, &snapshot, &failed) {
            Ok(next) => next,
            Err(_) if full => return Err(Refused::full(&snapshot.config)),
            Err(refused) => return Err(refused),
        };
        let Some(Member { backend, .. }) = snapshot.member(at) else {
            return Err(Refused::no_backend(&snapshot));
        };
        suspects = suspects.saturating_add(usize::from(backend.is_suspect()));
        if suspects > SUSPECTS_MAX {
            return Err(Refused::no_backend(&snapshot));
        }
        match open(want, &snapshot, backend).await {
            Ok(opened) => return Ok(Taken { backend: Arc::clone(backend), opened, reason }),
            Err(Miss::Refused(refused)) => return Err(refused),
            Err(miss) => {
                full |= !matches!(miss, Miss::Unreachable);
                if !matches!(miss, Miss::Full) {
                    among.has_failed(backend);
                }
                failed.push(at);
            }
        }
    }
}

/// A greeted link to `backend`, or `None` if the client has one already.
pub(super) async fn open(
    want: &Want<'_>,
    snapshot: &Snapshot,
    backend: &Arc<Backend>,
) -> Result<Option<Opened>, Miss> {
    if want.have.iter().any(|known| Arc::ptr_eq(known, backend)) {
        return Ok(None);
    }
    let opened = |link, dialling| Some(Opened { link, dialling });
    let Some(dials) = want.dials else {
        return dialled(want, snapshot, backend).await.map(|link| opened(link, None));
    };
    match dials.turn(backend).await {
        Turn::There => Ok(None),
        Turn::Missed(miss) => Err(miss),
        Turn::Dial(dialling) => match dialled(want, snapshot, backend).await {
            Ok(link) => Ok(opened(link, Some(dialling))),
            Err(miss) => {
                dialling.missed(&miss);
                Err(miss)
            }
        },
    }
}

/// A greeted link to `backend`.
async fn dialled(want: &Want<'_>, snapshot: &Snapshot, backend: &Arc<Backend>) -> Result<Link, Miss> {
    let config = &snapshot.config;
    let lease = Lease::within_bound(backend).ok_or(Miss::Full)?;
    let mut link = dial(lease, &config.timeouts).await.map_err(|fault| match fault {
        DialFault::Local(error) => {
            let message = format!("this balancer cannot connect anywhere: {error}");
            Miss::Refused(Refused::later(Refusal::Limit, message, config))
        }
        DialFault::Ports(_) => Miss::Full,
        _ => Miss::Unreachable,
    })?;
    // A server that takes connections but says nothing is as good as one that takes none.
    let greeted =
        tokio::time::timeout(config.timeouts.connect, greet(&mut link, want.frames, want.version)).await;
    let has_hung_up = matches!(&greeted, Ok(Err(GreetFault::Lost(error))) if hung_up(error));
    match greeted {
        Ok(Ok(())) => Ok(link),
        Ok(Err(GreetFault::Version)) => {
            Err(Miss::Refused(Refused::mismatch("the session's backend speaks another protocol version")))
        }
        Ok(Err(GreetFault::Refused | GreetFault::Unattached)) => Err(Miss::Refused(Refused::mismatch(
            "the session's backend refused what another backend had accepted from this client",
        ))),
        Ok(Err(GreetFault::Lost(_))) | Err(_) => {
            backend.series().connect_failed("silent");
            backend.hasten_probe();
            Err(if has_hung_up { Miss::HungUp } else { Miss::Unreachable })
        }
    }
}
