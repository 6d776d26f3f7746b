//! Every rule of placement, as one pure function of facts: where a session goes, and why.
//!
//! The reason is a metric label, a log field and what `sessile route` prints, so the three cannot disagree.

use crate::config::{Storage, Strategy};
use crate::fleet::ramp::WARM;
use crate::fleet::ring::Ring;
use crate::wire::Refusal;

/// Below this many sessions a backend there is no bound on load: with small numbers sessions would spill by chance.
pub const SPILL_SESSIONS_MIN: usize = 10;

/// Why a session goes where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is attached there through this balancer.
    Owner,
    /// The fleet says it is live or stored there.
    Located,
    /// It went there before.
    Pin,
    /// Its key's place on the ring.
    Hash,
    /// Its turn.
    RoundRobin,
    /// Its place on the ring has more than its share of sessions.
    Spill,
    /// Its place on the ring has just come up and does not take its whole share yet.
    SlowStart,
    /// Its place on the ring takes nothing new now.
    Failover,
    /// By strategy, because some backend did not say whether it has it.
    Blind,
}

impl Reason {
    /// All of them, for metrics.
    pub const ALL: [Self; 9] = [
        Self::Owner,
        Self::Located,
        Self::Pin,
        Self::Hash,
        Self::RoundRobin,
        Self::Spill,
        Self::SlowStart,
        Self::Failover,
        Self::Blind,
    ];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Located => "located",
            Self::Pin => "pin",
            Self::Hash => "hash",
            Self::RoundRobin => "round_robin",
            Self::Spill => "spill",
            Self::SlowStart => "slow_start",
            Self::Failover => "failover",
            Self::Blind => "blind",
        }
    }
}

/// What the fleet said of a session. Members are numbered as in the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Found {
    /// Nobody was to be asked.
    #[default]
    Unasked,
    /// All answered; nobody has it. On shared storage it may be stored all the same.
    Nobody,
    /// Some member that may have it did not answer.
    Unsure,
    /// It is live there.
    Live(usize),
    /// It is live nowhere, and stored there (with "shared" storage this is not asked).
    Stored(usize),
}

/// All that the fleet said of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The result.
    pub found: Found,
    /// Members that may have it and have not said so.
    pub silent: Vec<usize>,
    /// Whether one of them is not known to be down, and the ID is not sure to be new: it may be live there.
    pub may_be_live: bool,
    /// Members that have its newest stored copy.
    pub stored: Vec<usize>,
}

/// What decides about one session.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The affinity key; `None` for a session that the server will name.
    pub key: Option<&'a [u8]>,
    /// Whether the request needs the session to exist: anything but a create.
    pub must_exist: bool,
    /// Whether the backend it is attached to through this balancer is up; `None` if it is attached nowhere.
    pub owner_up: Option<bool>,
    /// Whether so few backends are up that probes are doubted: see `fleet::panic`. Only known for a session whose owner is
    /// down.
    pub panic: bool,
    /// What the fleet said.
    pub heard: &'a Heard,
    /// Whether a backend that is up sees what its owner has stored. Only known for a session whose owner is down.
    pub shared: bool,
    /// Where it is pinned.
    pub pin: Option<usize>,
    /// For sessions nobody has.
    pub strategy: Strategy,
    /// Where session state lives.
    pub storage: Storage,
    /// See `load_factor`.
    pub load_factor: Option<f64>,
    /// Sessions owned on all backends.
    pub sessions: usize,
    /// The turn of round robin: any counter.
    pub turn: usize,
}

/// One member of the fleet, as far as a decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Takes new sessions: up, in state `ready`, no dial failed since the last probe.
    pub ready: bool,
    /// Would be ready but for a failed dial: tried when no member is ready.
    pub suspect: bool,
    /// Takes sessions that it has: up, and this placement has not failed to dial it.
    pub up: bool,
    /// In maintenance: only sessions that are live there stay reachable.
    pub maint: bool,
    /// Share of new sessions.
    pub weight: u32,
    /// Percent of that share which it takes now: less than 100 during its slow start.
    pub ramp: u32,
    /// Sessions owned now.
    pub sessions: usize,
}

impl Candidate {
    /// A slow moment of the whole fleet must not refuse everybody: with no member ready, a suspect will do.
    fn as_last_resort(self) -> Self {
        Self { ready: self.ready || self.suspect, ..self }
    }

    /// It has failed the connection that asks, for which it is a suspect from now on.
    pub fn avoided(self) -> Self {
        Self { ready: false, suspect: self.suspect || self.ready, ..self }
    }

    /// Its share of new sessions now, to be compared with others'.
    fn share(self) -> f64 {
        f64::from(self.weight) * f64::from(self.ramp)
    }
}

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To the backend it is attached to.
    Owner,
    /// To this member.
    At(usize, Reason),
    /// First close its connections: its owner is down and another backend can take it.
    Evict,
    /// Nowhere now.
    Refuse(Refusal),
}

