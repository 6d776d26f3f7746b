//! Reloads and operators' commands: the next snapshot, prepared and committed.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::balancer::Balancer;
use crate::config::{AdminState, BackendSpec, Config, Listener, Problems, diff};
use crate::fleet::{Ask, Backend, Health, Ring};
use crate::link::attend;
use crate::metrics::Metrics;
use crate::net;
use crate::proxy::accept::{Door, accept};
use crate::snapshot::{Member, Snapshot};

/// Keeps a process in step with its configuration file and its operators.
#[derive(Debug)]
pub struct Reloader {
    path: PathBuf,
    balancer: Arc<Balancer>,
    door: Arc<Door>,
    attendants: TaskTracker,
    stop: CancellationToken,
    /// One change at a time.
    inner: Mutex<Inner>,
    last: StdMutex<Last>,
}

#[derive(Debug, Default)]
struct Inner {
    listeners: HashMap<SocketAddr, Listening>,
    /// Operators' words, with what the file said when they were given.
    commands: HashMap<String, (AdminState, AdminState)>,
    /// Every backend that still lives, removed ones included.
    backends: Vec<Weak<Backend>>,
}

#[derive(Debug)]
struct Listening {
    policy: Arc<ArcSwap<Listener>>,
    bound: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// How the last attempt went, for the status.
#[derive(Clone, Debug)]
pub struct Last {
    /// When.
    pub at: SystemTime,
    /// What was wrong, one problem each.
    pub problems: Vec<Trouble>,
    /// What it changed, in words.
    pub changes: Vec<String>,
}

/// One problem of a reload, with its place in the file if it has one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Trouble {
    /// From 1.
    pub line: Option<usize>,
    /// From 1.
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// A reload that came into force.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The configuration now in force.
    pub generation: u64,
    /// What changed, in words.
    pub changes: Vec<String>,
}

/// There is no such backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no backend called {0}")]
pub struct Unknown(pub String);

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFault {
    /// A listener or the admin port.
    #[error("cannot listen on {address}: {error}")]
    Bind {
        /// Which.
        address: String,
        /// Why not.
        error: io::Error,
    },
    /// Metrics that contradict each other.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// No signals.
    #[error("signals: {0}")]
    Signals(io::Error),
}

/// A configuration that can be committed: everything that may fail has been done.
struct Prepared {
    config: Arc<Config>,
    ring: Arc<Ring>,
    sockets: Vec<(Listener, TcpListener)>,
}

impl Reloader {
    /// Puts the first configuration in force.
    ///
    /// # Errors
    /// A socket that cannot be bound.
    pub async fn start(path: &Path, config: Config) -> Result<Arc<Self>, StartFault> {
        let metrics = Metrics::new()?;
        let config = Arc::new(config);
        let nothing = Snapshot {
            generation: 0,
            config: Arc::clone(&config),
            members: Vec::new(),
            ring: Arc::new(Ring::new([], "")),
        };
        let reloader = Arc::new(Self {
            path: path.to_owned(),
            balancer: Balancer::new(nothing, metrics),
            door: Arc::default(),
            attendants: TaskTracker::new(),
            stop: CancellationToken::new(),
            inner: Mutex::default(),
            last: StdMutex::new(Last { at: SystemTime::now(), problems: Vec::new(), changes: Vec::new() }),
        });
        let mut inner = reloader.inner.lock().await;
        let prepared = reloader.prepare(&inner, config).await?;
        reloader.commit(&mut inner, prepared);
        drop(inner);
        reloader.announce_first_round();
        Ok(reloader)
    }

    /// What it keeps in step.
    pub fn balancer(&self) -> &Arc<Balancer> {
        &self.balancer
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
        self.inner.lock().await.listeners.values().map(|listening| listening.bound).collect()
    }

