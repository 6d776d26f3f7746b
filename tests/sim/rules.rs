//! What the contract says of one decision, written down a second time and in another way: as what must be so if a
//! session went there.

use sessile::config::{AdminState, Storage, Strategy};
use sessile::fleet::{Decision, Found, Heard, Reason};
use sessile::snapshot::Snapshot;
use sessile::wire::Refusal;

/// A member as the model sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Up, and not among the failed dials of this placement.
    pub up: bool,
    pub state: AdminState,
    pub suspect: bool,
    pub sessions: usize,
    pub weight: u32,
}

impl Seen {
    fn takes_new(&self) -> bool {
        self.up && self.state == AdminState::Ready && !self.suspect
    }

    fn is_last_resort(&self) -> bool {
        self.up && self.state == AdminState::Ready
    }
}

/// Everything a decision may depend on.
#[derive(Debug)]
pub struct Case<'a> {
    /// What of its ID decides where it goes.
    pub key: &'a str,
    pub must_exist: bool,
    pub heard: &'a Heard,
    pub pin: Option<usize>,
    pub members: Vec<Seen>,
    pub sessions: usize,
}

/// The members whose silence matters.
pub fn may_have(snapshot: &Snapshot, key: &str, must_exist: bool, pin: Option<&str>) -> Vec<usize> {
    if must_exist || snapshot.config.placement.strategy == Strategy::RoundRobin {
        return (0..snapshot.members.len()).collect();
    }
    let natural = snapshot.ring.walk(key.as_bytes()).next();
    natural.into_iter().chain(pin.and_then(|pin| snapshot.named(pin))).collect()
}

