//! What one configuration became: the fleet's members, their ring and the policy, behind one pointer.
//!
//! Every placement reads the snapshot of its moment. A reload or an operator's command builds the next one and swaps
//! the pointer; nothing in a snapshot ever changes but what its backends report of themselves.

use std::sync::Arc;

use crate::config::{AdminState, Config};
use crate::fleet::{Backend, Candidate, Ring, WARM, is_panic, warmth};
use crate::wire::SessionId;

/// One configuration in force.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts configurations, from 1.
    pub generation: u64,
    /// The configuration itself.
    pub config: Arc<Config>,
    /// The fleet, in the order of the file; what was found for a name stands in its place.
    pub members: Vec<Member>,
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
    /// Member `at` as a decision sees it; `failed` lists the members this placement could not dial, and `have` those that
    /// the client is connected to.
    pub fn candidate(&self, at: usize, failed: &[usize], have: &[Arc<Backend>]) -> Candidate {
        let Some(member) = self.members.get(at) else {
            return Candidate {
                ready: false,
                suspect: false,
                up: false,
                maint: false,
                weight: 0,
                warmth: WARM,
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
            warmth: self.warmth(member),
            sessions: member.backend.sessions(),
        }
    }

    /// Percent of its share that a member takes now.
    pub fn warmth(&self, member: &Member) -> u32 {
        let slow_start = self.config.placement.slow_start;
        warmth(slow_start.and_then(|_| member.backend.up_for()), slow_start)
    }

    /// Whether so few backends are up that probes are doubted: nothing that cannot be taken back is then done on their
    /// word.
    pub fn is_panic(&self) -> bool {
        let counted = self.members.iter().filter(|member| member.state != AdminState::Maint);
        is_panic(counted.map(|member| member.backend.health()), self.config.health.panic_threshold)
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
