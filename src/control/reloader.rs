//! What is kept of a running process beside its snapshot: sockets, operators' states, names, backends that still live.
//!
//! Whoever changes what is in force is an `impl Reloader` in a file of its own: `reload`, `lookups`, `forget`.

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

/// What an admin socket serves; made when the socket is put in use.
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
    /// What operators said.
    pub(super) commands: Commands,
    /// Every backend that still lives, removed ones included.
    pub(super) backends: Vec<Weak<Backend>>,
    /// The names that are looked up.
    pub(super) groups: Groups,
    /// Servers that a process before has seen, until it is known which of them are in the fleet.
    pub(super) seen: Vec<Seen>,
}

impl Reloader {
    /// Everything is there and nothing is in force: no backend, no listener.
    ///
    /// # Errors
    /// Metrics that contradict each other, or no threads to be had.
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

    /// What it keeps in step.
    pub fn balancer(&self) -> &Arc<Balancer> {
        &self.balancer
    }

    /// What systemd is told.
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// The processes before this one.
    pub fn old_processes(&self) -> &OldProcesses {
        &self.old_processes
    }

    /// Keeps reloads off while it is held.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
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

    pub(super) fn set_last(&self, last: Last) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
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
        self.balancer.commit(Snapshot { members, ..Snapshot::clone(&now) });
        drop(inner);
        tracing::info!(backend = name, state = state.label(), "backend state changed");
        self.old_processes.ask_all(&format!("state {name} {}", state.label())).await;
        Ok(())
    }

    /// Its sockets once more, for a successor.
    ///
    /// # Errors
    /// No descriptor to spare.
    pub async fn socket_copies(&self) -> io::Result<SocketCopies> {
        self.inner.lock().await.sockets.socket_copies()
    }

    /// States that operators gave: backend, state, and the file's when it was given.
    pub async fn states(&self) -> Vec<(String, String, String)> {
        let inner = self.inner.lock().await;
        let states = inner.commands.iter();
        states.map(|(name, state, file)| (name.into(), state.label().into(), file.label().into())).collect()
    }

    /// A successor serves: lets nobody in any more, closes no socket, and asks no older process anything. Reloads go on,
    /// for the backends of the connections that are left.
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
