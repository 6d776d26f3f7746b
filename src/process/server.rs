//! A server from its first socket to its last connection.
//!
//! Starting is reloading from empty. A reload is *prepare*, which may fail without a visible effect, then *commit*,
//! which cannot fail. Stopping is draining: nothing new is accepted, open connections go on, and at a deadline the rest
//! is closed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{successor, watch, watchdog};
use crate::api::admin;
use crate::config::Config;
use crate::control::{Reloader, StartFault, status_line};
use crate::upgrade::{Channel, StartedWith};

/// How long connections get to answer and close once they must.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A started server.
#[derive(Debug)]
pub struct Server {
    reloader: Arc<Reloader>,
    stop_watching: CancellationToken,
    stop_watchdog: CancellationToken,
}

impl Server {
    /// Binds every socket and puts `config` in force; the file at `path` is watched from now on.
    ///
    /// # Errors
    /// A socket that cannot be bound.
    pub async fn start(path: &Path, config: Config) -> Result<Self, StartFault> {
        let server = Self::prepare(path, config, StartedWith::default()).await?;
        server.reloader.open().await;
        Ok(server)
    }

    /// The same with what the process before has passed; nothing is accepted yet.
    pub(super) async fn prepare(
        path: &Path,
        config: Config,
        started_with: StartedWith,
    ) -> Result<Self, StartFault> {
        let reloader = Reloader::start(path, config, admin::pages, started_with).await?;
        let (stop_watching, stop_watchdog) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(watch::watch(Arc::clone(&reloader), stop_watching.clone()));
        tokio::spawn(watchdog::watchdog(Arc::clone(&reloader), stop_watchdog.clone()));
        Ok(Self { reloader, stop_watching, stop_watchdog })
    }

    /// What changes the server while it runs.
    pub fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
    }

    /// Accepts nothing more and waits for open connections: until the last has gone, `timeouts.drain` has
    /// passed, or `hurry` returns; then those that are left are answered and closed.
    pub async fn drain(self, hurry: impl Future<Output = ()>) {
        self.stop_watching.cancel();
        let balancer = self.reloader.balancer();
        let limit = balancer.now().config.timeouts.drain;
        balancer.draining.cancel();
        self.reloader.notifier().stopping(&status_line(balancer, 0));
        self.reloader.stop_listening().await;
        balancer.tasks.close();
        tracing::info!(connections = balancer.tasks.len(), "draining");
        tokio::select! {
            () = balancer.tasks.wait() => {}
            () = self.expire(limit) => tracing::warn!(connections = balancer.tasks.len(), "timeouts.drain is over"),
            () = hurry => tracing::warn!(connections = balancer.tasks.len(), "told not to wait"),
        }
        self.end().await;
    }

    /// The next process serves. Waits for open connections, and answers the next process's questions: until the last
    /// has gone, `timeouts.upgrade_drain` has passed, or `stop` returns; false = they are to be drained now.
    pub(super) async fn outlive(&self, channel: Channel, stop: impl Future<Output = ()>) -> bool {
        let balancer = self.reloader.balancer();
        let limit = balancer.now().config.timeouts.upgrade_drain;
        balancer.draining.cancel();
        self.reloader.give_away().await;
        balancer.tasks.close();
        let answering = tokio::spawn(successor::answer(Arc::clone(&self.reloader), channel));
        let over = tokio::select! {
            () = balancer.tasks.wait() => true,
            () = self.expire(limit) => {
                tracing::warn!(connections = balancer.tasks.len(), "timeouts.upgrade_drain is over");
                true
            }
            () = stop => false,
        };
        if over {
            answering.abort();
        }
        over
    }

    /// Returns when `limit` has passed; without one, never. Connections close in its last part, a few at a time.
    async fn expire(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        let balancer = self.reloader.balancer();
        let spread = balancer.now().config.timeouts.drain_spread.unwrap_or_default().min(limit);
        tokio::time::sleep(limit.saturating_sub(spread)).await;
        if !spread.is_zero() {
            let seconds = spread.as_secs_f64();
            tracing::info!(
                connections = balancer.tasks.len(),
                seconds,
                "connections are closed, a few at a time"
            );
            balancer.shutdown.begin(spread);
            tokio::time::sleep(spread).await;
        }
    }

    /// Closes the connections that are left, and ends every task.
    pub(super) async fn end(self) {
        let balancer = self.reloader.balancer();
        self.stop_watching.cancel();
        balancer.shutdown.at_once();
        if tokio::time::timeout(LAST_WORDS, balancer.tasks.wait()).await.is_err() {
            tracing::warn!(connections = balancer.tasks.len(), "connections are cut off");
        }
        self.stop_watchdog.cancel();
        balancer.workers.stopped().await;
        self.reloader.stop().await;
    }
}

impl Drop for Server {
    /// A server that is dropped without being drained ends at once.
    fn drop(&mut self) {
        self.stop_watching.cancel();
        self.stop_watchdog.cancel();
        self.reloader.balancer().workers.stop();
    }
}