impl Case<'_> {
    /// Panics unless the decision keeps the contract.
    pub fn judge(&self, snapshot: &Snapshot, decision: Decision) {
        let placement = &snapshot.config.placement;
        let own = placement.storage != Storage::Shared;
        let found = self.heard.found;
        let stored = |at: usize| self.heard.stored.contains(&at);
        match decision {
            Decision::Owner | Decision::Evict => panic!("{decision:?}, and nobody is attached: {self:?}"),
            Decision::At(at, reason) => {
                assert!(self.members[at].up, "on a server that is down: {self:?}");
                assert!(!self.is_doubtful(snapshot), "silence was taken for absence: {self:?}");
                assert_eq!(reason == Reason::Located, self.is_by_word(at, snapshot), "{reason:?}: {self:?}");
                match (found, reason) {
                    (Found::Live(live), _) => assert_eq!(at, live, "{self:?}"),
                    (Found::Stored(_), Reason::Pin) => {
                        assert!(!self.must_exist && stored(at) && self.pin == Some(at), "{self:?}");
                    }
                    (Found::Stored(_), _) => {
                        assert!(stored(at) && self.members[at].state != AdminState::Maint, "{self:?}");
                        self.judge_agreement(snapshot, at);
                    }
                    (_, Reason::Pin) => self.judge_pin(own, at),
                    (Found::Nobody, _) if self.must_exist => self.judge_agreement(snapshot, at),
                    _ => self.judge_strategy(snapshot, at, reason),
                }
            }
            Decision::Refuse(Refusal::OwnerDown) => {
                let can_have =
                    |at: &usize| self.members[*at].up && self.members[*at].state != AdminState::Maint;
                let unreachable = match found {
                    Found::Live(at) => !self.members[at].up,
                    Found::Stored(_) => !self.heard.stored.iter().any(can_have),
                    Found::Unsure => self.is_doubtful(snapshot),
                    Found::Unasked => own && self.must_exist && self.pin.is_some(),
                    Found::Nobody => false,
                };
                assert!(unreachable, "refused for an owner that is not down: {self:?}");
            }
            Decision::Refuse(refusal) => {
                assert_eq!(refusal, Refusal::NoBackend, "{self:?}");
                let left = self.members.iter().any(Seen::is_last_resort);
                let by_word = matches!(found, Found::Live(_) | Found::Stored(_));
                assert!(!left && !by_word, "refused though a server takes new sessions: {self:?}");
            }
        }
    }

    /// Whether somebody silent may have the session: any of them if it must exist or may be live there, else the one where
    /// it would have been put, or was.
    fn is_doubtful(&self, snapshot: &Snapshot) -> bool {
        let pin = self.pin.map(|pin| &**snapshot.members[pin].backend.name());
        let those = may_have(snapshot, self.key, self.must_exist, pin);
        let may_be = self.heard.may_be_live || self.heard.silent.iter().any(|at| those.contains(at));
        self.heard.found == Found::Unsure && may_be
    }

    /// Whether it is the fleet's word alone that brings the session there.
    fn is_by_word(&self, at: usize, snapshot: &Snapshot) -> bool {
        match self.heard.found {
            Found::Live(_) => true,
            Found::Stored(_) if self.heard.stored.len() == 1 => true,
            Found::Stored(_) if !self.must_exist && self.is_pinned_among_stored() => false,
            Found::Stored(_) => {
                let before = snapshot.ring.walk(self.key.as_bytes()).take_while(|other| *other != at);
                let mut before = before.peekable();
                before.peek().is_some() && !before.any(|other| self.heard.stored.contains(&other))
            }
            _ => false,
        }
    }

    fn is_pinned_among_stored(&self) -> bool {
        self.pin.is_some_and(|pin| self.heard.stored.contains(&pin) && self.members[pin].takes_new())
    }

    fn judge_pin(&self, own: bool, at: usize) {
        assert_eq!(Some(at), self.pin, "{self:?}");
        let member = self.members[at];
        let only_one = own && self.must_exist && self.heard.found == Found::Unasked;
        let holds = only_one && member.up && member.state != AdminState::Maint;
        assert!(member.takes_new() || holds, "a pin to a server that takes nothing new: {self:?}");
    }

    fn judge_strategy(&self, snapshot: &Snapshot, at: usize, reason: Reason) {
        assert!(self.pin.is_none_or(|pin| !self.members[pin].takes_new()), "past its pin: {self:?}");
        assert_eq!(reason == Reason::Blind, self.heard.found == Found::Unsure, "{reason:?}: {self:?}");
        self.judge_choice(snapshot, at, reason);
    }

    /// Whoever decides, with whatever load and memory, comes to this server.
    fn judge_agreement(&self, snapshot: &Snapshot, at: usize) {
        let stored = &self.heard.stored;
        if stored.len() == 1 {
            return;
        }
        let has = |at: &usize| stored.is_empty() || stored.contains(at);
        let order: Vec<usize> = snapshot.ring.walk(self.key.as_bytes()).filter(has).collect();
        let first = |takes: &dyn Fn(&Seen) -> bool| order.iter().find(|at| takes(&self.members[**at]));
        let expected = first(&Seen::takes_new).or_else(|| first(&Seen::is_last_resort));
        let expected = expected.or_else(|| first(&|member| member.up && member.state != AdminState::Maint));
        assert_eq!(Some(&at), expected, "another balancer would go elsewhere: {self:?}");
    }

    /// The choice among those that take new sessions.
    fn judge_choice(&self, snapshot: &Snapshot, at: usize, reason: Reason) {
        let anyone_ready = self.members.iter().any(Seen::takes_new);
        let eligible =
            |member: &Seen| if anyone_ready { member.takes_new() } else { member.is_last_resort() };
        assert!(
            eligible(&self.members[at]),
            "new on a server that takes nothing new: {at} {reason:?} {self:?}"
        );
        let placement = &snapshot.config.placement;
        if placement.strategy == Strategy::RoundRobin {
            assert!(matches!(reason, Reason::RoundRobin | Reason::Blind), "{reason:?}: {self:?}");
            return;
        }
        let walk: Vec<usize> = snapshot.ring.walk(self.key.as_bytes()).collect();
        let order: Vec<usize> = walk.iter().copied().filter(|at| eligible(&self.members[*at])).collect();
        let weight: u32 =
            self.members.iter().filter(|member| eligible(member)).map(|member| member.weight).sum();
        let has_room = |at: &&usize| {
            let member = &self.members[**at];
            let number = |count: usize| f64::from(u32::try_from(count).unwrap());
            let fair = number(self.sessions + 1) * f64::from(member.weight) / f64::from(weight);
            member.sessions < 10
                || placement.load_factor.is_none_or(|factor| number(member.sessions) < (factor * fair).ceil())
        };
        let expected = *order.iter().find(has_room).unwrap_or(&order[0]);
        assert_eq!(at, expected, "{reason:?} in the order {order:?}: {self:?}");
        let why = match () {
            () if at != order[0] => Reason::Spill,
            () if at != walk[0] => Reason::Failover,
            () => Reason::Hash,
        };
        assert!(reason == why || reason == Reason::Blind, "{reason:?} instead of {why:?}: {self:?}");
    }
}
