//! Parking: a client that vanishes does not kill its running turns.
//!
//! A server aborts a turn when the last connection attached to its session closes. So, with `timeouts.linger`, a vanished
//! client's link to a server is kept: what the server sends is read and dropped, what it asks is answered with an error,
//! and the standing connection is asked now and then whether a turn is still going on. The sessions stay owned meanwhile,
//! so a client that comes back to one meets it alive.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::inlet::{Inlet, Piece};
use super::queue::Queue;
use crate::balancer::Balancer;
use crate::fleet::{Answer, Backend, Hold, Lease};
use crate::net::Stream;
use crate::wire::{SessionId, reply};

/// Between two questions whether a turn is still going on.
const INTERVAL: Duration = Duration::from_millis(200);
/// Bytes of a server's frame looked at for what it is; what is not known by then is no reason to stay.
const DECIDE_BYTES_MAX: usize = 1024 * 1024;
/// Errors for the server that it has not taken; more, and it is not worth waiting for.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

/// A link without a client.
pub(super) struct Parked {
    pub(super) stream: Stream,
    pub(super) lease: Lease,
    pub(super) inlet: Inlet,
    pub(super) out: Queue,
    /// The sessions the client was attached to there.
    pub(super) sessions: Vec<(SessionId, Option<Hold>)>,
}

/// One more parked link while it lives.
struct Place(Arc<Balancer>);

impl Place {
    /// Takes one of `max` places.
    fn take(balancer: &Arc<Balancer>, max: Option<usize>) -> Option<Self> {
        let fits = |parked: usize| max.is_none_or(|max| parked < max).then(|| parked.saturating_add(1));
        balancer.parked.fetch_update(Relaxed, Relaxed, fits).ok()?;
        balancer.metrics.parked_connections.inc();
        Some(Self(Arc::clone(balancer)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Relaxed);
        self.0.metrics.parked_connections.dec();
    }
}

/// Keeps `parked` while a turn of its sessions goes on, `timeouts.linger` at most. The client is gone: nobody waits for
/// this but the drain.
pub(super) fn park(balancer: &Arc<Balancer>, parked: Parked) {
    let config = Arc::clone(&balancer.now().config);
    let Some(linger) = config.timeouts.linger else { return };
    let Some(place) = Place::take(balancer, config.limits.parked) else {
        tracing::warn!("limits.parked is reached: turns of a vanished client are given up");
        return;
    };
    balancer.tasks.spawn(async move {
        let Parked { mut stream, lease, mut inlet, mut out, mut sessions } = parked;
        let backend = Arc::clone(lease.backend());
        let turns = async {
            retain_running(&backend, &mut sessions, config.timeouts.locate).await;
            if sessions.is_empty() {
                return;
            }
            tracing::info!(backend = %backend.name(), sessions = sessions.len(), "a vanished client's turns go on");
            while !sessions.is_empty() {
                tokio::time::sleep(INTERVAL).await;
                retain_running(&backend, &mut sessions, config.timeouts.locate).await;
            }
        };
        let end = tokio::select! {
            () = turns => "no turn goes on",
            () = tokio::time::sleep(linger) => "timeouts.linger is over",
            () = place.0.closing.begun() => "the balancer stops",
            _ = poll_fn(|cx| drain(&mut stream, &mut inlet, &mut out, cx)) => "the backend closed it",
        };
        drop(place);
        tracing::info!(backend = %backend.name(), end, "a parked connection is closed");
    });
}

/// Lets go of sessions in which no turn goes on, and of those another holder wants to move. A backend that does not say
/// is taken for one on which none does.
async fn retain_running(
    backend: &Backend,
    sessions: &mut Vec<(SessionId, Option<Hold>)>,
    patience: Duration,
) {
    sessions.retain(|(_, hold)| hold.as_ref().is_none_or(|hold| !hold.alarm().is_raised()));
    let asked = sessions.iter().map(|(session, _)| {
        let params = json!({ "sessionId": session.as_str() });
        backend.ask("session.metadata.isProcessing", params, patience)
    });
    let mut answers = join_all(asked).await.into_iter();
    sessions.retain(|_| {
        let answer = answers.next().flatten();
        matches!(answer, Some(Answer::Result(result)) if result.get("processing") == Some(&Value::Bool(true)))
    });
}

/// Reads and drops what the backend sends, and refuses what it asks; ready when it has nothing more to say.
fn drain(stream: &mut Stream, inlet: &mut Inlet, out: &mut Queue, cx: &mut Context<'_>) -> Poll<io::Error> {
    loop {
        if let Poll::Ready(Err(error)) = out.poll_flush(stream, cx) {
            return Poll::Ready(error);
        }
        match inlet.next(DECIDE_BYTES_MAX) {
            Ok(Some(Piece::Frame(frame))) => {
                if let (Some(_), Some(id)) = (&frame.envelope.method, &frame.envelope.id) {
                    out.push(reply::client_gone(id).into());
                }
                if out.len() > QUEUE_BYTES_MAX {
                    return Poll::Ready(io::ErrorKind::WriteZero.into());
                }
                continue;
            }
            Ok(Some(Piece::More { .. })) => continue,
            Ok(None) => {}
            Err(fault) => return Poll::Ready(io::Error::new(io::ErrorKind::InvalidData, fault)),
        }
        match inlet.poll_fill(stream, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => return Poll::Ready(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(error),
        }
    }
}
