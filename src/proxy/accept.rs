//! Accepting: a loop per listening socket on each of a few workers.
//!
//! A failed accept neither ends the loop nor spins it: when descriptors run out, the loop pauses. When it is told to
//! stop, the connections that the kernel had queued already are served, for their clients were never refused.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admit::Admission;
use super::conn::{connection, switched, turn_away};
use crate::balancer::Balancer;
use crate::close::{At, By, Close, Why};
use crate::config::{Listener, Routing};
use crate::metrics::Record;
use crate::net::Stream;
use crate::workers::Workers;

/// After an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// Workers that accept from one socket: each is woken for every connection, so on a large machine not all should be.
const ACCEPTORS_MAX: usize = 4;
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

/// A listening socket, as several workers accept from it: a connection that need not be handed over costs less.
#[derive(Debug)]
pub struct Gate {
    /// One socket under several numbers: there is one queue, which none of them takes along when it closes.
    sockets: Vec<(TcpListener, Handle)>,
}

impl Gate {
    /// Everything that may fail; nothing is accepted yet.
    ///
    /// # Errors
    /// The kernel has no room to watch another socket.
    pub fn new(socket: &std::net::TcpListener, workers: &Workers) -> io::Result<Self> {
        let watched = |worker: &Handle| {
            let socket = socket.try_clone()?;
            let _entered = worker.enter();
            Ok((TcpListener::from_std(socket)?, worker.clone()))
        };
        let workers = workers.all().iter().take(ACCEPTORS_MAX);
        Ok(Self { sockets: workers.map(watched).collect::<io::Result<_>>()? })
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let (socket, _) = self.sockets.first().ok_or(io::ErrorKind::NotConnected)?;
        socket.local_addr()
    }

    /// Accepts until `stop`, then empties the queue. What is returned ends when that is done.
    pub fn open(
        self,
        balancer: &Arc<Balancer>,
        door: &Arc<Door>,
        policy: &Arc<ArcSwap<Listener>>,
        stop: &CancellationToken,
    ) -> TaskTracker {
        let tasks = TaskTracker::new();
        for (socket, worker) in self.sockets {
            let (balancer, door, policy) = (Arc::clone(balancer), Arc::clone(door), Arc::clone(policy));
            tasks.spawn_on(accept(balancer, door, socket, policy, stop.clone()), &worker);
        }
        tasks.close();
        tasks
    }
}

async fn accept(
    balancer: Arc<Balancer>,
    door: Arc<Door>,
    socket: TcpListener,
    policy: Arc<ArcSwap<Listener>>,
    stop: CancellationToken,
) {
    let label: Arc<str> = policy.load().address.to_string().into();
    let mut failing = false;
    while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
        match accepted {
            Ok((stream, client)) => {
                failing = false;
                admit(&balancer, &door, &label, policy.load_full(), stream, client);
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
            Ok((stream, client)) => admit(&balancer, &door, &label, policy.load_full(), stream, client),
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => return,
        }
    }
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
    let worker = balancer.workers.here_or_less_busy();
    let stream = match hand_over(stream, &worker) {
        Ok(stream) => Stream::Plain(stream),
        Err(error) => {
            tracing::debug!(%error, "a client was gone before it was served");
            return record.settle(Close::io(By::Client, At::Accept, &error));
        }
    };
    let place = door.admission.admit(client.ip(), &balancer.now().config.limits);
    let balancer = Arc::clone(balancer);
    let tasks = balancer.tasks.clone();
    let task = match place {
        // Two kinds of tasks, so that neither is as large as the other.
        Ok(place) if listener.routing == Routing::Session => tasks.spawn_on(
            async move {
                switched(balancer, listener, stream, record).await;
                drop(place);
            },
            &worker,
        ),
        Ok(place) => tasks.spawn_on(
            async move {
                connection(balancer, listener, stream, record).await;
                drop(place);
            },
            &worker,
        ),
        Err(limit) => {
            if let Ok(told) = Arc::clone(&door.turned_away).try_acquire_owned() {
                tasks.spawn_on(
                    async move {
                        turn_away(balancer, listener, stream, record, limit).await;
                        drop(told);
                    },
                    &worker,
                )
            } else {
                return record.settle(Close::new(By::Balancer, At::Accept, Why::Limit));
            }
        }
    };
    drop(task);
}

/// Hands a socket to a worker.
fn hand_over(stream: TcpStream, worker: &Handle) -> io::Result<TcpStream> {
    if worker.id() == Handle::current().id() {
        return Ok(stream);
    }
    let stream = stream.into_std()?;
    let _entered = worker.enter();
    TcpStream::from_std(stream)
}

fn asynchronous(stream: std::net::TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Whether an accept failed because of the one connection it was for.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
