//! Parking: a client that vanishes does not kill its running turns.
//!
//! A server aborts a turn when the last connection attached to its session closes. So, with `timeouts.linger`, a vanished
//! client's link to a server is kept: what the server sends is read and dropped, what it asks is answered with an error,
//! and over the connection for clients' questions it is asked now and then whether a turn is still going on. The sessions
//! stay owned meanwhile, so a client that comes back to one meets it alive. Servers keep what the vanished client
//! had registered (its tools) and refuse the same from another: so before anybody is given the session, a keeper takes the
//! link's place (`session::handovers`).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Sleep;

use super::inlet::Inlet;
use super::queue::Queue;
use crate::balancer::Balancer;
use crate::close::By;
use crate::config::Config;
use crate::fleet::{Backend, Leased, Question, Said};
use crate::net::{READ_BYTES_MAX, Stream};
use crate::runtime::account::{Account, Charge, Owns};
use crate::session::{Attachment, Handover, Keeper, Registered};
use crate::wire::{SessionId, reply};

/// Between two questions whether a turn is still going on.
const INTERVAL: Duration = Duration::from_millis(200);
/// Questions of one vanished client that wait for their turn.
const TOGETHER_MAX: usize = 16;
/// Errors for the server that it has not taken; more, and it is not worth waiting for.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

/// What a session of a parked link takes beside its name.
const SESSION_BYTES: usize = 320;

/// The id under which a parked link leaves a session.
const LEAVES: &str = "sessile-leave";

/// A link without a client.
pub(super) struct Parked {
    pub(super) stream: Leased,
    pub(super) inlet: Inlet,
    pub(super) out: Queue,
    pub(super) sessions: ParkedSessions,
}

/// The sessions that a client was attached to on a parked link.
pub(super) struct ParkedSessions {
    all: Vec<ParkedSession>,
    /// For them, their places in the directory and among the handovers: the client's books are closed.
    charge: Charge,
}

type ParkedSession = (SessionId, Option<Attachment>);

