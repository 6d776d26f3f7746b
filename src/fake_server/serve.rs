//! Accepting, and one connection from accept to close.
//!
//! A connection is one task that reads and writes; a request that has to wait (a delay, a mute server) becomes a task
//! of its own, so answers overtake each other as they do on the real server. Requests that came in one batch all see the
//! state **before** the batch, and those that load a session are handled last: a client that pipelines behind an
//! unanswered `connect` or `session.create` is refused every time here, not 19 times in 20.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{After, Options};
use super::message::{Message, Request};
use super::methods;
use super::notice;
use super::state::{Cut, Ending, Received, State};
use super::wire::{self, Frame, ReadEnd, Reader, Writer};

/// Connections at once; beyond that they are closed as they come.
const CONNECTIONS_MAX: usize = 10_000;

/// KiB of requests that may wait in one connection before it is read no further.
const WAITING_KIB_MAX: usize = 256 << 10;

/// How long accepting pauses after it failed, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the tasks of one fake server share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) options: Options,
    pub(super) state: watch::Sender<State>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Server {
    /// Changes the state and wakes who waits for one.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut changed = None;
        self.state.send_modify(|state| changed = Some(change(state)));
        #[expect(clippy::unwrap_used, reason = "send_modify always calls its closure")]
        changed.unwrap()
    }

    /// Waits until `condition` holds. It cannot fail: the sender lives as long as `self`.
    pub(super) async fn until(&self, condition: impl FnMut(&State) -> bool) {
        let _closed = self.state.subscribe().wait_for(condition).await.is_err();
    }

    /// Spawns a task that ends when `token` does.
    pub(super) fn spawn(&self, token: CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            token.run_until_cancelled(task).await;
        });
    }
}

/// Accepts until `closed`, then closes the listener.
pub(super) async fn accept(server: Arc<Server>, listener: TcpListener, closed: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => admit(&server, stream),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

fn admit(server: &Arc<Server>, stream: TcpStream) {
    if server.state.borrow().connections() >= CONNECTIONS_MAX || stream.set_nodelay(true).is_err() {
        return;
    }
    if server.state.borrow().faults.turn_away {
        // If it cannot be reset it is closed, which serves as well.
        drop(stream.set_zero_linger());
        return;
    }
    let (queue, queued) = mpsc::unbounded_channel();
    let token = server.stop.child_token();
    let open = server.options.token.is_none();
    let number = server.change(|state| state.admit(queue, token.clone(), open));
    let connection = Connection {
        server: Arc::clone(server),
        number,
        token,
        waiting: Arc::new(Semaphore::new(WAITING_KIB_MAX)),
    };
    server.tasks.spawn(connection.run(stream, Writer::new(queued)));
}

/// One connection. It leaves the state when dropped, however its task ends.
struct Connection {
    server: Arc<Server>,
    number: u64,
    /// Cancelled by whoever closes the connection, and when it is over.
    token: CancellationToken,
    waiting: Arc<Semaphore>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.token.cancel();
        self.server.change(|state| {
            state.note(self.number, Ending::Cut);
            let idle = state.sessions.release(self.number);
            idle.iter().for_each(|session| state.sessions.unload_idle(session));
            state.connections.remove(&self.number);
        });
    }
}

impl Connection {
    async fn run(self, mut stream: TcpStream, mut writer: Writer) {
        let (read, mut write) = stream.split();
        let mut reader = Reader::new(read);
        let end = tokio::select! {
            biased;
            () = self.token.cancelled() => None,
            end = self.read(&mut reader) => Some(end),
            _ = writer.run(&mut write) => Some(ReadEnd::Reset),
        };
        if let Some(end) = end {
            let closing = async {
                self.wind_up(&end).await;
                // A FIN loses the answers that are still being worked on, not those that are ready.
                if end != ReadEnd::Reset && writer.drain(&mut write).await.is_ok() {
                    self.server.until(|state| !state.faults.never_fin).await;
                }
            };
            self.token.run_until_cancelled(closing).await;
        }
        self.close(stream).await;
    }

    /// Reads and dispatches until the peer ends it.
    async fn read(&self, reader: &mut Reader<impl tokio::io::AsyncRead + Unpin>) -> ReadEnd {
        loop {
            let frames = match reader.batch().await {
                Ok(frames) => frames,
                Err(end) => return end,
            };
            let number = self.number;
            let admitted =
                self.server.state.borrow().connections.get(&number).is_some_and(|c| c.authenticated);
            let mut loading = Vec::new();
            for frame in frames {
                match self.take(&frame) {
                    Some(request) if methods::loads(&request.method) => loading.push((frame, request)),
                    Some(request) => self.dispatch(&frame, request, admitted).await,
                    None => {}
                }
            }
            for (frame, request) in loading {
                self.dispatch(&frame, request, admitted).await;
            }
        }
    }

