//! What is remembered of a placement: a pin where the rules would choose otherwise next time, and which servers were not
//! up and may hold the session still.

use std::sync::Arc;

use tokio::time::timeout;

use super::locate::is_random_uuid;
use super::{Refused, Want};
use crate::balancer::Balancer;
use crate::config::Storage;
use crate::fleet::{Backend, Reason};
use crate::snapshot::Snapshot;
use crate::wire::SessionId;

/// The servers that were not up when a placement began: they have not been asked for the session.
pub(super) struct Unasked(Vec<usize>);

impl Unasked {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self(everyone(snapshot).filter(|(_, backend)| !backend.is_up()).map(|(at, _)| at).collect())
    }

    /// `session` was placed at `home`. Servers that were not up, then or since, are to let go of it when they come back,
    /// unless each has its own sessions, or this one is sure to be new. Where `home` itself was told to let go of it, waits
    /// until that has been done: it must not be done to the client that comes now.
    ///
    /// # Errors
    /// It has not been done in time.
    pub(super) async fn note(
        &self,
        snapshot: &Snapshot,
        want: &Want<'_>,
        session: &SessionId,
        home: &Backend,
    ) -> Result<(), Refused> {
        let config = &snapshot.config;
        let may_be_old = want.must_exist || !is_random_uuid(session.as_str());
        let went_on = may_be_old && config.placement.storage != Storage::Local;
        for (_, backend) in everyone(snapshot).filter(|(_, backend)| backend.server() == home.server()) {
            let coming = backend.moved().came_back(session);
            timeout(config.timeouts.rehome, coming).await.map_err(|_| Refused::locked(config))?;
        }
        let others = everyone(snapshot).filter(|(_, backend)| went_on && backend.server() != home.server());
        for (at, backend) in others {
            let is_up = backend.is_up();
            if !is_up || self.0.contains(&at) {
                backend.moved().note(session);
                if is_up {
                    backend.hasten_probe();
                }
            }
        }
        Ok(())
    }
}

/// The members and those that have left, numbered as in the snapshot.
fn everyone(snapshot: &Snapshot) -> impl Iterator<Item = (usize, &Arc<Backend>)> {
    snapshot.members.iter().chain(&snapshot.retired).map(|member| &member.backend).enumerate()
}

/// Pins the session, if the rules alone would not find it again.
pub(super) fn pin(
    balancer: &Balancer,
    snapshot: &Snapshot,
    session: &SessionId,
    home: &Backend,
    reason: Reason,
) {
    let config = &snapshot.config;
    let pinned = match reason {
        Reason::RoundRobin | Reason::Spill | Reason::SlowStart => true,
        Reason::Failover => config.placement.storage != Storage::Shared,
        Reason::Owner | Reason::Located | Reason::Pin | Reason::Hash | Reason::Blind => false,
    };
    if pinned {
        balancer.pins.pin(session, home.name(), config.limits.pins);
    }
}
