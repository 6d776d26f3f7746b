//! What the contract says of one decision, written down a second time and in another way: as what must be so if a
//! session went there.

use sessile::config::{AdminState, Storage, Strategy};
use sessile::fleet::{Decision, Found, Reason};
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
    pub session: &'a str,
    pub must_exist: bool,
    pub found: Found,
    pub pin: Option<usize>,
    pub members: Vec<Seen>,
    pub sessions: usize,
}

impl Case<'_> {
    /// Panics unless the decision keeps the contract.
    pub fn judge(&self, snapshot: &Snapshot, decision: Decision) {
        let placement = &snapshot.config.placement;
        let local = placement.storage == Storage::Local;
        let by_word = matches!(self.found, Found::Live(_) | Found::Stored(_));
        let unsure_resume = self.found == Found::Unsure && local && self.must_exist;
        match decision {
            Decision::Owner | Decision::Evict => panic!("{decision:?}, and nobody is attached: {self:?}"),
            Decision::At(at, Reason::Located) => {
                let member = self.members[at];
                assert!(member.up, "located on a server that is down: {self:?}");
                match self.found {
                    Found::Live(live) => assert_eq!(at, live, "{self:?}"),
                    Found::Stored(stored) => {
                        assert!(at == stored && member.state != AdminState::Maint, "{self:?}");
                    }
                    _ => panic!("located without a word of the fleet: {self:?}"),
                }
            }
            Decision::At(at, Reason::Pin) => {
                assert!(!by_word && !unsure_resume, "a pin before the word of the fleet: {self:?}");
                assert_eq!(Some(at), self.pin, "{self:?}");
                let member = self.members[at];
                let only_one = local && self.must_exist && self.found == Found::Unasked;
                let holds = only_one && member.up && member.state != AdminState::Maint;
                assert!(member.takes_new() || holds, "a pin to a server that takes nothing new: {self:?}");
            }
            Decision::At(at, reason) => {
                assert!(!by_word, "by strategy against the word of the fleet: {self:?}");
                assert!(!unsure_resume, "silence was taken for absence: {self:?}");
                assert!(self.pin.is_none_or(|pin| !self.members[pin].takes_new()), "past its pin: {self:?}");
                assert_eq!(reason == Reason::Blind, self.found == Found::Unsure, "{decision:?}: {self:?}");
                self.judge_choice(snapshot, at, reason);
            }
            Decision::Refuse(Refusal::OwnerDown) => {
                let unreachable = match self.found {
                    Found::Live(at) => !self.members[at].up,
                    Found::Stored(at) => !self.members[at].up || self.members[at].state == AdminState::Maint,
                    Found::Unsure => local && self.must_exist,
                    Found::Unasked => local && self.must_exist && self.pin.is_some(),
                    Found::Nobody => false,
                };
                assert!(unreachable, "refused for an owner that is not down: {self:?}");
            }
            Decision::Refuse(refusal) => {
                assert_eq!(refusal, Refusal::NoBackend, "{self:?}");
                let left = self.members.iter().any(Seen::is_last_resort);
                assert!(!left && !by_word, "refused though a server takes new sessions: {self:?}");
            }
        }
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
        let walk: Vec<usize> = snapshot.ring.walk(self.session.as_bytes()).collect();
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
