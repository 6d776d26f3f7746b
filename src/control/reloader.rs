//! The state of a running process beside its snapshot: sockets, operators' states, names, backends in use.
//!
//! Everything that changes what is in force is an `impl Reloader` in a file of its own: `reload`, `lookups`, `forget`.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use axum::Router;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::names::Groups;
use super::outcome::{Last, StartFault, Unknown};
use crate::balancer::Balancer;
use crate::config::{AdminAddress, AdminState, Config};
use crate::fleet::{Backend, Commands, Ring};
use crate::metrics::Metrics;
use crate::runtime::workers::Workers;
use crate::snapshot::Snapshot;
use crate::sockets::{Endpoint, SocketCopies, Sockets};
use crate::systemd::Notifier;
use crate::upgrade::{OldProcesses, Seen, StartedWith};

/// Makes the routes of an admin socket when it is put in use.
pub type Pages = fn(&Arc<Reloader>, &Endpoint) -> Router;

/// Keeps a process in step with its configuration file and its operators.
#[derive(Debug)]
pub struct Reloader {
    path: PathBuf,
    balancer: Arc<Balancer>,
    pub(super) pages: Pages,
    notifier: Notifier,
    old_processes: OldProcesses,
    pub(super) attendants: TaskTracker,
    pub(super) stop: CancellationToken,
    started: Instant,
    /// One reload at a time.
    pub(super) turn: Mutex<()>,
    /// Never held while a file is read or a ring is built: commands and the status do not wait for a reload.
    pub(super) inner: Mutex<Inner>,
    last: StdMutex<Last>,
    pub(super) generation: watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) sockets: Sockets,
    /// The states set by operators.
    pub(super) commands: Commands,
    /// Every backend that is still in use, removed ones included.
    pub(super) backends: Vec<Weak<Backend>>,
    /// The names that are looked up.
    pub(super) groups: Groups,
    /// Servers that the process before has seen, until it is known which of them are in the fleet.
    pub(super) seen: Vec<Seen>,
}

impl Reloader {
    /// With no configuration in force: no backend, no listener.
    ///
    /// # Errors
    /// Two metrics have one name, or threads could not be started.
    pub(super) fn new(
        path: &Path,
        config: &Arc<Config>,
        pages: Pages,
        started_with: StartedWith,
    ) -> Result<Self, StartFault> {
        let metrics = Metrics::new()?;
        let nothing = Snapshot {
            generation: 0,
            config: Arc::clone(config),
            members: Vec::new(),
            retired: Vec::new(),
            ring: Arc::new(Ring::new([], "")),
        };
        let balancer = Balancer::new(nothing, metrics, Workers::start().map_err(StartFault::Workers)?);
        let StartedWith { sockets, commands, seen, .. } = started_with;
        let sockets = Sockets::new(&balancer, sockets);
        let inner = Inner { sockets, commands, backends: Vec::new(), groups: Groups::default(), seen };
        Ok(Self {
            path: path.to_owned(),
            balancer,
            pages,
            notifier: Notifier::default(),
            old_processes: OldProcesses::default(),
            attendants: TaskTracker::new(),
            stop: CancellationToken::new(),
            started: Instant::now(),
            turn: Mutex::default(),
            inner: Mutex::new(inner),
            last: StdMutex::new(Last { at: SystemTime::now(), problems: Vec::new(), changes: Vec::new() }),
            generation: watch::Sender::new(0),
        })
    }

    /// The balancer.
    pub fn balancer(&self) -> &Arc<Balancer> {
        &self.balancer
    }

    /// The channel to systemd.
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// The processes before this one.
    pub fn old_processes(&self) -> &OldProcesses {
        &self.old_processes
    }

    /// While it is held, no reload begins.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The configuration file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the last attempt to load the file went.
    pub fn last(&self) -> Last {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where each listener is bound, in no order; differs from the configuration if that has port 0.
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

    pub(super) fn set_last(&self, last: Last) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    /// Gives a backend the state an operator wants, until the state in the file changes.
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
        self.balancer.commit(Snapshot { members, ..Snapshot::clone(&now) });
        drop(inner);
        tracing::info!(backend = name, state = state.label(), "backend state changed");
        self.old_processes.ask_all(&format!("state {name} {}", state.label())).await;
        Ok(())
    }

    /// Copies of its sockets, for the next process.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub async fn socket_copies(&self) -> io::Result<SocketCopies> {
        self.inner.lock().await.sockets.socket_copies()
    }

    /// States that operators set: backend, state, and the state in the file at that time.
    pub async fn states(&self) -> Vec<(String, String, String)> {
        let inner = self.inner.lock().await;
        let states = inner.commands.iter();
        states.map(|(name, state, file)| (name.into(), state.label().into(), file.label().into())).collect()
    }

    /// The next process serves: this one accepts nothing any more, closes no socket, and asks no older process anything.
    /// Reloads go on, for the backends of the connections that are left.
    pub async fn give_away(&self) {
        self.old_processes.give_away();
        let closed = self.inner.lock().await.sockets.give_away();
        for listener in closed {
            listener.wait().await;
        }
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
        let admin = self.inner.lock().await.sockets.stop_admin();
        admin.wait().await;
    }
}
