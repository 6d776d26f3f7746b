//! What one configuration became: the fleet's members, their ring and the policy, behind one pointer.
//!
//! Every placement reads the snapshot of its moment. A reload or an operator's command builds the next one and swaps
//! the pointer; nothing in a snapshot ever changes but what its backends report of themselves.

use std::sync::Arc;

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
    /// The fleet, in the order of the file; what was found for a name stands in its place.
    pub members: Vec<Member>,
    /// Servers that are in the fleet no more and may have sessions still, the oldest first, none of them a member's. They
    /// are asked where sessions are, and take what is located there. In state "drain", what is stored there counts too: DNS
    /// has left them out. In "maint" they have left the file.
    pub retired: Vec<Member>,
    /// The ring of the members, numbered alike.
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
    /// The file's.
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
    /// Member `at`; those that follow the members are the retired ones.
    pub fn member(&self, at: usize) -> Option<&Member> {
        self.members.get(at).or_else(|| self.retired.get(at.checked_sub(self.members.len())?))
    }

    /// The numbers of the retired ones.
    pub fn retired(&self) -> std::ops::Range<usize> {
        self.members.len()..self.members.len().saturating_add(self.retired.len())
    }

    /// Whether what member `at` alone has stored counts for where its sessions are: not on a server that an operator has
    /// taken out of the file, nor where all have the same.
    pub fn keeps(&self, at: usize) -> bool {
        let kept = |member: &Member| at < self.members.len() || member.state == AdminState::Drain;
        self.config.placement.storage != Storage::Shared && self.member(at).is_some_and(kept)
    }

    /// Whether it knows more than one server, those that have left included: else there is no question where a session is.
    pub fn has_several(&self) -> bool {
        let first = self.members.first().map(|member| member.backend.server());
        let others = self.members.iter().any(|member| Some(member.backend.server()) != first);
        others || !self.retired.is_empty()
    }

    /// Servers that this snapshot knows, for what each of them costs.
    pub fn servers(&self) -> usize {
        self.members.len().saturating_add(self.retired.len())
    }

    /// Member `at` as a decision sees it; `failed` lists the members this placement could not dial, and `have` those that
    /// the client is connected to.
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

    /// Whether so few backends are up that probes are doubted: nothing that cannot be taken back is then done on their
    /// word.
    pub fn is_panic(&self) -> bool {
        let counted = self.members.iter().filter(|member| member.state != AdminState::Maint);
        is_panic(counted.map(|member| member.backend.health()), self.config.health.panic_threshold)
    }

    /// Whether another server that is up sees what `owner` has stored, and can take its sessions over.
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

    /// What of a session ID decides about its place on the ring.
    pub fn affinity_key<'a>(&self, id: &'a SessionId) -> &'a [u8] {
        let whole = id.as_str().as_bytes();
        let pattern = self.config.placement.affinity_pattern.as_ref();
        pattern.and_then(|p| p.captures(whole)?.get(1)).map_or(whole, |group| group.as_bytes())
    }

    /// Whether some backend would take a session if it had not as many connections as it may.
    pub fn is_full(&self) -> bool {
        self.members.iter().any(|member| member.is_ready() && member.backend.is_full())
    }

    /// Whether some backend is up.
    pub fn is_up(&self) -> bool {
        self.members.iter().any(|member| member.backend.is_up())
    }
}