    /// Records a frame and settles all that is no request.
    fn take(&self, frame: &Frame) -> Option<Request> {
        let message = Message::parse(&frame.body);
        if self.server.options.record {
            let received = Received {
                connection: self.number,
                method: message.method().map(str::to_owned),
                session: message.session().map(str::to_owned),
                raw: frame.raw.clone(),
            };
            self.server.change(|state| state.record(received));
        }
        match message {
            Message::Request(request) => return Some(request),
            Message::Notification { .. } => {}
            Message::Response { id, body } => {
                self.server.change(|state| state.answered(self.number, &id, body));
            }
            Message::Refused { code, message } => {
                let refusal = wire::error(&serde_json::Value::Null, code, message);
                self.server.change(|state| !state.faults.mute && state.send(self.number, refusal));
            }
        }
        None
    }

    /// Works a request at once, or in a task of its own if it has to wait.
    async fn dispatch(&self, frame: &Frame, request: Request, admitted: bool) {
        let loads = methods::loads(&request.method);
        let (held, mut delay) = {
            let state = self.server.state.borrow();
            (state.faults.hold(loads), state.faults.answer_delay)
        };
        if loads {
            delay = delay.saturating_add(self.server.options.create_delay);
        }
        if !held && delay.is_zero() {
            return work(&self.server, self.number, admitted, &request);
        }
        let kib = u32::try_from(frame.raw.len() >> 10).unwrap_or(u32::MAX).saturating_add(1);
        let permit = Arc::clone(&self.waiting).acquire_many_owned(kib).await.ok();
        let (server, number) = (Arc::clone(&self.server), self.number);
        self.server.spawn(self.token.clone(), async move {
            let _waiting: Option<OwnedSemaphorePermit> = permit;
            tokio::time::sleep(delay).await;
            server.until(|state| !state.faults.hold(loads)).await;
            work(&server, number, admitted, &request);
        });
    }

    /// What the server does when it sees the end: notes it and lets go of the sessions. One that is stopped (mute)
    /// sees nothing until it goes on.
    async fn wind_up(&self, end: &ReadEnd) {
        let ending = match end {
            ReadEnd::Fin => Ending::Fin,
            ReadEnd::Reset => Ending::Reset,
            ReadEnd::Malformed(_) => Ending::Malformed,
        };
        self.server.change(|state| state.note(self.number, ending));
        self.server.until(|state| !state.faults.mute).await;
        let idle = self.server.change(|state| state.sessions.release(self.number));
        for session in idle {
            unload(&self.server, session);
        }
        if let ReadEnd::Malformed(message) = end {
            let refusal = wire::error(&serde_json::Value::Null, -32700, message);
            self.server.change(|state| state.send(self.number, refusal));
        }
    }

    /// Closes the socket as the state says: by FIN, unless a reset was asked for.
    async fn close(&self, mut stream: TcpStream) {
        let cut = self.server.state.borrow().connections.get(&self.number).map(|connection| connection.cut);
        let _gone: io::Result<()> = match cut {
            Some(Cut::Reset) => stream.set_zero_linger(),
            // Unread bytes at close would turn the FIN into a reset.
            _ => stream.shutdown().await.and_then(|()| discard(&stream)),
        };
    }
}

/// Throws away what has arrived.
fn discard(stream: &TcpStream) -> io::Result<()> {
    let mut waste = [0; 4096];
    while stream.try_read(&mut waste)? > 0 {}
    Ok(())
}

/// Works one request and what follows from it.
fn work(server: &Arc<Server>, number: u64, admitted: bool, request: &Request) {
    let after = server.change(|state| methods::answer(&server.options, state, number, admitted, request));
    for step in after {
        match step {
            After::Unload(session) => unload(server, session),
            After::Turn { session, epoch } => turn(server, session, epoch),
            After::Created(session) => {
                server.change(|state| notice::lifecycle(state, "session.created", &session));
            }
            After::Event(session, event) => {
                server.change(|state| notice::send_event(state, &session, &event));
            }
            After::Shutdown => server.change(|state| {
                state.faults.zombie = true;
                state.sessions.unload_all();
            }),
        }
    }
}

/// Unloads a session nobody is attached to, after `unload_delay`, unless somebody attaches until then.
fn unload(server: &Arc<Server>, session: String) {
    let delay = server.options.unload_delay;
    if delay.is_zero() {
        return server.change(|state| state.sessions.unload_idle(&session));
    }
    let server = Arc::clone(server);
    server.clone().spawn(server.stop.clone(), async move {
        tokio::time::sleep(delay).await;
        server.change(|state| state.sessions.unload_idle(&session));
    });
}

/// Ends a turn, after `turn_delay`, and not while turns are held.
fn turn(server: &Arc<Server>, session: String, epoch: u64) {
    let delay = server.options.turn_delay;
    if delay.is_zero() && !server.state.borrow().faults.hold_turns {
        return server.change(|state| methods::finish_turn(&server.options, state, &session, epoch));
    }
    let server = Arc::clone(server);
    server.clone().spawn(server.stop.clone(), async move {
        tokio::time::sleep(delay).await;
        server.until(|state| !state.faults.mute && !state.faults.hold_turns).await;
        server.change(|state| methods::finish_turn(&server.options, state, &session, epoch));
    });
}
