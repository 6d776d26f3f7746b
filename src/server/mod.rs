//! The running process: what starts it, changes it and ends it.
//!
//! Starting is reloading from empty. A reload is *prepare*, which may fail and is not seen, then *commit*, which cannot
//! fail. Stopping is draining: nothing new is accepted, what is there goes on, and the last word is a deadline's.

pub mod http;
pub mod outcome;
mod headline;
mod sockets;
pub mod reload;
mod discover;
mod members;
pub mod status;
mod guard;
mod page;
pub mod admin;
pub mod watch;
mod pulse;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

use headline::headline;

pub use http::Endpoint;
pub use outcome::{Applied, StartFault, Trouble, Unknown};
pub use reload::Reloader;

/// How long connections get to answer and close once they must.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A started server.
#[derive(Debug)]
pub struct Server {
    reloader: Arc<Reloader>,
    stop_watching: CancellationToken,
    stop_pulse: CancellationToken,
}

impl Server {
    /// Binds every socket and puts `config` in force; the file at `path` is watched from now on.
    ///
    /// # Errors
    /// A socket that cannot be bound.
    pub async fn start(path: &Path, config: Config) -> Result<Self, StartFault> {
        let reloader = Reloader::start(path, config, admin::pages).await?;
        let (stop_watching, stop_pulse) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(watch::watch(Arc::clone(&reloader), stop_watching.clone()));
        tokio::spawn(pulse::pulse(Arc::clone(&reloader), stop_pulse.clone()));
        Ok(Self { reloader, stop_watching, stop_pulse })
    }

    /// What changes it while it runs.
    pub fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
    }

    /// Accepts nothing more and waits for the connections that are there: until the last has gone, `timeouts.drain` has
    /// passed, or `hurry` returns; then those that are left are answered and closed.
    pub async fn drain(self, hurry: impl Future<Output = ()>) {
        self.stop_watching.cancel();
        let balancer = self.reloader.balancer();
        let limit = balancer.now().config.timeouts.drain;
        balancer.draining.cancel();
        self.reloader.notifier().stopping(&headline(balancer, 0));
        self.reloader.stop_listening().await;
        balancer.tasks.close();
        let deadline = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tracing::info!(connections = balancer.tasks.len(), "draining");
        tokio::select! {
            () = balancer.tasks.wait() => {}
            () = deadline => tracing::warn!(connections = balancer.tasks.len(), "timeouts.drain is over"),
            () = hurry => tracing::warn!(connections = balancer.tasks.len(), "told not to wait"),
        }
        balancer.closing.cancel();
        if tokio::time::timeout(LAST_WORDS, balancer.tasks.wait()).await.is_err() {
            tracing::warn!(connections = balancer.tasks.len(), "connections are cut off");
        }
        self.stop_pulse.cancel();
        balancer.workers.stopped().await;
        self.reloader.stop().await;
    }
}

impl Drop for Server {
    /// Whoever drops a server without draining it wants nothing to go on.
    fn drop(&mut self) {
        self.stop_watching.cancel();
        self.stop_pulse.cancel();
        self.reloader.balancer().workers.stop();
    }
}

/// Runs until a signal ends it.
///
/// # Errors
/// What kept it from starting.
pub async fn run(path: &Path, config: Config) -> Result<(), StartFault> {
    let mut hangup = signal(SignalKind::hangup()).map_err(StartFault::Signals)?;
    let mut stops = Stops::new().map_err(StartFault::Signals)?;
    let server = Server::start(path, config).await?;
    server.reloader().notifier().ready(&headline(server.reloader().balancer(), 0));
    loop {
        tokio::select! {
            _ = hangup.recv() => tokio::select! {
                reloaded = server.reloader().reload("SIGHUP") => drop(reloaded),
                () = stops.next() => break,
            },
            () = stops.next() => break,
        }
    }
    server.drain(stops.next()).await;
    tracing::info!("stopped");
    Ok(())
}

/// The signals that end the process.
#[derive(Debug)]
pub struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    /// Takes them from now on: they no longer end the process by themselves.
    ///
    /// # Errors
    /// The kernel has no room for another signal pipe.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
