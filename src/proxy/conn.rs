//! One connection, from accept to close, on one page.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::SetOnce;

use super::opening::{Opening, Session};
use super::rehome::Opened;
use super::relay::{Direction, relay};
use super::switch::switch;
use super::tap::{Birth, Guard, Tap};
use crate::balancer::Balancer;
use crate::close::{At, Close, Why};
use crate::config::{Listener, OnDown, Routing};
use crate::fleet::{Backend, Health, Hold};
use crate::metrics::Record;
use crate::place::{Placed, place};
use crate::wire::{Named, SessionId};

/// How long a client that has been told why may take to close its side, and what it may still send.
const FAREWELL: Duration = Duration::from_secs(2);
const FAREWELL_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A connection's life. Its account is settled however this ends.
pub async fn connection(
    balancer: Arc<Balancer>,
    listener: Arc<Listener>,
    client: TcpStream,
    mut record: Record,
) {
    let close = match listener.routing {
        Routing::Connection => live(&balancer, &listener, client, &mut record).await,
        Routing::Session => switch(&balancer, &listener, client, &mut record).await,
    };
    record.settle(close);
}

/// The short life of a connection over a limit: its first request is answered.
pub async fn turn_away(
    balancer: Arc<Balancer>,
    listener: Arc<Listener>,
    client: TcpStream,
    record: Record,
    limit: &'static str,
) {
    let close = {
        let mut opening = Opening::new(&balancer, &listener, &record, client);
        let close = opening.turn_away(limit).await;
        farewell(opening.into_client(), Close { at: At::Accept, ..close }).await
    };
    record.settle(close);
}

async fn live(
    balancer: &Arc<Balancer>,
    listener: &Listener,
    client: TcpStream,
    record: &mut Record,
) -> Close {
    record.reached(At::Opening);
    let homed = {
        let _counted = Counted::new(&balancer.metrics.openings_active);
        home(balancer, Opening::new(balancer, listener, record, client)).await
    };
    let (opened, placed, session) = match homed {
        Ok(homed) => homed,
        Err(close) => return close,
    };
    record.placed(session.id(), placed.backend.name(), placed.reason.label());
    carry(balancer, opened, placed, session, record).await
}

/// The opening and the placement: what the connection is to carry, and where.
async fn home(balancer: &Balancer, mut opening: Opening<'_>) -> Result<(Opened, Placed, Wanted), Close> {
    let session = match opening.until_session().await {
        Ok(session) => session,
        Err(close) => return Err(farewell(opening.into_client(), close).await),
    };
    let mut placed = match place(balancer, &opening.want(&session)).await {
        Ok(placed) => placed,
        Err(refused) => {
            let close = opening.refuse(&refused, session.frame.envelope.id.as_ref()).await;
            return Err(farewell(opening.into_client(), Close { at: At::Place, ..close }).await);
        }
    };
    let wanted = Wanted::new(&session);
    match opening.settle(session, placed.link.take()).await {
        Ok(opened) => Ok((opened, placed, wanted)),
        Err((client, close)) => Err(farewell(client, close).await),
    }
}

/// The relay, with whatever may end it early.
async fn carry(
    balancer: &Arc<Balancer>,
    opened: Opened,
    placed: Placed,
    session: Wanted,
    record: &Record,
) -> Close {
    let Opened { client, unsent, rest, link, midway } = opened;
    let Placed { backend, hold, .. } = placed;
    let config = Arc::clone(&balancer.now().config);
    let owned: SetOnce<Hold> = hold.map_or_else(SetOnce::new, SetOnce::from);
    let born = |id: &SessionId| {
        if let Some(hold) = balancer.owners.adopt(id, &backend) {
            // The answer comes once, so this is the first hold.
            drop(owned.set(hold));
        }
    };
    let birth = session.born.map(|request| -> Box<dyn Tap + '_> {
        let mut birth = Birth::new(request, midway, born);
        // A frame may have begun in what is at hand, which the relay sends without looking. The answer is not there:
        // the request has not been sent.
        birth.look(&link.unread);
        Box::new(birth)
    });
    let series = backend.series();
    let up = Direction {
        first: unsent,
        tap: rest.map(|rest| -> Box<dyn Tap> { Box::new(Guard(rest)) }),
        count: &|bytes| {
            record.add_to_backend(bytes);
            series.bytes_to_backend.inc_by(bytes);
        },
    };
    let down = Direction {
        first: link.unread.freeze(),
        tap: birth,
        count: &|bytes| {
            record.add_to_client(bytes);
            series.bytes_to_client.inc_by(bytes);
        },
    };
    let stop = async {
        tokio::select! {
            () = async { owned.wait().await.alarm().cancelled().await } => Why::Evicted,
            () = balancer.closing.cancelled() => Why::Draining,
            () = down_and_out(&backend, config.placement.on_down) => Why::Down,
        }
    };
    relay(client, link.stream, up, down, &config.timeouts, stop).await
}

/// Returns when the backend is down and that is to end its connections.
async fn down_and_out(backend: &Backend, on_down: OnDown) {
    if on_down == OnDown::Close {
        let mut standing = backend.standing();
        if standing.wait_for(|standing| standing.health == Health::Down).await.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

/// Closes in order: FIN, then whatever the client still sends is read for a moment, because unread bytes would turn
/// the FIN into an RST that destroys the answer on its way.
async fn farewell(mut client: TcpStream, close: Close) -> Close {
    let parting = async {
        client.shutdown().await?;
        tokio::io::copy(&mut (&mut client).take(FAREWELL_BYTES_MAX), &mut tokio::io::sink()).await
    };
    if !matches!(tokio::time::timeout(FAREWELL, parting).await, Ok(Ok(_))) {
        tracing::debug!("a client did not close its side in time");
    }
    close
}

/// What the relay needs to know of the session.
struct Wanted {
    named: Named,
    born: Option<crate::wire::Id>,
}

impl Wanted {
    fn new(session: &Session) -> Self {
        let born = (session.named == Named::Born).then(|| session.frame.envelope.id.clone()).flatten();
        Self { named: session.named.clone(), born }
    }

    fn id(&self) -> Option<SessionId> {
        match &self.named {
            Named::Session(id) | Named::Untracked(id) => Some(id.clone()),
            Named::Born | Named::Nothing => None,
        }
    }
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