    /// Reads the file and puts it in force; a file that is not sound changes nothing. `why` is for the log.
    ///
    /// # Errors
    /// Every problem there is.
    pub async fn reload(&self, why: &str) -> Result<Applied, Vec<Trouble>> {
        let mut inner = self.inner.lock().await;
        let attempt = self.attempt(&mut inner).await;
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
            inner.commands.insert(name.to_owned(), (state, member.file_state));
            member.state = state;
            member.backend.series().state(state);
        }
        self.balancer.commit(Snapshot {
            generation: now.generation,
            config: Arc::clone(&now.config),
            members,
            ring: Arc::clone(&now.ring),
        });
        tracing::info!(backend = name, state = state.label(), "backend state changed");
        Ok(())
    }

    /// Stops accepting; returns when the sockets are closed and their queues served.
    pub async fn stop_listening(&self) {
        let listeners = std::mem::take(&mut self.inner.lock().await.listeners);
        for listening in listeners.values() {
            listening.stop.cancel();
        }
        for listening in listeners.into_values() {
            if let Err(error) = listening.task.await {
                tracing::error!(%error, "a listener failed");
            }
        }
    }

    /// Ends every task of its own.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.attendants.close();
        self.attendants.wait().await;
    }

    async fn attempt(&self, inner: &mut Inner) -> Result<Applied, Vec<Trouble>> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || super::read(&path)).await;
        let config = read.map_err(|error| Trouble::plain(&error))?.map_err(|problems| troubles(&problems))?;
        let changes = diff(&self.balancer.now().config, &config).iter().map(ToString::to_string).collect();
        let prepared = self.prepare(inner, Arc::new(config)).await.map_err(|fault| Trouble::plain(&fault))?;
        let generation = self.commit(inner, prepared);
        Ok(Applied { generation, changes })
    }

    /// Everything that may fail, without anybody noticing.
    async fn prepare(&self, inner: &Inner, config: Arc<Config>) -> Result<Prepared, StartFault> {
        let mut sockets = Vec::new();
        for listener in &config.listeners {
            if inner.listeners.contains_key(&listener.address) {
                continue;
            }
            let address = listener.address.to_string();
            let socket =
                net::listen(listener.address).map_err(|error| StartFault::Bind { address, error })?;
            sockets.push((listener.clone(), socket));
        }
        let now = self.balancer.snapshot();
        let ring = if same_ring(&now.config, &config) && now.generation > 0 {
            Arc::clone(&now.ring)
        } else {
            let config = Arc::clone(&config);
            // A thousand backends are a million points: not for a thread that carries bytes.
            let built = tokio::task::spawn_blocking(move || {
                let names = config.backends.iter().map(|backend| (backend.name.as_str(), backend.weight));
                Ring::new(names, config.placement.hash_key.reveal())
            });
            Arc::new(built.await.map_err(|error| StartFault::Signals(io::Error::other(error)))?)
        };
        Ok(Prepared { config, ring, sockets })
    }

    /// Makes a prepared configuration the one in force; the generation it has now.
    fn commit(&self, inner: &mut Inner, prepared: Prepared) -> u64 {
        let Prepared { config, ring, sockets } = prepared;
        let now = self.balancer.snapshot();
        let members: Vec<Member> = config.backends.iter().map(|spec| self.member(inner, spec)).collect();
        for old in &now.members {
            if !members.iter().any(|member| Arc::ptr_eq(&member.backend, &old.backend)) {
                old.backend.retire();
            }
        }
        inner.backends.retain(|backend| backend.strong_count() > 0);
        inner.commands.retain(|name, _| config.backends.iter().any(|spec| spec.name == *name));
        let generation = now.generation.saturating_add(1);
        self.balancer.commit(Snapshot { generation, config: Arc::clone(&config), members, ring });
        self.balancer.metrics.committed(generation);
        self.listen(inner, &config, sockets);
        generation
    }

    /// The member that `spec` describes: a backend known by this name and address goes on being itself.
    fn member(&self, inner: &mut Inner, spec: &BackendSpec) -> Member {
        let is_it =
            |backend: &Arc<Backend>| **backend.name() == *spec.name && **backend.address() == *spec.address;
        let known = inner.backends.iter().filter_map(Weak::upgrade).find(is_it);
        let backend = known.filter(|backend| backend.enlist()).unwrap_or_else(|| {
            let series = self.balancer.metrics.backend(&spec.name.as_str().into());
            let (backend, asked) = Backend::new(&spec.name, &spec.address, series);
            inner.backends.push(Arc::downgrade(&backend));
            self.attend(&backend, asked);
            backend
        });
        let command = inner.commands.get(&spec.name).copied();
        let state = match command {
            Some((state, file_state)) if file_state == spec.state => state,
            _ => {
                inner.commands.remove(&spec.name);
                spec.state
            }
        };
        backend.series().state(state);
        Member { backend, weight: spec.weight, state, file_state: spec.state }
    }

    fn attend(&self, backend: &Arc<Backend>, asked: tokio::sync::mpsc::Receiver<Ask>) {
        let balancer = Arc::clone(&self.balancer);
        let config = move || Arc::clone(&balancer.now().config);
        self.attendants.spawn(attend(Arc::clone(backend), asked, config, self.stop.clone()));
    }

    /// Starts the new listeners, tells the kept ones their policy, and stops the rest. Connections that came through a
    /// listener that goes away stay.
    fn listen(&self, inner: &mut Inner, config: &Config, sockets: Vec<(Listener, TcpListener)>) {
        for listener in &config.listeners {
            if let Some(listening) = inner.listeners.get(&listener.address) {
                listening.policy.store(Arc::new(listener.clone()));
            }
        }
        inner.listeners.retain(|address, listening| {
            let kept = config.listeners.iter().any(|listener| listener.address == *address);
            if !kept {
                listening.stop.cancel();
            }
            kept
        });
        for (listener, socket) in sockets {
            let address = listener.address;
            let bound = socket.local_addr().unwrap_or(address);
            let policy = Arc::new(ArcSwap::from_pointee(listener));
            let stop = CancellationToken::new();
            let current = Arc::clone(&policy);
            let accepting = accept(
                Arc::clone(&self.balancer),
                Arc::clone(&self.door),
                socket,
                move || current.load_full(),
                stop.clone(),
            );
            tracing::info!(address = %bound, "listening");
            let task = tokio::spawn(accepting);
            inner.listeners.insert(address, Listening { policy, bound, stop, task });
        }
    }

    /// Lets openings go on when every backend of the first configuration has been probed once.
    fn announce_first_round(&self) {
        let balancer = Arc::clone(&self.balancer);
        let backends: Vec<_> =
            balancer.now().members.iter().map(|member| Arc::clone(&member.backend)).collect();
        let stop = self.stop.clone();
        self.attendants.spawn(async move {
            for backend in backends {
                let mut standing = backend.standing();
                let probed = standing.wait_for(|standing| standing.health != Health::Unknown);
                if !matches!(stop.run_until_cancelled(probed).await, Some(Ok(_))) {
                    return;
                }
            }
            balancer.probed();
        });
    }
}

impl Trouble {
    /// A problem that is nowhere in the file.
    fn plain(error: &dyn std::error::Error) -> Vec<Self> {
        vec![Self { line: None, column: None, message: error.to_string(), help: None }]
    }
}

fn troubles(problems: &Problems) -> Vec<Trouble> {
    let trouble = |problem: &crate::config::Problem| Trouble {
        line: problem.position.map(|position| position.line),
        column: problem.position.map(|position| position.column),
        message: problem.message.clone(),
        help: problem.help.clone(),
    };
    problems.iter().map(trouble).collect()
}

/// Whether the ring of two configurations is one: names in order, weights, key.
fn same_ring(a: &Config, b: &Config) -> bool {
    let names = |config: &Config| -> Vec<(String, u32)> {
        config.backends.iter().map(|backend| (backend.name.clone(), backend.weight)).collect()
    };
    names(a) == names(b) && a.placement.hash_key == b.placement.hash_key
}