impl ParkedSessions {
    /// These. They are there already, and stay whether there is room or not.
    pub(super) fn new(account: &Account, all: Vec<ParkedSession>) -> Self {
        let mut sessions = Self { all, charge: account.apart().charge() };
        sessions.settle();
        sessions
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn position(&self, session: &SessionId) -> Option<usize> {
        self.all.iter().position(|(known, _)| known == session)
    }

    fn retain(&mut self, stays: impl FnMut(&ParkedSession) -> bool) {
        self.all.retain(stays);
        self.settle();
    }

    fn take(&mut self, at: usize) -> ParkedSession {
        let taken = self.all.swap_remove(at);
        self.settle();
        taken
    }

    fn settle(&mut self) {
        let bytes = self.all.iter().map(|(session, _)| session.owns().saturating_add(SESSION_BYTES));
        self.charge.force(bytes.fold(0, usize::saturating_add));
        self.charge.tell();
    }
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
    let sessions = parked.sessions.all.iter().map(|(session, _)| session.clone()).collect();
    let asked = balancer.handovers.register(sessions);
    start(Keeping { place, config, end: Box::pin(tokio::time::sleep(linger)), parked, asked: Some(asked) });
}

/// A parked link, and what bounds it.
struct Keeping {
    place: Place,
    config: Arc<Config>,
    end: Pin<Box<Sleep>>,
    parked: Parked,
    /// Who comes back; a keeper has registered nothing, and need not hear of it.
    asked: Option<Registered>,
}

fn start(keeping: Keeping) {
    let balancer = Arc::clone(&keeping.place.0);
    balancer.tasks.spawn(keep(keeping));
}

/// The life of a parked link.
async fn keep(mut keeping: Keeping) {
    let Keeping { place, config, end, parked, asked } = &mut keeping;
    let backend = Arc::clone(parked.stream.backend());
    let balancer = Arc::clone(&place.0);
    let mut told = false;
    let why = loop {
        let Parked { stream, inlet, out, sessions, .. } = parked;
        let turns = async {
            retain_running(&backend, sessions, config.timeouts.locate).await;
            if !std::mem::replace(&mut told, true) && !sessions.is_empty() {
                tracing::info!(backend = %backend.name(), sessions = sessions.all.len(), "a vanished client's turns go on");
            }
            while !sessions.is_empty() {
                tokio::time::sleep(INTERVAL).await;
                retain_running(&backend, sessions, config.timeouts.locate).await;
            }
        };
        let handover = tokio::select! {
            () = turns => break "no turn goes on",
            () = end.as_mut() => break "timeouts.linger is over",
            () = balancer.shutdown.begun() => break "the balancer stops",
            _ = poll_fn(|cx| drain(stream, inlet, out, None, cx)) => break "the backend closed it",
            handover = next(asked) => handover,
        };
        hand_over(&balancer, config, end, parked, handover).await;
        if parked.sessions.is_empty() {
            break "its sessions have been handed over";
        }
    };
    tracing::info!(backend = %backend.name(), end = why, "a parked connection is closed");
}

/// The next request to leave one of the link's sessions.
async fn next(asked: &mut Option<Registered>) -> Handover {
    match asked {
        Some(asked) => match asked.next().await {
            Some(handover) => handover,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Leaves a session to the keeper, who is parked in this link's place: the next client can register what this one had.
async fn hand_over(
    balancer: &Arc<Balancer>,
    config: &Arc<Config>,
    end: &Sleep,
    parked: &mut Parked,
    handover: Handover,
) {
    let Handover { session, keeper, done } = handover;
    let at = parked.sessions.position(&session);
    // The last one leaves its place to the keeper: for a moment there is one more.
    let max = if parked.sessions.all.len() == 1 { None } else { config.limits.parked };
    let (Some(at), Some(place)) = (at, Place::take(balancer, max)) else {
        drop(done.send(keeper));
        return;
    };
    // runtime 1.0.85 keeps the tools of a connection that detaches, and the CLI those of one that does not: so the link gives
    // up its tools first and detaches then.
    for (method, params) in [
        ("session.resume", json!({ "sessionId": session.as_str(), "disableResume": true, "tools": [] })),
        ("session.detach", json!({ "sessionId": session.as_str() })),
    ] {
        let Parked { stream, inlet, out, .. } = &mut *parked;
        let request = json!({ "jsonrpc": "2.0", "id": LEAVES, "method": method, "params": params });
        out.push(reply::frame(request.to_string().as_bytes()));
        let answered = poll_fn(|cx| drain(stream, inlet, out, Some(LEAVES), cx));
        if !matches!(tokio::time::timeout(config.timeouts.connect, answered).await, Ok(Ok(()))) {
            tracing::debug!(%session, method, "a parked link was not answered");
            break;
        }
    }
    let (session, attachment) = parked.sessions.take(at);
    if let Some(Keeper { stream, unread }) = keeper {
        tracing::info!(%session, backend = %stream.backend().name(), "somebody comes back to a vanished client's session");
        let account = balancer.memory.account();
        let inlet = Inlet::new(By::Backend, unread, account.charge());
        let out = Queue::new(&account);
        let sessions = ParkedSessions::new(&account, vec![(session, attachment)]);
        let parked = Parked { stream, inlet, out, sessions };
        let end = Box::pin(tokio::time::sleep_until(end.deadline()));
        start(Keeping { place, config: Arc::clone(config), end, parked, asked: None });
    }
    drop(done.send(None));
}

/// Lets go of sessions in which no turn goes on, and of those another holder wants to move. They are asked for few at a
/// time, so that clients that leave at once take turns. One that nothing is said of in time stays, unless the backend
/// cannot be asked.
async fn retain_running(backend: &Backend, sessions: &mut ParkedSessions, patience: Duration) {
    sessions.retain(|(_, attachment)| attachment.as_ref().is_none_or(|attachment| !attachment.is_leaving()));
    let mut go_on = Vec::with_capacity(sessions.all.len());
    for some in sessions.all.chunks(TOGETHER_MAX) {
        let asked = some.iter().map(|(session, _)| backend.ask_in_turn(Question::Live(session), patience));
        go_on.extend(join_all(asked).await.iter().map(is_running));
    }
    let askable = backend.is_up() && !backend.standing().borrow().mute;
    let mut go_on = go_on.into_iter();
    sessions.retain(|_| go_on.next().flatten().unwrap_or(askable));
}

/// `None`: the server has not said.
const fn is_running(said: &Said) -> Option<bool> {
    match said {
        Said::Live { processing } => Some(*processing),
        Said::Not => Some(false),
        Said::Stored(_) | Said::Nothing => None,
    }
}

/// Reads and drops what the backend sends, and refuses what it asks; ready when it has nothing more to say, or has
/// answered the request with this id.
fn drain(
    stream: &mut Stream,
    inlet: &mut Inlet,
    out: &mut Queue,
    awaited: Option<&str>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    loop {
        if let Poll::Ready(Err(error)) = out.poll_flush(stream, cx) {
            return Poll::Ready(Err(error));
        }
        match inlet.next_envelope() {
            Ok(Some(envelope)) => {
                if let (Some(_), Some(id)) = (&envelope.method, &envelope.id) {
                    out.push(reply::client_gone(id));
                }
                if let (None, Some(id), Some(awaited)) = (&envelope.method, &envelope.id, awaited)
                    && id.raw().strip_prefix(b"\"").and_then(|id| id.strip_suffix(b"\""))
                        == Some(awaited.as_bytes())
                {
                    return Poll::Ready(Ok(()));
                }
                if out.len() > QUEUE_BYTES_MAX {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                continue;
            }
            Ok(None) => {}
            Err(fault) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault))),
        }
        inlet.settle();
        match inlet.poll_fill(stream, cx, READ_BYTES_MAX) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::net::tests::plain_pair;
    use crate::runtime::account::Budget;

    #[test]
    fn sessions_of_a_parked_link_are_counted_until_they_go() {
        let account = Budget::new(prometheus::IntGauge::new("g", "g").unwrap(), 0, None).account();
        let all = (0..100).map(|n| (SessionId::new(&format!("{n:0>200}")), None)).collect();
        let mut sessions = ParkedSessions::new(&account, all);
        let each = sessions.charge.bytes() / 100;
        assert!(each > 200 + SESSION_BYTES, "{each} bytes");
        let at = sessions.position(&SessionId::new(&format!("{:0>200}", 7))).unwrap();
        drop(sessions.take(at));
        assert_eq!(sessions.charge.bytes(), 99 * each);
        sessions.retain(|(session, _)| session.as_str().ends_with('3'));
        assert_eq!(sessions.charge.bytes(), 10 * each);
    }

    #[tokio::test]
    async fn what_a_server_says_to_nobody_is_not_held_however_long_it_is() {
        let (near, mut server) = plain_pair().await;
        let mut stream = Stream::Plain(near);
        let account = Budget::for_tests(0, None).account();
        let mut inlet = Inlet::new(By::Backend, BytesMut::new(), account.charge());
        let mut out = Queue::new(&account);
        let answer = format!(r#"{{"jsonrpc":"2.0","result":"{}","id":1}}"#, "x".repeat(6 << 20));
        let asks = br#"{"jsonrpc":"2.0","id":7,"method":"tool.call"}"#;
        let serving = async {
            server.write_all(&reply::frame(answer.as_bytes())).await.unwrap();
            server.write_all(&reply::frame(asks)).await.unwrap();
            let mut told = [0; 1000];
            let bytes = server.read(&mut told).await.unwrap();
            String::from_utf8(told[..bytes].to_vec()).unwrap()
        };
        let mut most = 0;
        let draining = poll_fn(|cx| {
            let drained = drain(&mut stream, &mut inlet, &mut out, None, cx);
            most = most.max(inlet.held());
            drained
        });
        let told = tokio::select! {
            told = serving => told,
            drained = draining => panic!("the link was given up: {drained:?}"),
        };
        assert!(told.contains(r#""id":7,"error""#), "{told}");
        assert!(most <= 1000, "{most} bytes were held");
    }
}