/// Decides. `member` describes the members `0..members`, which are those of `ring`.
pub fn decide(
    facts: &Facts<'_>,
    ring: &Ring,
    members: usize,
    member: impl Fn(usize) -> Candidate,
) -> Decision {
    match facts.owner_up {
        Some(true) => return Decision::Owner,
        // It is attached, and sessile may be the one that is cut off: it must not be opened on a second backend.
        Some(false) if !facts.shared || facts.panic => return Decision::Refuse(Refusal::OwnerDown),
        Some(false) => return Decision::Evict,
        None => {}
    }
    let found = facts.heard.found;
    let missed = |at: &usize| may_have(facts, ring, *at);
    match found {
        Found::Live(at) if member(at).up => return Decision::At(at, Reason::Located),
        Found::Live(_) => return Decision::Refuse(Refusal::OwnerDown),
        Found::Stored(_) => return stored(facts, ring, &member),
        Found::Unsure if facts.heard.may_be_live || facts.heard.silent.iter().any(missed) => {
            return Decision::Refuse(Refusal::OwnerDown);
        }
        Found::Nobody if facts.must_exist && facts.key.is_some() => {
            let chosen = by_ring_alone(facts, ring, &member, |_| true);
            return chosen
                .map_or(Decision::Refuse(Refusal::NoBackend), |(at, reason)| Decision::At(at, reason));
        }
        Found::Unsure | Found::Unasked | Found::Nobody => {}
    }
    if let Some(at) = facts.pin {
        let pinned = member(at);
        // Where each has its own storage, the session's state must be where it is pinned, though nobody could confirm it.
        let holds = facts.storage != Storage::Shared && facts.must_exist;
        if pinned.ready || holds && pinned.up && !pinned.maint {
            return Decision::At(at, Reason::Pin);
        }
        if holds {
            return Decision::Refuse(Refusal::OwnerDown);
        }
    }
    let chosen = by_strategy(facts, ring, members, &member)
        .or_else(|| by_strategy(facts, ring, members, &|at| member(at).as_last_resort()));
    match chosen {
        None => Decision::Refuse(Refusal::NoBackend),
        Some((at, _)) if found == Found::Unsure => Decision::At(at, Reason::Blind),
        Some((at, reason)) => Decision::At(at, reason),
    }
}

/// Whether it matters that this member, which is down, has not answered. A session that must exist may be anywhere; one
/// that is created only where the ring would have put it or where it was put before, or, in turn, anywhere.
pub fn may_have(facts: &Facts<'_>, ring: &Ring, at: usize) -> bool {
    let natural = match (facts.strategy, facts.key) {
        (Strategy::ConsistentHash, Some(key)) => ring.walk(key).next(),
        _ => None,
    };
    facts.must_exist || facts.pin == Some(at) || natural.is_none_or(|natural| natural == at)
}

/// A session that is stored and live nowhere goes only where it is stored.
fn stored(facts: &Facts<'_>, ring: &Ring, member: &impl Fn(usize) -> Candidate) -> Decision {
    let (there, refused) = (&facts.heard.stored, Decision::Refuse(Refusal::OwnerDown));
    if let [only] = there.as_slice() {
        let candidate = member(*only);
        // Like a live session, it goes to a server even if that drains: no other has it.
        let there = candidate.up && !candidate.maint;
        return if there { Decision::At(*only, Reason::Located) } else { refused };
    }
    let has = |at: usize| there.contains(&at);
    let pin = facts.pin.filter(|at| !facts.must_exist && has(*at) && member(*at).ready);
    let chosen = match pin {
        Some(at) => Some((at, Reason::Pin)),
        None => by_ring_alone(facts, ring, member, has).or_else(|| {
            let draining = |at: usize| Candidate { ready: member(at).up && !member(at).maint, ..member(at) };
            by_ring_alone(facts, ring, &draining, has)
        }),
    };
    // A server that is not on the ring has left the fleet.
    let left = || there.iter().find(|at| member(**at).up && !member(**at).maint);
    let chosen = chosen.or_else(|| Some((*left()?, Reason::Located)));
    chosen.map_or(refused, |(at, reason)| Decision::At(at, reason))
}

/// By the ring under any strategy, whatever the load and the ramp: balancers that are asked for one stored session at
/// once must agree where it goes, and load and ramp differ between balancers. Only members that have it, if not all do.
fn by_ring_alone(
    facts: &Facts<'_>,
    ring: &Ring,
    member: &impl Fn(usize) -> Candidate,
    has: impl Fn(usize) -> bool,
) -> Option<(usize, Reason)> {
    let walk = |takes: &dyn Fn(Candidate) -> bool| {
        let mut reason = Reason::Hash;
        for at in ring.walk(facts.key?) {
            match has(at) {
                true if takes(member(at)) => return Some((at, reason)),
                true => reason = Reason::Failover,
                false if reason == Reason::Hash => reason = Reason::Located,
                false => {}
            }
        }
        None
    };
    walk(&|candidate| candidate.ready).or_else(|| walk(&|candidate| candidate.as_last_resort().ready))
}

