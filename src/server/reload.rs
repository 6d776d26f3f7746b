//! Reloads and operators' commands: the next snapshot, prepared and committed.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::discover::Groups;
use super::endpoint::Endpoint;
use super::headline::headline;
use super::http;
use super::members::Fleet;
use super::outcome::{Applied, Last, StartFault, Trouble, Unknown};
use super::predecessors::Predecessors;
use super::sockets::{Fresh, Sockets};
use crate::balancer::Balancer;
use crate::config::{self, AdminAddress, AdminState, Config, Listener, diff};
use crate::descriptors;
use crate::fleet::{Backend, Commands, Ring};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::systemd::{Inherited, Notifier};
use crate::workers::Workers;

/// Reading the file may take so long: a file system over the network may not answer at all.
const READING_MAX: Duration = Duration::from_secs(10);
const DRAINING: &str = "sessile is draining and takes no configuration any more";

/// What an admin socket serves; made when the socket is put in use.
pub type Pages = fn(&Arc<Reloader>, &Endpoint) -> Router;

/// Keeps a process in step with its configuration file and its operators.
#[derive(Debug)]
pub struct Reloader {
    path: PathBuf,
    balancer: Arc<Balancer>,
    pages: Pages,
    notifier: Notifier,
    predecessors: Predecessors,
    pub(super) attendants: TaskTracker,
    pub(super) stop: CancellationToken,
    started: Instant,
    /// One reload at a time.
    pub(super) turn: Mutex<()>,
    /// Never held while a file is read or a ring is built: commands and the status do not wait for a reload.
    pub(super) inner: Mutex<Inner>,
    last: StdMutex<Last>,
    generation: watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) sockets: Sockets,
    /// What operators said.
    pub(super) commands: Commands,
    /// Every backend that still lives, removed ones included.
    pub(super) backends: Vec<Weak<Backend>>,
    /// The names that stand for many backends.
    pub(super) groups: Groups,
}

/// A configuration that can be committed: everything that may fail has been done.
struct Prepared {
    fleet: Fleet,
    sockets: Fresh,
}

impl Reloader {
    /// Puts the first configuration in force, with the sockets and states that are there already. Nobody is let in before
    /// [`open`](Self::open).
    ///
    /// # Errors
    /// A socket that cannot be bound.
    pub(super) async fn start(
        path: &Path,
        config: Config,
        pages: Pages,
        inherited: Inherited,
        commands: Commands,
    ) -> Result<Arc<Self>, StartFault> {
        let metrics = Metrics::new()?;
        let config = Arc::new(config);
        let nothing = Snapshot {
            generation: 0,
            config: Arc::clone(&config),
            members: Vec::new(),
            ring: Arc::new(Ring::new([], "")),
        };
        let balancer = Balancer::new(nothing, metrics, Workers::start().map_err(StartFault::Workers)?);
        let sockets = Sockets::new(&balancer, inherited);
        let reloader = Arc::new(Self {
            path: path.to_owned(),
            balancer,
            pages,
            notifier: Notifier::default(),
            predecessors: Predecessors::default(),
            attendants: TaskTracker::new(),
            stop: CancellationToken::new(),
            started: Instant::now(),
            turn: Mutex::default(),
            inner: Mutex::new(Inner { sockets, commands, backends: Vec::new(), groups: Groups::default() }),
            last: StdMutex::new(Last { at: SystemTime::now(), problems: Vec::new(), changes: Vec::new() }),
            generation: watch::Sender::new(0),
        });
        let prepared = reloader.prepare(config).await?;
        reloader.commit(prepared).await;
        reloader.announce_first_round().await;
        Ok(reloader)
    }

    /// What it keeps in step.
    pub fn balancer(&self) -> &Arc<Balancer> {
        &self.balancer
    }

    /// What systemd is told.
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// The processes before this one.
    pub(super) fn predecessors(&self) -> &Predecessors {
        &self.predecessors
    }

