//! Accepting: a loop per listening socket on each of a few workers.
//!
//! `listener.accept_rate` is kept by leaving clients in the kernel's queue. A failed accept neither ends the loop nor
//! spins it: when descriptors run out, the loop pauses; before that, clients are refused. When it is told to stop, the
//! connections that the kernel had queued already are served, for their clients were never refused.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arrive::Incoming;
use super::arrive::admit::Admission;
use super::conn::{arriving, connection, switched};
use crate::balancer::Balancer;
use crate::close::{At, By, Close, Why};
use crate::config::{Listener, Routing, Timeouts};
use crate::metrics::Record;
use crate::net::{self, Stream};
use crate::runtime::descriptors::Purpose;
use crate::runtime::workers::Workers;

/// After an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// A failure that goes on, or comes back, is logged so often.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Of the connections of one second that `listener.accept_rate` allows, this part may come at once.
const BURST: u32 = 10;
/// Workers that accept from one socket: each is woken for every connection, so on a large machine not all should be.
const ACCEPTORS_MAX: usize = 4;
/// Clients over a limit that are told so at the same time; further ones are closed without a word.
const TURNED_AWAY_MAX: usize = 256;

/// What all listeners of a process share.
#[derive(Debug)]
pub struct AcceptShared {
    /// Nobody is let in before.
    pub open: CancellationToken,
    admission: Arc<Admission>,
    turned_away: Arc<Semaphore>,
}

impl Default for AcceptShared {
    fn default() -> Self {
        let open = CancellationToken::new();
        Self { open, admission: Arc::default(), turned_away: Arc::new(Semaphore::new(TURNED_AWAY_MAX)) }
    }
}

/// A listening socket, as several workers accept from it: a connection that need not be handed over costs less.
#[derive(Debug)]
pub struct ListenSocket {
    /// One socket under several numbers: there is one queue, which none of them takes along when it closes.
    sockets: Vec<(TcpListener, Handle)>,
}

impl ListenSocket {
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

    /// Another descriptor of the same socket, for a successor.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        let (socket, _) = self.sockets.first().ok_or(io::ErrorKind::NotConnected)?;
        socket.as_fd().try_clone_to_owned()
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let (socket, _) = self.sockets.first().ok_or(io::ErrorKind::NotConnected)?;
        socket.local_addr()
    }

    /// Accepts from when that is allowed until `stop`, then empties the queue. What is returned ends when that is done.
    pub fn open(
        self,
        balancer: &Arc<Balancer>,
        shared: &Arc<AcceptShared>,
        policy: &Arc<ArcSwap<Listener>>,
        stop: &CancellationToken,
    ) -> TaskTracker {
        let tasks = TaskTracker::new();
        let pace = Arc::new(Mutex::new(Pace::default()));
        for (socket, worker) in self.sockets {
            let (balancer, shared, policy) = (Arc::clone(balancer), Arc::clone(shared), Arc::clone(policy));
            let accepting = accept(balancer, shared, socket, policy, Arc::clone(&pace), stop.clone());
            tasks.spawn_on(accepting, &worker);
        }
        tasks.close();
        tasks
    }
}

async fn accept(
    balancer: Arc<Balancer>,
    shared: Arc<AcceptShared>,
    socket: TcpListener,
    policy: Arc<ArcSwap<Listener>>,
    pace: Arc<Mutex<Pace>>,
    stop: CancellationToken,
) {
    let label: Arc<str> = policy.load().address.to_string().into();
    // Told to stop before, it has let nobody in and leaves the queue to whoever holds the socket besides.
    if !shared.open.is_cancelled() && stop.run_until_cancelled(shared.open.cancelled()).await.is_none() {
        return;
    }
    let pauses = |why| balancer.metrics.accept_pauses.with_label_values(&[&*label, why]);
    let (too_fast, failed) = (pauses("rate"), pauses("failed"));
    let mut set = balancer.now().config.timeouts.clone();
    let mut told: Option<Instant> = None;
    while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
        match accepted {
            Ok((stream, client)) => {
                let timeouts = &balancer.now().config.timeouts;
                if *timeouts != set {
                    set = timeouts.clone();
                    inherit(&[SockRef::from(&socket), SockRef::from(&stream)], &set);
                }
                let rate = policy.load().accept_rate;
                let turn = pace.lock().unwrap_or_else(PoisonError::into_inner).next(rate, Instant::now());
                if let Some(turn) = turn {
                    too_fast.inc();
                    stop.run_until_cancelled(sleep_until(turn)).await;
                }
                admit(&balancer, &shared, &label, policy.load_full(), stream, client);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                failed.inc();
                if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
                    told = Some(Instant::now());
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
            Ok((stream, client)) => admit(&balancer, &shared, &label, policy.load_full(), stream, client),
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => return,
        }
    }
}

