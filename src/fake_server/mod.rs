//! A CLI server in memory: what `sessile demo` starts when no real server is at hand, and the
//! scriptable backend of the tests.
//!
//! It behaves as the real server was measured to: what it refuses, with which message, in which order, and when a session
//! ends. Two things to know before changing it. It must not share code with the data path, because it is the oracle
//! the data path is tested against. And where the real server has a race (pipelined requests), the fake server takes the
//! worse outcome every time, so that a balancer that relies on luck fails its tests.
//!
//! Bottom up: `wire` reads frames, `message` reads bodies, `session` is disk and memory, `state` is everything in one
//! watched value, `notice` and `methods` are what the server sends, `serve` is accepting and connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod message;
mod answer;
mod methods;
mod notice;
mod opening;
mod serve;
mod session;
mod state;
mod wire;

#[cfg(test)]
mod tests;

pub use session::{Disk, Entry, HISTORY_BYTES_MAX, Role, SESSIONS_MAX, Stored};
pub use state::{Asked, Cut, Ending, Received, State};

use answer::Options;
use serve::Server;

/// Connections that the kernel keeps between two accepts.
const BACKLOG: u32 = 4096;

/// The settings of a fake server. Every one has a default; [`start`](Self::start) makes it listen.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    options: Options,
    disk: Arc<Disk>,
    address: SocketAddr,
}

