//! The facts of a decision, put together in one place: for a connection, for `sessile route` (of a running balancer and of a
//! file alone) and for the simulation. What one of them left out, the others would not show.

use std::sync::Arc;

use super::Want;
use crate::balancer::Balancer;
use crate::fleet::{Backend, Evidence, Facts, Heard};
use crate::session::{Directory, Pins};
use crate::snapshot::Snapshot;

/// What a balancer remembers that counts in a decision.
#[derive(Clone, Copy, Debug)]
pub struct Remembered<'a> {
    /// Who has which session.
    pub directory: &'a Directory,
    /// Where sessions went.
    pub pins: &'a Pins,
    /// Which servers see each other's sessions.
    pub evidence: &'a Evidence,
}

impl<'a> Remembered<'a> {
    /// What this one remembers.
    pub fn by(balancer: &'a Balancer) -> Self {
        Self { directory: &balancer.directory, pins: &balancer.pins, evidence: &balancer.evidence }
    }
}

impl<'a> Facts<'a> {
    /// The facts of this moment about what `want` asks for. `remembered` is missing where no balancer runs; `owner` is the
    /// backend that the session is attached to; `turn` is any counter.
    pub fn of(
        snapshot: &Snapshot,
        remembered: Option<Remembered<'_>>,
        want: &Want<'a>,
        owner: Option<&Arc<Backend>>,
        heard: &'a Heard,
        turn: usize,
    ) -> Self {
        let placement = &snapshot.config.placement;
        let owner_up = owner.map(|owner| owner.is_up());
        let down = owner.filter(|_| owner_up == Some(false));
        let sees =
            |owner: &Arc<Backend>| remembered.is_some_and(|known| snapshot.sees(owner, known.evidence));
        let tracked = want.session.filter(|_| want.tracked);
        let pin = tracked.and_then(|session| remembered?.pins.find(session));
        Self {
            key: want.session.map(|session| snapshot.affinity_key(session)),
            must_exist: want.must_exist,
            owner_up,
            panic: down.is_some() && snapshot.is_panic(),
            heard,
            shared: down.is_some_and(sees),
            pin: pin.and_then(|name| snapshot.named(&name)),
            strategy: placement.strategy,
            storage: placement.storage,
            load_factor: placement.load_factor,
            sessions: remembered.map_or(0, |known| known.directory.len()),
            turn,
        }
    }
}