fn admit(
    balancer: &Arc<Balancer>,
    shared: &AcceptShared,
    label: &Arc<str>,
    listener: Arc<Listener>,
    stream: TcpStream,
    client: SocketAddr,
) {
    let record = Record::open(&balancer.metrics, label, client);
    let worker = balancer.workers.here_or_less_busy();
    let socket = match hand_over(stream, &worker) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(%error, "a client was gone before it was served");
            return record.settle(Close::io(By::Client, At::Accept, &error));
        }
    };
    // Behind a proxy, whose connection this is will be known only when the proxy has said so.
    let address = listener.proxy_protocol.is_none().then(|| client.ip());
    let place = if Purpose::Client.allows(&socket) {
        shared.admission.admit(address, &listener, &balancer.now().config.limits)
    } else {
        Err("RLIMIT_NOFILE is reached but for a reserve")
    };
    let proves = listener.tls.is_some() || listener.proxy_protocol.is_some();
    let balancer = Arc::clone(balancer);
    let tasks = balancer.tasks.clone();
    let task = match place {
        Ok(place) if proves => {
            let incoming = Incoming { socket, place: Ok(place) };
            tasks.spawn_on(arriving(balancer, listener, incoming, record), &worker)
        }
        // Two kinds of tasks, so that neither is as large as the other.
        Ok(place) if listener.routing == Routing::Session => {
            tasks.spawn_on(switched(balancer, Stream::Plain(socket), record, place), &worker)
        }
        Ok(place) => tasks.spawn_on(connection(balancer, Stream::Plain(socket), record, place), &worker),
        Err(limit) => {
            let told = Arc::clone(&shared.turned_away).try_acquire_owned().ok();
            let Some(told) = told.filter(|_| Purpose::Refusal.allows(&socket)) else {
                return record.settle(Close::new(By::Balancer, At::Accept, Why::Limit));
            };
            let incoming = Incoming { socket, place: Err(limit) };
            tasks.spawn_on(
                async move {
                    arriving(balancer, listener, incoming, record).await;
                    drop(told);
                },
                &worker,
            )
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

/// Sets a listener, which hands it on to all it accepts, and what it has accepted already.
fn inherit(sockets: &[SockRef<'_>], timeouts: &Timeouts) {
    for socket in sockets {
        if let Err(error) = net::prepare(socket, timeouts) {
            tracing::debug!(%error, "a socket could not be set");
        }
    }
}

/// When the next connection may be taken.
#[derive(Debug, Default)]
struct Pace(Option<Instant>);

impl Pace {
    /// Takes a turn; when it comes, if not at once.
    fn next(&mut self, rate: Option<u32>, now: Instant) -> Option<Instant> {
        let gap = Duration::from_secs(1).checked_div(rate?)?;
        let burst = rate?.checked_div(BURST)?.max(1);
        let earliest = now.checked_sub(gap.saturating_mul(burst));
        let turn = self.0.max(earliest).unwrap_or(now).checked_add(gap)?;
        self.0 = Some(turn);
        (turn > now).then_some(turn)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_a_second_may_come_at_once_and_the_rest_at_its_rate() {
        let mut pace = Pace::default();
        let begun = Instant::now();
        assert_eq!(pace.next(None, begun), None);
        let mut now = begun;
        for _ in 0..200 {
            now = pace.next(Some(100), now).unwrap_or(now);
        }
        assert_eq!(now - begun, Duration::from_millis(1900), "10 at once, 190 at 100 a second");
        now += Duration::from_secs(5);
        let at_once = (0..50).filter(|_| pace.next(Some(100), now).is_none()).count();
        assert_eq!(at_once, 10, "what was not used is not saved up");
    }
}