impl Builder {
    /// Its name, which it gives in its answers to prompts. Default "fake_server".
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = name.into();
        self
    }

    /// The connection token clients must give in `connect`. Default none.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.options.token = Some(token.into());
        self
    }

    /// The disk, given to several fake servers for shared storage. Default one of its own.
    pub fn disk(mut self, disk: &Arc<Disk>) -> Self {
        self.disk = Arc::clone(disk);
        self
    }

    /// The version it reports. Default "1.0.102".
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.options.version = version.into();
        self
    }

    /// The protocol version it reports. Default 3.
    pub fn protocol_version(mut self, version: u64) -> Self {
        self.options.protocol_version = version;
        self
    }

    /// How long `session.create` and `session.resume` take; until then the session is denied. Default zero.
    pub fn create_delay(mut self, delay: Duration) -> Self {
        self.options.create_delay = delay;
        self
    }

    /// How long a session stays live after its last attachment went. Default zero.
    pub fn unload_delay(mut self, delay: Duration) -> Self {
        self.options.unload_delay = delay;
        self
    }

    /// How long a turn takes; its session is processing meanwhile. Default zero.
    pub fn turn_delay(mut self, delay: Duration) -> Self {
        self.options.turn_delay = delay;
        self
    }

    /// Whether `session.created` comes after the answer to the create (runtime 1.0.85) and not before it (the
    /// default, CLI 1.0.102).
    pub fn created_after_answer(mut self, after: bool) -> Self {
        self.options.created_after_answer = after;
        self
    }

    /// Whether every frame is kept in [`State::received`], which then grows without a limit. Default false.
    pub fn record(mut self, record: bool) -> Self {
        self.options.record = record;
        self
    }

    /// Where it listens; port 0 is any. Default 127.0.0.1:0.
    pub fn bind(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Listens.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(self) -> io::Result<FakeServer> {
        // Bound and never listening: it reserves the port while the listener is closed.
        let reserved = reserve(self.address)?;
        let address = reserved.local_addr()?;
        let listener = listen(address)?;
        let server = Arc::new(Server {
            options: self.options,
            state: watch::Sender::new(State::new(self.disk)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let listening = Mutex::new(Some(Listening::new(&server, listener)));
        Ok(FakeServer { server, address, listening, _reserved: reserved })
    }
}

/// A listener with a long queue. With the usual 128, the kernel answers further connections with SYN cookies, and resets
/// one whose cookie comes back too late.
///
/// # Errors
/// The address cannot be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    reserve(address)?.listen(BACKLOG)
}

fn reserve(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// The open listener and the task that has it.
#[derive(Debug)]
struct Listening {
    closed: CancellationToken,
    task: JoinHandle<()>,
}

impl Listening {
    fn new(server: &Arc<Server>, listener: TcpListener) -> Self {
        let closed = server.stop.child_token();
        let task = server.tasks.spawn(serve::accept(Arc::clone(server), listener, closed.clone()));
        Self { closed, task }
    }
}

/// A running fake server. Dropping it ends all its tasks; [`stop`](Self::stop) also waits for them.
#[derive(Debug)]
pub struct FakeServer {
    server: Arc<Server>,
    address: SocketAddr,
    listening: Mutex<Option<Listening>>,
    _reserved: TcpSocket,
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.server.stop.cancel();
    }
}

impl FakeServer {
    /// A fake server with the default settings.
    pub fn builder() -> Builder {
        let options = Options {
            name: "fake_server".to_owned(),
            token: None,
            version: "1.0.102".to_owned(),
            protocol_version: 3,
            create_delay: Duration::ZERO,
            unload_delay: Duration::ZERO,
            turn_delay: Duration::ZERO,
            created_after_answer: false,
            record: false,
        };
        Builder { options, disk: Disk::new(), address: (Ipv4Addr::LOCALHOST, 0).into() }
    }

    /// Where it listens, with the port it got. It stays the same while refusing.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.server.options.name
    }

    /// Looks at the state. `look` must not call the fake server.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.server.state.borrow())
    }

    /// Waits until `condition` holds, for as long as it takes. `condition` must not call the fake server.
    pub async fn wait_for(&self, condition: impl FnMut(&State) -> bool) {
        self.server.until(condition).await;
    }

    /// The sessions that are live, sorted.
    pub fn live_sessions(&self) -> Vec<String> {
        self.look(State::live_sessions)
    }

    /// Sockets it holds open.
    pub fn connections(&self) -> usize {
        self.look(State::connections)
    }

    /// The frames that came, if it records.
    pub fn received(&self) -> Vec<Received> {
        self.look(|state| state.received().to_vec())
    }

    /// Closes the listener, so that dials are refused while connections live on, or opens it again on the same port.
    ///
    /// # Errors
    /// The port cannot be bound again.
    pub async fn refuse(&self, refuse: bool) -> io::Result<()> {
        let mut listening = self.listening.lock().await;
        match listening.take() {
            Some(open) if refuse => {
                open.closed.cancel();
                open.task.await.map_err(io::Error::other)
            }
            None if !refuse => {
                let listener = listen(self.address)?;
                *listening = Some(Listening::new(&self.server, listener));
                Ok(())
            }
            unchanged => {
                *listening = unchanged;
                Ok(())
            }
        }
    }

    /// Accepts every further connection and resets it at once, as a server does that has all the connections it can
    /// take. Open ones go on.
    pub fn turn_away(&self, turn_away: bool) {
        self.server.change(|state| state.faults.turn_away = turn_away);
    }

    /// Accepts and reads but answers nothing and notices no close, like a process under SIGSTOP. Switched off, it
    /// catches up.
    pub fn mute(&self, mute: bool) {
        self.server.change(|state| state.faults.mute = mute);
    }

    /// Answers everything with `SERVER_SHUTTING_DOWN`, as after `runtime.shutdown`. Its sessions stay.
    pub fn zombie(&self, zombie: bool) {
        self.server.change(|state| state.faults.zombie = zombie);
    }

    /// Answers requests for `method` with these fields (`result` or `error`) and does nothing else; with null it answers
    /// nothing.
    pub fn answer_instead(&self, method: &str, fields: Value) {
        self.server.change(|state| state.instead.insert(method.to_owned(), fields));
    }

    /// Answers requests for `method` as the real server does again.
    pub fn answer_truly(&self, method: &str) {
        self.server.change(|state| state.instead.remove(method));
    }

    /// Holds every `session.create` and `session.resume` before it takes effect: the time in which the real server
    /// denies the session, for as long as a test needs it. Switched off, they go on.
    pub fn hold_loads(&self, hold: bool) {
        self.server.change(|state| state.faults.hold_loads = hold);
    }

    /// Holds every turn before it ends. Switched off, they end.
    pub fn hold_turns(&self, hold: bool) {
        self.server.change(|state| state.faults.hold_turns = hold);
    }

    /// Never closes its side of a connection, whatever the peer does. Switched off, it closes what is due.
    pub fn never_fin(&self, never: bool) {
        self.server.change(|state| state.faults.never_fin = never);
    }

    /// Holds every request for a time before it is worked and answered.
    pub fn answer_delay(&self, delay: Duration) {
        self.server.change(|state| state.faults.answer_delay = delay);
    }

    /// Closes every connection there is now, whatever the faults say, and waits until they are gone.
    pub async fn close_connections(&self, how: Cut) {
        let last = self.server.change(|state| {
            for connection in state.connections.values_mut() {
                connection.cut = how;
                connection.token.cancel();
            }
            state.accepted()
        });
        self.wait_for(|state| state.connections.range(..=last).next().is_none()).await;
    }

    /// Sends a request to the client of a connection. None: there is no such connection.
    pub fn ask_connection(&self, connection: u64, method: &str, params: &Value) -> Option<Asked> {
        self.server.change(|state| state.ask(connection, method, params))
    }

    /// Sends a request to the first client attached to a session. None: it has none.
    pub fn ask_session(&self, session: &str, method: &str, params: &Value) -> Option<Asked> {
        self.server.change(|state| {
            let connection = *state.attached(session).first()?;
            state.ask(connection, method, params)
        })
    }

    /// Waits for a client's answer: the whole object, with `result` or `error`. None: the connection ended before.
    pub async fn answer(&self, asked: Asked) -> Option<Value> {
        let over =
            |state: &State| state.answer(asked).is_some() || !state.peers().contains(&asked.connection);
        self.wait_for(over).await;
        self.look(|state| state.answer(asked).cloned())
    }

    /// Sends a notification to every connection attached to a session.
    pub fn notify_session(&self, session: &str, method: &str, params: &Value) {
        let frame = wire::notification(method, params);
        self.server.change(|state| state.send_attached(session, &frame));
    }

    /// Sends any bytes on a connection. False: it is gone.
    pub fn write(&self, connection: u64, bytes: impl Into<Bytes>) -> bool {
        let bytes = bytes.into();
        self.server.change(|state| state.send(connection, bytes))
    }

    /// Ends everything, as SIGTERM does to the real server, and waits until every socket is closed. What is on the
    /// disk stays there.
    pub async fn stop(self) {
        self.server.stop.cancel();
        self.server.tasks.close();
        self.server.tasks.wait().await;
    }
}