    /// Keeps reloads off while it is held.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the last attempt went.
    pub fn last(&self) -> Last {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where each listener is bound, in no order; differs from the configuration where that says port 0.
    pub async fn bound(&self) -> Vec<SocketAddr> {
        self.inner.lock().await.sockets.listeners().map(|(_, bound)| bound).collect()
    }

    /// Where a listener of the configuration is bound.
    pub async fn listener_bound(&self, address: SocketAddr) -> Option<SocketAddr> {
        let inner = self.inner.lock().await;
        inner.sockets.listeners().find(|(known, _)| *known == address).map(|(_, bound)| bound)
    }

    /// Where an admin socket of the configuration is bound.
    pub async fn admin_bound(&self, endpoint: &Endpoint) -> Option<AdminAddress> {
        self.inner.lock().await.sockets.admin(endpoint).cloned()
    }

    /// The backends that have left the configuration and still carry connections.
    pub async fn leaving(&self) -> Vec<Arc<Backend>> {
        let inner = self.inner.lock().await;
        let all = inner.backends.iter().filter_map(Weak::upgrade);
        all.filter(|backend| backend.is_retired() && backend.connections() > 0).collect()
    }

    /// When this process began to serve.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The generation in force, now and whenever it changes.
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Reads the file and puts it in force; a file that is not sound changes nothing. `why` is for the log.
    ///
    /// # Errors
    /// Every problem there is.
    pub async fn reload(self: &Arc<Self>, why: &str) -> Result<Applied, Vec<Trouble>> {
        let turn = self.turn.lock().await;
        // The end of a process is not told twice: it says that it stops, and no more that it is ready.
        let told = !self.balancer.draining.is_cancelled();
        if told {
            self.notifier.reloading();
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
                self.balancer.metrics.config_reloads.with_label_values(&["error"]).inc();
                for Trouble { line, column, message, help } in problems {
                    let file = self.path.display();
                    tracing::error!(why, %file, line, column, help, problem = message, "configuration refused");
                }
                Last { at, problems: problems.clone(), changes: Vec::new() }
            }
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
        if told {
            let problems = attempt.as_ref().map_or_else(Vec::len, |_| 0);
            self.notifier.ready(&headline(&self.balancer, problems));
        }
        drop(turn);
        attempt
    }

    /// Gives a backend the state an operator wants; the file's word counts again when it changes.
    ///
    /// # Errors
    /// No such backend.
    pub async fn command(&self, name: &str, state: AdminState) -> Result<(), Unknown> {
        let mut inner = self.inner.lock().await;
        let now = self.balancer.snapshot();
        let at = now.named(name).ok_or_else(|| Unknown(name.to_owned()))?;
        let mut members = now.members.clone();
        if let Some(member) = members.get_mut(at) {
            inner.commands.give(name, state, member.file_state);
            member.state = state;
            member.backend.series().state(state);
        }
        self.balancer.commit(Snapshot {
            generation: now.generation,
            config: Arc::clone(&now.config),
            members,
            ring: Arc::clone(&now.ring),
        });
        drop(inner);
        tracing::info!(backend = name, state = state.label(), "backend state changed");
        self.predecessors.ask_all(&format!("state {name} {}", state.label())).await;
        Ok(())
    }

    /// Stops accepting; returns when the sockets are closed and their queues served. No reload opens them again.
    pub async fn stop_listening(&self) {
        let turn = self.turn.lock().await;
        let listeners = self.inner.lock().await.sockets.stop_listeners();
        drop(turn);
        for listener in listeners {
            listener.wait().await;
        }
    }

    /// Ends every task of its own; the admin sockets last.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.attendants.close();
        self.attendants.wait().await;
        let desk = self.inner.lock().await.sockets.stop_admin();
        desk.wait().await;
    }

    async fn attempt(self: &Arc<Self>) -> Result<Applied, Vec<Trouble>> {
        let given_away = self.inner.lock().await.sockets.are_given_away();
        let draining = &self.balancer.draining;
        if draining.is_cancelled() && !given_away {
            return Err(Trouble::plain(DRAINING));
        }
        let path = self.path.clone();
        let reading = tokio::task::spawn_blocking(move || load_again(&path));
        let read = tokio::select! {
            read = tokio::time::timeout(READING_MAX, reading) => {
                read.map_err(|_| Trouble::plain("the configuration file cannot be read: no answer in time"))?
            }
            () = draining.cancelled(), if !given_away => return Err(Trouble::plain(DRAINING)),
        };
        let mut config = read.map_err(Trouble::plain)??;
        config.keep_tls(&self.balancer.now().config);
        let changes = diff(&self.balancer.now().config, &config).iter().map(ToString::to_string).collect();
        let prepared = self.prepare(Arc::new(config)).await.map_err(Trouble::plain)?;
        let generation = self.commit(prepared).await;
        Ok(Applied { generation, changes })
    }

    /// Everything that may fail, without anybody noticing.
    async fn prepare(&self, config: Arc<Config>) -> Result<Prepared, StartFault> {
        let fleet = self.fleet(Arc::clone(&config)).await?;
        let sockets = self.inner.lock().await.sockets.prepare(&config)?;
        Ok(Prepared { fleet, sockets })
    }

    /// Makes a prepared configuration the one in force; the generation it has now.
    async fn commit(self: &Arc<Self>, prepared: Prepared) -> u64 {
        let Prepared { fleet, sockets } = prepared;
        let config = Arc::clone(&fleet.config);
        let inner = &mut *self.inner.lock().await;
        let now = self.balancer.snapshot();
        let generation = now.generation.saturating_add(1);
        self.install(inner, fleet, generation);
        self.seek(inner, &config);
        self.balancer.metrics.committed(generation);
        descriptors::compare(&config);
        for gone in now
            .config
            .listeners
            .iter()
            .filter(|old| !config.listeners.iter().any(|new| new.address == old.address))
        {
            self.balancer.metrics.certificate_expires(&gone.address.to_string(), None);
        }
        for Listener { address, tls, .. } in &config.listeners {
            let expiry = tls.as_ref().and_then(|tls| tls.expiry());
            self.balancer.metrics.certificate_expires(&address.to_string(), expiry);
        }
        let expiry = config.admin.tls.as_ref().and_then(|tls| tls.expiry());
        self.balancer.metrics.certificate_expires(http::LABEL, expiry);
        inner.sockets.commit(&config, sockets, |endpoint| (self.pages)(self, endpoint));
        self.generation.send_replace(generation);
        generation
    }
}

/// Reads a file that was read before. A pipe gives what it has once, and holds up who reads it again.
fn load_again(path: &Path) -> Result<Config, Vec<Trouble>> {
    if fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo()) {
        return Err(Trouble::plain("the configuration file is a pipe, which cannot be read again"));
    }
    config::load(path).map_err(|problems| Trouble::of(&problems))
}
