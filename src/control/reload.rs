//! Starting, and reloading: the next snapshot, prepared and committed. Starting is reloading from empty.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::forget::forget_in_time;
use super::members::Fleet;
use super::outcome::{Applied, Last, StartFault, Trouble, warnings};
use super::reloader::{Pages, Reloader};
use super::restart::restart;
use super::status_line::status_line;
use crate::config::{self, Config, Listener, diff};
use crate::fleet::Health;
use crate::sockets::{Fresh, http};
use crate::upgrade::StartedWith;

/// A limit for reading the file, since a network file system may not answer.
const READING_MAX: Duration = Duration::from_secs(10);
const DRAINING: &str = "sessile is draining and takes no configuration any more";

/// A configuration that can be committed: everything that may fail has been done.
struct Prepared {
    fleet: Fleet,
    sockets: Fresh,
}

impl Reloader {
    /// Puts the first configuration in force, with the sockets and states that were passed. Nothing is accepted before
    /// [`open`](Self::open).
    ///
    /// # Errors
    /// A socket that cannot be bound.
    pub async fn start(
        path: &Path,
        config: Config,
        pages: Pages,
        started_with: StartedWith,
    ) -> Result<Arc<Self>, StartFault> {
        let config = Arc::new(config);
        let reloader = Arc::new(Self::new(path, &config, pages, started_with)?);
        let prepared = reloader.prepare(config).await?;
        reloader.commit(prepared).await;
        reloader.announce_first_round().await;
        let forgetting = forget_in_time(Arc::clone(&reloader));
        let stop = reloader.stop.clone();
        reloader.attendants.spawn(async move { stop.run_until_cancelled(forgetting).await });
        Ok(reloader)
    }

    /// Accepts clients and operators. From now on this process restarts backends.
    pub async fn open(&self) {
        self.inner.lock().await.sockets.open();
        let restarting = restart(Arc::clone(self.balancer()), self.generation());
        let stop = self.stop.clone();
        self.attendants.spawn(async move { stop.run_until_cancelled(restarting).await });
    }

    /// Reads the file and puts it in force; a file that is not sound changes nothing. `why` is for the log.
    ///
    /// # Errors
    /// Every problem there is.
    pub async fn reload(self: &Arc<Self>, why: &str) -> Result<Applied, Vec<Trouble>> {
        let turn = self.turn.lock().await;
        // Once it stops, the process does not tell systemd that it is ready.
        let told = !self.balancer().draining.is_cancelled();
        if told {
            self.notifier().reloading();
        }
        let attempt = self.attempt().await;
        let at = SystemTime::now();
        let last = match &attempt {
            Ok(applied) => {
                tracing::info!(
                    why,
                    generation = applied.generation,
                    changes = applied.changes.join("; "),
                    "configuration reloaded"
                );
                Last { at, problems: Vec::new(), changes: applied.changes.clone() }
            }
            Err(problems) => {
                self.balancer().metrics.refused();
                for Trouble { line, column, message, help } in problems {
                    let file = self.path().display();
                    tracing::error!(why, %file, line, column, help, problem = message, "configuration refused");
                }
                Last { at, problems: problems.clone(), changes: Vec::new() }
            }
        };
        self.set_last(last);
        if told {
            let problems = attempt.as_ref().map_or_else(Vec::len, |_| 0);
            self.notifier().ready(&status_line(self.balancer(), problems));
        }
        drop(turn);
        attempt
    }

