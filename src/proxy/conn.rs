//! One connection, from accept to close, on one page.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::arrive::admit::Admitted;
use super::arrive::{Arrived, Incoming, arrive};
use super::inlet::Inlet;
use super::opening::Opening;
use super::opening::rehome::Opened;
use super::park::{Parked, ParkedSessions, park};
use super::queue::Queue;
use super::relay::Relay;
use super::relay::direction::{Direction, Tally};
use super::relay::ending::Ending;
use super::relay::tap::Rest;
use super::relay::tap::{Birth, Guard, Walk};
use super::switch::switch;
use crate::balancer::Balancer;
use crate::close::{At, By, Close};
use crate::config::{Listener, Routing};
use crate::fleet::Leased;
use crate::link::Link;
use crate::metrics::Record;
use crate::net::{Stream, close_in_order};
use crate::place::{Placed, place, whole};
use crate::runtime::account::Held;
use crate::runtime::stop_flag::StopFlag;
use crate::session::{Adopted, Attachment, Subscriber};
use crate::wire::{Id, Named, SessionId};

/// A connection's life, for as long as it has its place. Its account is settled however this ends.
pub fn connection(
    balancer: Arc<Balancer>,
    client: Stream,
    mut record: Record,
    place: Admitted,
) -> impl Future<Output = ()> + Send {
    // Ten thousand of these wait at a time. A future keeps the room of what it was made with to its end, and the client's
    // socket moves on.
    let client = Box::new(client);
    async move {
        record.reached(At::Opening);
        // An opening is large and short, a relay small and long: the one must not make room in the other's task.
        let opening = async {
            let _counted = Counted::new(&balancer.metrics.openings_active);
            home(&balancer, Opening::new(&balancer, place.listener(), &record, *client)).await
        };
        let carried = match Box::pin(opening).await {
            Ok(homed) => {
                let Homed { session, placed, .. } = &*homed;
                record.placed(session.clone(), placed.backend.name(), placed.reason.label());
                carry(&balancer, homed, &record)
            }
            Err(close) => {
                drop(place);
                return record.settle(close);
            }
        };
        let close = carried.await;
        // Whoever is told that there is room finds it.
        drop(place);
        record.settle(close);
    }
}

/// The life of a connection whose every frame goes by its own session.
#[expect(clippy::manual_async_fn, reason = "an async fn keeps its arguments twice, ten thousand times")]
pub fn switched(
    balancer: Arc<Balancer>,
    client: Stream,
    mut record: Record,
    place: Admitted,
) -> impl Future<Output = ()> + Send {
    async move {
        let close = switch(&balancer, place.listener(), client, &mut record).await;
        drop(place);
        record.settle(close);
    }
}

/// The short life of a connection over a limit: its first request is answered.
async fn turn_away(
    balancer: Arc<Balancer>,
    listener: Arc<Listener>,
    client: Stream,
    record: Record,
    limit: &'static str,
) {
    let close = {
        let mut opening = Opening::new(&balancer, &listener, &record, client);
        let close = opening.turn_away(limit).await;
        close_in_order(opening.into_client()).await;
        Close { at: At::Accept, ..close }
    };
    record.settle(close);
}

/// A connection that has a PROXY header or a TLS handshake to come before its client's own bytes.
pub async fn arriving(
    balancer: Arc<Balancer>,
    listener: Arc<Listener>,
    incoming: Incoming,
    mut record: Record,
) {
    let Arrived { stream, place } = match arrive(&balancer, &listener, incoming, &mut record).await {
        Ok(arrived) => arrived,
        Err(close) => return record.settle(close),
    };
    let routing = listener.routing;
    // Boxed: what is still to come must not make room in a task that may wait for a handshake.
    match (place, routing) {
        (Err(limit), _) => Box::pin(turn_away(balancer, listener, stream, record, limit)).await,
        (Ok(place), Routing::Session) => Box::pin(switched(balancer, stream, record, place)).await,
        (Ok(place), Routing::Connection) => {
            Box::pin(connection(balancer, stream, record, place)).await;
        }
    }
}

/// A connection that is to be carried: boxed, so that it takes no room in the task that carries it.
struct Homed {
    opened: Opened,
    placed: Placed,
    session: Option<SessionId>,
    /// The request whose answer will name the session.
    born: Option<Id>,
}

/// What is kept of it for as long as it is carried.
struct Ends {
    client: Stream,
    backend: Leased,
    /// Boxed: an allocation of its size and a task without it take less than a task with room for it.
    owned: OnceLock<Box<Attachment>>,
    /// Raised when the session must leave its backend.
    stop_flag: Arc<StopFlag>,
}

/// What it begins with: boxed, because it is gone as soon as it has begun.
struct Start {
    unsent: Held<Bytes>,
    rest: Option<Box<Rest>>,
    unread: Bytes,
    midway: usize,
    born: Option<Id>,
}

impl Homed {
    /// Parts what lasts from what does not.
    fn apart(self: Box<Self>) -> (Ends, Box<Start>) {
        let Self { opened: Opened { client, unsent, rest, link, midway }, placed, born, .. } = *self;
        let Link { stream, unread } = link;
        let stop_flag: Arc<StopFlag> = Arc::default();
        if let Some(attachment) = &placed.attachment {
            attachment.subscribe(Subscriber::Connection(Arc::clone(&stop_flag)));
        }
        let owned = placed.attachment.map(Box::new).map_or_else(OnceLock::new, OnceLock::from);
        let start = Start { unsent, rest, unread: unread.freeze(), midway, born };
        (Ends { client, backend: stream, owned, stop_flag }, Box::new(start))
    }
}

