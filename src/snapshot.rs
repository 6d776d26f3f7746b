//! One configuration in force: the fleet's members, their ring and the policy, behind one pointer.
//!
//! Every placement reads the snapshot of its moment. A reload or an operator's command builds the next one and swaps
//! the pointer; nothing in a snapshot ever changes except the state of its backends.

use std::sync::Arc;

use futures_util::future::select_all;

use crate::config::{AdminState, Config, Storage};
use crate::fleet::{Backend, Candidate, Evidence, Ring, WARM, is_panic, ramp};
use crate::wire::SessionId;

/// One configuration in force.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Counts configurations, from 1.
    pub generation: u64,
    /// The configuration itself.
    pub config: Arc<Config>,
    /// The fleet, in the order of the file; servers found for a name stand in its place.
    pub members: Vec<Member>,
    /// Servers that have left the fleet and may still have sessions, the oldest first; none is a member's. They are asked
    /// where sessions are, and get the sessions that are located there. State "drain": only DNS has left them out, and
    /// sessions stored there count too. State "maint": they have left the file.
    pub retired: Vec<Member>,
    /// The ring of the members, with the same numbers.
    pub ring: Arc<Ring>,
}

/// A backend as this configuration sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// The backend, shared with other snapshots.
    pub backend: Arc<Backend>,
    /// Share of new sessions.
    pub weight: u32,
    /// The state in force: an operator's command, else the file's.
    pub state: AdminState,
    /// The state in the file.
    pub file_state: AdminState,
    /// The name in the file for which it was found.
    pub source: Option<Arc<str>>,
}

impl Member {
    /// Whether it takes new sessions.
    pub fn is_ready(&self) -> bool {
        self.state == AdminState::Ready && self.backend.is_up() && !self.backend.is_suspect()
    }
}

impl Snapshot {
    /// Member `at`; numbers beyond the members are the retired ones.
    pub fn member(&self, at: usize) -> Option<&Member> {
        self.members.get(at).or_else(|| self.retired.get(at.checked_sub(self.members.len())?))
    }

    /// The numbers of the retired ones.
    pub fn retired(&self) -> std::ops::Range<usize> {
        self.members.len()..self.members.len().saturating_add(self.retired.len())
    }

    /// Whether a session is resumed at member `at` because it alone has it stored: not on a server that an operator has
    /// taken out of the file, nor where all share their storage.
    pub fn keeps(&self, at: usize) -> bool {
        let kept = |member: &Member| at < self.members.len() || member.state == AdminState::Drain;
        self.config.placement.storage != Storage::Shared && self.member(at).is_some_and(kept)
    }

    /// Whether it knows more than one server, those that have left included: with one, it is clear where every session is.
    pub fn has_several(&self) -> bool {
        let first = self.members.first().map(|member| member.backend.server());
        let others = self.members.iter().any(|member| Some(member.backend.server()) != first);
        others || !self.retired.is_empty()
    }

    /// How many servers this snapshot knows, to reckon what they cost.
    pub fn servers(&self) -> usize {
        self.members.len().saturating_add(self.retired.len())
    }

    /// Member `at` as `decide` sees it; `failed` lists the members that this placement could not dial, and `have` the
    /// backends that the client is connected to.
    pub fn candidate(&self, at: usize, failed: &[usize], have: &[Arc<Backend>]) -> Candidate {
        let Some(member) = self.member(at) else {
            return Candidate {
                ready: false,
                suspect: false,
                up: false,
                maint: false,
                weight: 0,
                ramp: WARM,
                sessions: 0,
            };
        };
        let dialled = !failed.contains(&at);
        let up = member.backend.is_up();
        let has = have.iter().any(|known| Arc::ptr_eq(known, &member.backend));
        let room = dialled && (has || !member.backend.is_full());
        Candidate {
            ready: room && member.is_ready(),
            suspect: room && up && member.state == AdminState::Ready && member.backend.is_suspect(),
            up: dialled && up,
            maint: member.state == AdminState::Maint,
            weight: member.weight,
            ramp: self.ramp(member),
            sessions: member.backend.sessions(),
        }
    }

    /// Percent of its share that a member takes now.
    pub fn ramp(&self, member: &Member) -> u32 {
        let slow_start = self.config.placement.slow_start;
        ramp(slow_start.and_then(|_| member.backend.up_for()), slow_start)
    }

    /// Waits until a backend comes up or goes down.
    pub async fn health_changes(&self) {
        let change = |member: &Member| {
            let mut standing = member.backend.standing();
            Box::pin(async move {
                let before = standing.borrow_and_update().health;
                standing.wait_for(|standing| standing.health != before).await.is_ok()
            })
        };
        match self.members.is_empty() {
            true => std::future::pending().await,
            false => drop(select_all(self.members.iter().map(change)).await),
        }
    }

    /// Whether so few backends are up that probes are doubted: then nothing that cannot be undone is done because of them.
    pub fn is_panic(&self) -> bool {
        let counted = self.members.iter().filter(|member| member.state != AdminState::Maint);
        is_panic(counted.map(|member| member.backend.health()), self.config.health.panic_threshold)
    }

    /// Whether another server that is up sees what `owner` has stored, and can take over its sessions.
    pub fn sees(&self, owner: &Backend, evidence: &Evidence) -> bool {
        let own = owner.process();
        let shared = |other: &Backend| evidence.shared(&own, &other.process()) == Some(true);
        match self.config.placement.storage {
            Storage::Shared => true,
            Storage::Local => false,
            Storage::Auto => self.members.iter().any(|other| other.backend.is_up() && shared(&other.backend)),
        }
    }

    /// The member called `name`.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.members.iter().position(|member| &**member.backend.name() == name)
    }

    /// The part of a session ID that decides its place on the ring.
    pub fn affinity_key<'a>(&self, id: &'a SessionId) -> &'a [u8] {
        let whole = id.as_str().as_bytes();
        let pattern = self.config.placement.affinity_pattern.as_ref();
        pattern.and_then(|p| p.captures(whole)?.get(1)).map_or(whole, |group| group.as_bytes())
    }

    /// Whether some ready backend has reached its bound on connections.
    pub fn is_full(&self) -> bool {
        self.members.iter().any(|member| member.is_ready() && member.backend.is_full())
    }

    /// Whether some backend is up.
    pub fn is_up(&self) -> bool {
        self.members.iter().any(|member| member.backend.is_up())
    }
}