    async fn attempt(self: &Arc<Self>) -> Result<Applied, Vec<Trouble>> {
        let given_away = self.inner.lock().await.sockets.are_given_away();
        let draining = &self.balancer().draining;
        if draining.is_cancelled() && !given_away {
            return Err(Trouble::plain(DRAINING));
        }
        let path = self.path().to_owned();
        let reading = tokio::task::spawn_blocking(move || load_again(&path));
        let read = tokio::select! {
            read = tokio::time::timeout(READING_MAX, reading) => {
                read.map_err(|_| Trouble::plain("the configuration file cannot be read: no answer in time"))?
            }
            () = draining.cancelled(), if !given_away => return Err(Trouble::plain(DRAINING)),
        };
        let mut config = read.map_err(Trouble::plain)??;
        config.keep_tls(&self.balancer().now().config);
        let changes = diff(&self.balancer().now().config, &config).iter().map(ToString::to_string).collect();
        let prepared = self.prepare(Arc::new(config)).await.map_err(Trouble::plain)?;
        let generation = self.commit(prepared).await;
        Ok(Applied { generation, changes })
    }

    /// Everything that may fail, without a visible effect.
    async fn prepare(&self, config: Arc<Config>) -> Result<Prepared, StartFault> {
        let fleet = self.fleet(Arc::clone(&config)).await?;
        let sockets = self.inner.lock().await.sockets.prepare(&config)?;
        Ok(Prepared { fleet, sockets })
    }

    /// Puts a prepared configuration in force; returns its generation.
    async fn commit(self: &Arc<Self>, prepared: Prepared) -> u64 {
        let Prepared { fleet, sockets } = prepared;
        let config = Arc::clone(&fleet.config);
        let inner = &mut *self.inner.lock().await;
        let now = self.balancer().snapshot();
        let generation = now.generation.saturating_add(1);
        self.install(inner, fleet, generation);
        self.seek(inner, &config);
        self.balancer().metrics.committed(generation);
        for gone in now
            .config
            .listeners
            .iter()
            .filter(|old| !config.listeners.iter().any(|new| new.address == old.address))
        {
            self.balancer().metrics.certificate_expires(&gone.address.to_string(), None);
        }
        for Listener { address, tls, .. } in &config.listeners {
            let expiry = tls.as_ref().and_then(|tls| tls.expiry());
            self.balancer().metrics.certificate_expires(&address.to_string(), expiry);
        }
        let expiry = config.admin.tls.as_ref().and_then(|tls| tls.expiry());
        self.balancer().metrics.certificate_expires(http::LABEL, expiry);
        for warning in warnings(&config) {
            tracing::warn!("{warning}");
        }
        inner.sockets.commit(&config, sockets, |endpoint| (self.pages)(self, endpoint));
        self.generation.send_replace(generation);
        generation
    }

    /// Lets openings go on when every name of the first configuration has been looked up and every backend probed once.
    async fn announce_first_round(self: &Arc<Self>) {
        let reloader = Arc::clone(self);
        let balancer = Arc::clone(self.balancer());
        let lookups = self.inner.lock().await.groups.first_lookups();
        let stop = self.stop.clone();
        let round = async move {
            for lookup in lookups {
                lookup.cancelled().await;
            }
            reloader.recall().await;
            let now = balancer.snapshot();
            let all = now.members.iter().chain(&now.retired);
            let backends: Vec<_> = all.map(|member| Arc::clone(&member.backend)).collect();
            drop(now);
            for backend in backends {
                let mut standing = backend.standing();
                let probed = standing.wait_for(|standing| standing.health != Health::Unknown);
                // A backend that leaves the configuration meanwhile is not probed any more.
                let patience = balancer.now().config.health.timeout.saturating_mul(2);
                if tokio::time::timeout(patience, probed).await.is_err() {
                    tracing::debug!(backend = %backend.name(), "was not probed in the first round");
                }
            }
            balancer.probed();
        };
        self.attendants.spawn(async move { stop.run_until_cancelled(round).await });
    }
}

/// Reads a file that was read before. A pipe can be read only once, and a second read would hang.
fn load_again(path: &Path) -> Result<Config, Vec<Trouble>> {
    if fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo()) {
        return Err(Trouble::plain("the configuration file is a pipe, which cannot be read again"));
    }
    config::load(path).map_err(|problems| Trouble::of(&problems))
}
