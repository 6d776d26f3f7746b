//! Accepting: one loop per listening socket.
//!
//! A failed accept neither ends the loop nor spins it: when descriptors run out, the loop pauses. When it is told to
//! stop, the connections that the kernel had queued already are served, for their clients were never refused.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::admit::Admission;
use super::conn::{connection, switched, turn_away};
use crate::balancer::Balancer;
use crate::close::{At, By, Close, Why};
use crate::config::{Listener, Routing};
use crate::metrics::Record;
use crate::net;

/// After an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// Clients over a limit that are told so at the same time; further ones are closed without a word.
const TURNED_AWAY_MAX: usize = 256;

/// What all listeners of a process share.
#[derive(Debug)]
pub struct Door {
    admission: Arc<Admission>,
    turned_away: Arc<Semaphore>,
}

impl Default for Door {
    fn default() -> Self {
        Self { admission: Arc::default(), turned_away: Arc::new(Semaphore::new(TURNED_AWAY_MAX)) }
    }
}

/// Accepts until `stop`, then empties the queue.
pub async fn accept(
    balancer: Arc<Balancer>,
    door: Arc<Door>,
    socket: TcpListener,
    policy: impl Fn() -> Arc<Listener>,
    stop: CancellationToken,
) {
    let label: Arc<str> = policy().address.to_string().into();
    let mut failing = false;
    while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
        match accepted {
            Ok((stream, client)) => {
                failing = false;
                admit(&balancer, &door, &label, policy(), stream, client);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(listener = %label, %error, "accepting is paused");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    // Asked without the runtime, which may not have heard yet of what waits here and lets a task take only so much at
    // a time: whatever is left when the socket is closed is reset.
    let Ok(socket) = socket.into_std() else { return };
    loop {
        match socket.accept().and_then(|(stream, client)| Ok((asynchronous(stream)?, client))) {
            Ok((stream, client)) => admit(&balancer, &door, &label, policy(), stream, client),
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => return,
        }
    }
}

fn asynchronous(stream: std::net::TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

fn admit(
    balancer: &Arc<Balancer>,
    door: &Door,
    label: &Arc<str>,
    listener: Arc<Listener>,
    stream: TcpStream,
    client: SocketAddr,
) {
    let record = Record::open(&balancer.metrics, label, client);
    if let Err(error) = net::prepare(&stream) {
        tracing::debug!(%error, "a client was gone before it was served");
    }
    let place = door.admission.admit(client.ip(), &balancer.now().config.limits);
    let balancer = Arc::clone(balancer);
    let tasks = balancer.tasks.clone();
    match place {
        // Two kinds of tasks, so that neither is as large as the other.
        Ok(place) if listener.routing == Routing::Session => drop(tasks.spawn(async move {
            switched(balancer, listener, stream, record).await;
            drop(place);
        })),
        Ok(place) => drop(tasks.spawn(async move {
            connection(balancer, listener, stream, record).await;
            drop(place);
        })),
        Err(limit) => {
            if let Ok(told) = Arc::clone(&door.turned_away).try_acquire_owned() {
                drop(tasks.spawn(async move {
                    turn_away(balancer, listener, stream, record, limit).await;
                    drop(told);
                }));
            } else {
                record.settle(Close::new(By::Balancer, At::Accept, Why::Limit));
            }
        }
    }
}

/// Whether an accept failed because of the one connection it was for.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
