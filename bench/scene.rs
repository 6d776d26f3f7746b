//! The scenes: what the clients of each do, and for how long.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::stats::{Unit, Work};
use crate::target::Kind;

/// Backends behind every balancer.
pub const BACKENDS: usize = 3;

/// Connections that are opened and closed at the same time.
const CHURNING: usize = 16;
/// Exchanges of the paced scene, by all its connections together.
const PACE_PER_SECOND: u64 = 8_000;
/// Bytes that one request of the stream scenes asks for.
const STREAM_BYTES: usize = 4 << 20;

/// One kind of work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    One,
    Turn,
    Turn512,
    Turn4000,
    Paced,
    StreamLarge,
    StreamSmall,
    Churn,
    Opening,
}

impl Scene {
    pub const ALL: [Self; 9] = [
        Self::One,
        Self::Turn,
        Self::Turn512,
        Self::Turn4000,
        Self::Paced,
        Self::StreamLarge,
        Self::StreamSmall,
        Self::Churn,
        Self::Opening,
    ];

    /// Its name on the command line and in the report.
    pub const fn word(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Turn => "turn",
            Self::Turn512 => "turn-512",
            Self::Turn4000 => "turn-4000",
            Self::Paced => "paced",
            Self::StreamLarge => "stream-64k",
            Self::StreamSmall => "stream-4k",
            Self::Churn => "churn",
            Self::Opening => "opening",
        }
    }

    /// A line about it.
    pub const fn what(self) -> &'static str {
        match self {
            Self::One => "1 pinned connection, 512 B request and answer, one after another",
            Self::Turn => "64 pinned connections, 512 B request and answer",
            Self::Turn512 => "512 pinned connections, 512 B request and answer",
            Self::Turn4000 => "4,000 pinned connections, 512 B request and answer",
            Self::Paced => {
                "64 pinned connections, 8,000 exchanges a second whatever the answers do (open loop)"
            }
            Self::StreamLarge => "4 pinned connections, 64 KiB frames from server to client",
            Self::StreamSmall => "16 pinned connections, 4 KiB frames from server to client",
            Self::Churn => "16 clients: open, first frame with a session, answer, close",
            Self::Opening => "16 clients: open, connect, session.create, answer, close",
        }
    }

    pub const fn unit(self) -> Unit {
        match self {
            Self::One | Self::Paced => Unit::Latency,
            Self::StreamLarge | Self::StreamSmall => Unit::Bytes,
            _ => Unit::Exchanges,
        }
    }

    /// Whether a target takes part.
    pub fn concerns(self, kind: Kind) -> bool {
        match kind {
            Kind::Located => self == Self::Opening,
            Kind::HaproxyHash => self == Self::Churn,
            Kind::Sealed => matches!(self, Self::Turn | Self::StreamLarge),
            _ => true,
        }
    }

    /// Does the work for about `time`. What is prepared before the clock starts costs processor time too, but little.
    pub fn run(self, target: SocketAddr, time: Duration) -> Work {
        match self {
            Self::One => exchanges(target, time, 1, true),
            Self::Turn => exchanges(target, time, 64, false),
            Self::Turn512 => exchanges(target, time, 512, false),
            Self::Turn4000 => exchanges(target, time, 4000, false),
            Self::Paced => paced(target, time, 64),
            Self::StreamLarge => streams(target, time, 4, 64 << 10),
            Self::StreamSmall => streams(target, time, 16, 4 << 10),
            Self::Churn => churn(target, time, false),
            Self::Opening => churn(target, time, true),
        }
    }
}

/// A thread for all clients of a round.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs clients at the same time, to the end of each.
fn together<F>(clients: impl IntoIterator<Item = F>) -> Work
where
    F: Future<Output = Work> + Send + 'static,
{
    runtime().block_on(async {
        let tasks: Vec<_> = clients.into_iter().map(tokio::spawn).collect();
        let mut all = Work::default();
        for task in tasks {
            let work = task.await.unwrap();
            all.done += work.done;
            all.latencies.extend(work.latencies);
        }
        all
    })
}

/// A closed loop: every client asks again as soon as it has its answer.
fn exchanges(target: SocketAddr, time: Duration, clients: usize, timed: bool) -> Work {
    let open = Gate::new(clients);
    together((0..clients).map(|_| {
        let open = Arc::clone(&open);
        async move {
            let mut client = Client::pinned(target).await;
            let until = open.pass().await + time;
            let mut work = Work::default();
            loop {
                let asked = Instant::now();
                if asked >= until {
                    return work;
                }
                client.send_turn().await;
                work.done += 1;
                if timed {
                    work.latencies.push(asked.elapsed());
                }
            }
        }
    }))
}

/// An open loop: every exchange has its time, and is late if the one before it was.
fn paced(target: SocketAddr, time: Duration, clients: usize) -> Work {
    let open = Gate::new(clients);
    let step =
        Duration::from_secs(1) * u32::try_from(clients).unwrap() / u32::try_from(PACE_PER_SECOND).unwrap();
    together((0..clients).map(|number| {
        let open = Arc::clone(&open);
        async move {
            let mut client = Client::pinned(target).await;
            let start = open.pass().await;
            let until = start + time;
            let mut due = start + step * u32::try_from(number).unwrap() / u32::try_from(clients).unwrap();
            let mut work = Work::default();
            while due < until {
                tokio::time::sleep_until(due.into()).await;
                // The timer is coarse: what it added is not the target's.
                let asked = Instant::now().min(due + Duration::from_millis(2));
                client.send_turn().await;
                work.done += 1;
                work.latencies.push(asked.elapsed());
                due += step;
            }
            work
        }
    }))
}

fn streams(target: SocketAddr, time: Duration, clients: usize, frame_bytes: usize) -> Work {
    let open = Gate::new(clients);
    together((0..clients).map(|_| {
        let open = Arc::clone(&open);
        async move {
            let mut client = Client::pinned(target).await;
            let until = open.pass().await + time;
            let mut work = Work::default();
            while Instant::now() < until {
                work.done += client.stream(STREAM_BYTES / frame_bytes, frame_bytes).await;
            }
            work
        }
    }))
}

fn churn(target: SocketAddr, time: Duration, greets: bool) -> Work {
    let until = Instant::now() + time;
    together((0..CHURNING).map(|_| async move {
        let mut work = Work::default();
        while Instant::now() < until {
            let mut client = Client::open(target).await;
            if greets {
                client.connect().await;
            }
            client.create().await;
            client.close().await;
            work.done += 1;
        }
        work
    }))
}

/// Where clients wait until all are there.
struct Gate {
    missing: AtomicU64,
    open: tokio::sync::Notify,
}

impl Gate {
    fn new(clients: usize) -> Arc<Self> {
        Arc::new(Self { missing: AtomicU64::new(clients as u64), open: tokio::sync::Notify::new() })
    }

    async fn pass(&self) -> Instant {
        let open = self.open.notified();
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.open.notify_waiters();
        } else {
            open.await;
        }
        Instant::now()
    }
}