fn by_strategy(
    facts: &Facts<'_>,
    ring: &Ring,
    members: usize,
    member: &impl Fn(usize) -> Candidate,
) -> Option<(usize, Reason)> {
    match (facts.strategy, facts.key) {
        (Strategy::ConsistentHash, Some(key)) => by_ring(facts, ring, key, members, member),
        _ => in_turn(facts.turn, members, member).map(|at| (at, Reason::RoundRobin)),
    }
}

/// The first ready member on the walk that takes this key now: its ramp is above the key's lot, and it is not over its
/// bound. If all are over their bounds, the first whose ramp is above the lot.
fn by_ring(
    facts: &Facts<'_>,
    ring: &Ring,
    key: &[u8],
    members: usize,
    member: &impl Fn(usize) -> Candidate,
) -> Option<(usize, Reason)> {
    let mut first = None;
    let mut passed_over = None;
    let mut known = None;
    let mut ready = || *known.get_or_insert_with(|| Ready::of(members, member));
    for (steps, at) in ring.walk(key).enumerate() {
        let candidate = member(at);
        if !candidate.ready {
            continue;
        }
        let reason = if steps == 0 { Reason::Hash } else { Reason::Failover };
        if candidate.ramp < WARM && ring.lot(key, ready().warmest) >= candidate.ramp {
            passed_over.get_or_insert(Reason::SlowStart);
            continue;
        }
        let reason = passed_over.unwrap_or(reason);
        first.get_or_insert((at, reason));
        let within = candidate.sessions < SPILL_SESSIONS_MIN
            || facts.load_factor.is_none_or(|factor| {
                let share = candidate.share() / ready().shares;
                let fair = to_f64(facts.sessions.saturating_add(1)) * share;
                to_f64(candidate.sessions) < (factor * fair).ceil()
            });
        if within {
            return Some((at, reason));
        }
        passed_over.get_or_insert(Reason::Spill);
    }
    first
}

/// Any member that takes new sessions, in turn.
pub fn anyone(turn: usize, members: usize, member: impl Fn(usize) -> Candidate) -> Option<usize> {
    in_turn(turn, members, &member).or_else(|| in_turn(turn, members, &|at| member(at).as_last_resort()))
}

/// Weighted round robin over ready members: in as many turns as all weights together, each gets as many as its weight
/// times its ramp. The stride spreads a heavy member's turns instead of giving it all of them in a row.
fn in_turn(turn: usize, members: usize, member: &impl Fn(usize) -> Candidate) -> Option<usize> {
    // Ramps count only while they differ: a round is a hundred times as long then.
    let level = Ready::of(members, member).is_level();
    let weight = |at: usize| {
        let candidate = member(at);
        let weight = if level { candidate.weight } else { candidate.weight.saturating_mul(candidate.ramp) };
        if candidate.ready { usize::try_from(weight).unwrap_or(usize::MAX) } else { 0 }
    };
    let all = (0..members).map(weight).fold(0usize, usize::saturating_add);
    let stride = stride(all)?;
    let mut position = turn.checked_rem(all)?.wrapping_mul(stride).checked_rem(all)?;
    for at in 0..members {
        match position.checked_sub(weight(at)) {
            None => return Some(at),
            Some(rest) => position = rest,
        }
    }
    None
}

/// A step near 0.618 of `all` that meets every place once: coprime to it.
fn stride(all: usize) -> Option<usize> {
    let golden = all.saturating_mul(618).checked_div(1000)?.max(1);
    (golden..).find(|step| gcd(*step, all) == 1)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a.checked_rem(b).unwrap_or(0)) }
}

/// The ready members together.
#[derive(Clone, Copy)]
struct Ready {
    shares: f64,
    warmest: u32,
    coldest: u32,
}

impl Ready {
    fn of(members: usize, member: &impl Fn(usize) -> Candidate) -> Self {
        let mut all = Self { shares: 0.0, warmest: 0, coldest: WARM };
        for candidate in (0..members).map(member).filter(|candidate| candidate.ready) {
            all.shares += candidate.share();
            all.warmest = all.warmest.max(candidate.ramp);
            all.coldest = all.coldest.min(candidate.ramp);
        }
        all
    }

    /// Whether all have the same ramp.
    const fn is_level(self) -> bool {
        self.warmest <= self.coldest
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of sessions are far below 2^52")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
