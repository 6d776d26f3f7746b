//! Taking a session over from a parked link: see `session::handovers`.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Want;
use crate::balancer::Balancer;
use crate::config::Config;
use crate::fleet::{Backend, Lease};
use crate::link::{GreetFault, attach, dial, greet};
use crate::session::{Attachment, Handover, Keeper};

/// Has parked links leave a session that a client comes back to. Whatever fails, the client goes on: at worst its server
/// refuses what a link has registered.
pub(super) async fn take_over(
    balancer: &Balancer,
    want: &Want<'_>,
    config: &Config,
    attachment: &Attachment,
) {
    let session = attachment.session();
    let links = balancer.handovers.find(session);
    if links.is_empty() {
        return;
    }
    let taking = async {
        let mut keeper = keeper(want, config, attachment).await;
        if keeper.is_none() {
            return;
        }
        for link in links {
            let (done, over) = oneshot::channel();
            let handover = Handover { session: session.clone(), keeper: keeper.take(), done };
            keeper = match link.send(handover).await {
                Ok(()) => over.await.ok().flatten(),
                Err(unsent) => unsent.0.keeper,
            };
        }
    };
    if tokio::time::timeout(config.timeouts.connect.saturating_mul(2), taking).await.is_err() {
        tracing::warn!(%session, "a parked link has not left its session in time");
    }
}

/// A connection to the session's backend that is attached to it.
async fn keeper(want: &Want<'_>, config: &Config, attachment: &Attachment) -> Option<Keeper> {
    let backend: &Arc<Backend> = attachment.backend();
    let lease = Lease::within_bound(backend)?;
    let mut link = dial(lease, &config.timeouts).await.ok()?;
    let attached = async {
        greet(&mut link, want.frames, None).await?;
        attach(&mut link, attachment.session()).await
    };
    let attached: Result<(), GreetFault> = attached.await;
    if let Err(fault) = attached {
        tracing::debug!(session = %attachment.session(), backend = %backend.name(), %fault, "nobody to keep a session");
        return None;
    }
    let crate::link::Link { stream, unread } = link;
    Some(Keeper { stream, unread })
}