/// The opening and the placement: what the connection is to carry, and where.
async fn home(balancer: &Balancer, mut opening: Opening<'_>) -> Result<Box<Homed>, Close> {
    let session = match opening.until_session().await {
        Ok(session) => session,
        Err(close) => {
            close_in_order(opening.into_client()).await;
            return Err(close);
        }
    };
    let asking = opening.count_asking();
    let placing = async {
        if let (true, Named::Session(id)) = (session.frame.envelope.may_mean_another(), &session.named) {
            whole(balancer, id).await?;
        }
        place(balancer, &opening.want(&session)).await
    };
    let placing = opening.unless_closing(placing).await;
    drop(asking);
    let mut placed = match placing {
        Ok(placed) => placed,
        Err(refused) => {
            let close = opening.refuse(&refused, session.frame.envelope.id.as_ref()).await;
            close_in_order(opening.into_client()).await;
            return Err(Close { at: At::Place, ..close });
        }
    };
    let envelope = &session.frame.envelope;
    let born = match session.named {
        Named::Born | Named::Unsaid => envelope.id.clone(),
        _ => None,
    };
    let id = match &session.named {
        Named::Session(id) | Named::Untracked(id) => Some(id.clone()),
        Named::Born | Named::Nothing | Named::Unsaid | Named::Two => None,
    };
    match opening.settle(session, placed.opened.take().map(|opened| opened.link)).await {
        Ok(opened) => Ok(Box::new(Homed { opened, placed, session: id, born })),
        Err((client, close)) => {
            close_in_order(client).await;
            Err(close)
        }
    }
}

/// The relay, and what is kept of it where turns outlive their client.
fn carry<'a>(
    balancer: &'a Arc<Balancer>,
    homed: Box<Homed>,
    record: &'a Record,
) -> impl Future<Output = Close> + Send + 'a {
    let (mut ends, start) = homed.apart();
    let lingers = balancer.now().config.timeouts.linger.is_some();
    let mut walks = lingers.then(|| Box::new((Walk::default(), Walk::from(start.midway))));
    async move {
        let close = relay(balancer, &mut ends, start, walks.as_deref_mut(), record).await;
        if let Some(walks) = walks
            && close.by == By::Client
            && walks.0.is_between()
            && !walks.1.is_lost()
        {
            let Ends { backend: stream, owned, .. } = ends;
            let id = record.session().or_else(|| owned.get().map(|attachment| attachment.session())).cloned();
            let attachment = owned.into_inner().map(|attachment| *attachment);
            let account = balancer.memory.account();
            let sessions = ParkedSessions::new(&account, id.map(|id| (id, attachment)).into_iter().collect());
            let inlet = Inlet::resumed(By::Backend, walks.1, account.charge());
            park(balancer, Parked { stream, inlet, out: Queue::new(&account), sessions });
        }
        close
    }
}

/// The relay of a connection, with whatever looks at its bytes and whatever may end it early.
#[expect(
    clippy::boxed_local,
    reason = "unboxed by whoever calls this, it would have room in the task to the end"
)]
fn relay<'a>(
    balancer: &'a Balancer,
    ends: &'a mut Ends,
    start: Box<Start>,
    walks: Option<&'a mut (Walk, Walk)>,
    record: &'a Record,
) -> Relay<'a, Ending<'a>> {
    let Ends { client, backend, owned, stop_flag } = ends;
    let (stream, backend) = backend.apart();
    let (owned, stop_flag): (&OnceLock<Box<Attachment>>, &Arc<StopFlag>) = (owned, stop_flag);
    let Start { unsent, rest, unread, midway, born } = *start;
    let lingers = walks.is_some();
    let mut up = Direction::new(By::Client, unsent);
    let mut down = Direction::new(By::Backend, unread);
    if let Some((walk_up, walk_down)) = walks {
        up.tap(walk_up);
        down.tap(walk_down);
    }
    if let Some(rest) = rest {
        // What is at hand has been looked at already.
        up.tap_rest(Guard(rest));
    }
    if let Some(request) = born {
        let learned = |id: &SessionId| {
            match balancer.directory.adopt(id, backend) {
                Adopted::Held(attachment) => {
                    attachment.subscribe(Subscriber::Connection(Arc::clone(stop_flag)));
                    // The answer comes once, so this is the first hold.
                    drop(owned.set(Box::new(attachment)));
                }
                Adopted::Claimed => {}
                Adopted::Elsewhere(owner) => {
                    tracing::warn!(session = %id, backend = %backend.name(), owner = %owner.name(), "a session was opened that is live elsewhere");
                    // With its only connection the second copy ends.
                    stop_flag.set();
                }
            }
        };
        down.tap(Birth::new(request, midway, learned));
    }
    let timeouts = &balancer.now().config.timeouts;
    let tally = Tally::new(record, backend);
    let ending = Ending::new(balancer, record, backend, stop_flag);
    Relay::new((client, up), (stream, down), tally, owned, timeouts, lingers, ending)
}

/// One more while it lives.
struct Counted<'a>(&'a prometheus::IntGauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand connections idle here: what their tasks hold is what they cost.
    #[test]
    fn a_connection_is_a_small_task() {
        fn bytes<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let (connection, switched) = (bytes(connection), bytes(switched));
        // Each of two sockets takes more where debug assertions are on.
        let in_debug = if cfg!(debug_assertions) { 2 * 8 } else { 0 };
        // 112 bytes are put around it, and all is rounded up to the next 128.
        assert!(connection <= 528 + in_debug, "{connection} bytes");
        assert!(switched <= 1280, "{switched} bytes");
    }
}
