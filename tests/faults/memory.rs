//! What hostile clients can make the process hold: resident memory, not what it says of itself.
//!
//! Sockets on both sides have segments so small that the kernel keeps little of what nobody reads: the rest is for sessile to
//! hold, or not to read. What clients share is taken off: what is large, large frames of servers, each with a bound of its own,
//! and the sessions that servers have opened.

mod server;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::BytesMut;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::harness::wire::next_body;
use crate::harness::*;
use crate::process::{Process, alone};
use server::{Server, narrow};

/// Hostile clients of an attack.
const CLIENTS: usize = 60;
/// What each of them may take.
const EACH_KIB: usize = 300;
/// `limits.opening_bytes`; what is large may take eight times that in all.
const OPENING_KIB: usize = 128;
const LARGE_KIB: usize = 8 * OPENING_KIB;
/// What large frames of servers may take in all.
const FRAMES_KIB: usize = 8 * 1024;
/// What a session may take that a server has opened.
const SESSION_BYTES: usize = 768;
/// Metrics.
const HELD: &str = "sessile_opening_memory_bytes";
const FRAMES: &str = "sessile_frame_memory_bytes";
const TO_BACKENDS: &str = "sessile_relayed_bytes_total|to_backend";
const TO_CLIENTS: &str = "sessile_relayed_bytes_total|to_client";
/// Looks at what moves, after which nothing does if it was the same in all of them.
const QUIET_LOOKS: usize = 8;

/// A client that reads nothing but what it has to.
struct Hostile {
    stream: TcpStream,
    unread: BytesMut,
    name: String,
    moved: Arc<AtomicU64>,
}

impl Hostile {
    async fn send(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(16 * 1024) {
            if self.stream.write_all(piece).await.is_err() {
                return;
            }
            self.moved.fetch_add(1, Relaxed);
        }
    }

    async fn call(&mut self, method: &str, params: Value) {
        self.send(&request(1, method, &params)).await;
        next_body(&mut self.stream, &mut self.unread).await;
    }

    async fn prompt(&mut self, number: usize, prompt: &str) {
        let params = json!({"sessionId": self.name, "prompt": prompt});
        self.send(&request(format!("{number:i>250}"), "session.send", &params)).await;
    }

    /// Requests that name no session.
    async fn many(&mut self, count: usize, method: &str) {
        for n in 0..count {
            self.send(&request(format!("{n:i>250}"), method, &json!({}))).await;
        }
    }

    /// Requests about as many sessions with long names.
    async fn about_many(&mut self, count: usize, method: &str, kind: &str) {
        for n in 0..count {
            let session = format!("{kind}-{}-{n:x>220}", self.name);
            let params = json!({"sessionId": session, "prompt": "nothing"});
            self.send(&request(format!("{n:i>250}"), method, &params)).await;
        }
    }

    /// A frame that does not end.
    async fn begin(&mut self, method: &str, bytes: usize) {
        let body =
            format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{{"a":"{}"#, "x".repeat(bytes));
        self.send(format!("Content-Length: {}\r\n\r\n{body}", body.len() + 10).as_bytes()).await;
    }

    /// Takes what it is told, and answers nothing.
    async fn read_on(&mut self) {
        let mut read = vec![0; 64 * 1024];
        while self.stream.read(&mut read).await.is_ok_and(|read| read > 0) {}
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// A frame begins and does not end.
    Begun(usize),
    /// All the state there may be, and a frame that has begun.
    State,
    /// Requests of long ids about sessions with long names, which nobody answers.
    Unanswered,
    /// The same about one session, and a server that asks; then a frame that has begun.
    Together,
    /// Refusals that it does not read.
    Refused,
    /// Events of its server that it does not read.
    Events,
    /// Requests to a server that reads nothing.
    Unread,
    /// Requests of its server that it reads and does not answer.
    Asked,
    /// The same, and an answer that has begun, beside requests that nobody answers.
    AskedAndBegun,
    /// Sessions that a silent server may have.
    Placing,
    /// Sessions for a server that says nothing to what it is told of the client.
    Greeting,
    /// Sessions that servers name, and do not.
    Births,
    /// Requests to a server that reads nothing, of a client that has closed its side.
    HalfClosed,
}

impl Attack {
    /// What shows that it has had its way: a metric, and by how much it is larger then for each client.
    fn shows(self, routing: &str) -> (&'static str, usize) {
        match (self, routing) {
            (Self::Begun(bytes), _) => (HELD, bytes.min(50_000)),
            (Self::State, "session") => (HELD, 120_000),
            (Self::Unanswered | Self::Together | Self::AskedAndBegun | Self::Births, _) => (HELD, 100_000),
            (Self::Placing, "connection") => (HELD, 20_000),
            (Self::Placing | Self::Greeting, _) => (HELD, 80_000),
            (Self::Refused, _) => (HELD, 16_000),
            (Self::Asked, _) => (HELD, 60_000),
            (Self::Unread | Self::HalfClosed, "session") => (HELD, 60_000),
            (Self::Unread | Self::HalfClosed, _) => (TO_BACKENDS, 60_000),
            (Self::State | Self::Events, _) => (TO_CLIENTS, 10),
        }
    }

    async fn play(self, mut client: Hostile) {
        self.act(&mut client).await;
        // It stays.
        std::future::pending::<()>().await;
    }

    async fn act(self, client: &mut Hostile) {
        if let Self::Begun(bytes) = self {
            return client.begin("connect", bytes).await;
        }
        let state = match self {
            Self::State | Self::Together => "x".repeat(60_000),
            Self::Greeting => "silent".to_owned(),
            _ => String::new(),
        };
        client.call("connect", json!({"x": state})).await;
        if !matches!(self, Self::Births | Self::Refused | Self::Placing | Self::Greeting) {
            client.call("session.create", json!({"sessionId": client.name})).await;
        }
        match self {
            Self::Begun(_) => {}
            Self::State => {
                client.call("plugins.builtin.set", json!({"x": "x".repeat(60_000)})).await;
                client.begin("session.send", 60_000).await;
            }
            Self::Unanswered => client.about_many(260, "session.send", "u").await,
            Self::Placing => client.about_many(200, "session.resume", "silent").await,
            Self::Greeting => client.about_many(200, "session.create", "g").await,
            Self::Together => {
                for n in 0..300 {
                    client.prompt(n, "nothing").await;
                }
                client.prompt(300, "ask").await;
                client.begin("session.send", 120_000).await;
            }
            Self::Refused => client.many(700, "runtime.shutdown").await,
            Self::Events => client.prompt(0, "events").await,
            Self::Unread | Self::HalfClosed => {
                client.prompt(0, "stop").await;
                for n in 1..8 {
                    client.prompt(n, &"x".repeat(60_000)).await;
                }
                if self == Self::HalfClosed {
                    client.stream.shutdown().await.unwrap();
                }
            }
            Self::Asked => {
                client.prompt(0, "ask").await;
                client.read_on().await;
            }
            Self::AskedAndBegun => {
                for n in 0..500 {
                    client.prompt(n, "nothing").await;
                }
                client.prompt(500, "begin").await;
                client.read_on().await;
            }
            Self::Births => client.many(300, "session.create").await,
        }
    }
}

/// A value in KiB of the process's status.
fn status(process: &Process, name: &str) -> usize {
    let status = fs::read_to_string(process.proc("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// What has been resident at most since the last call, in KiB, without what is mapped from files: its program.
fn peak(process: &Process) -> usize {
    let all = status(process, "VmHWM");
    fs::write(process.proc("clear_refs"), "5").unwrap();
    all.saturating_sub(status(process, "RssFile"))
}

/// Waits until nothing moves any more: every client has sent all it wants to or is not read, and nothing is carried.
async fn quiet(process: &Process, moved: &AtomicU64) {
    let (mut before, mut looks) = (None, 0);
    while looks < QUIET_LOOKS {
        let (_, text) = soon(process.try_get("/metrics")).await.unwrap();
        let told = |line: &&str| line.starts_with("sessile_relayed_bytes") || line.starts_with(HELD);
        let now: Vec<String> = text.lines().filter(told).map(str::to_owned).collect();
        let now = Some((moved.load(Relaxed), now));
        looks = if now == before { looks + 1 } else { 0 };
        before = now;
    }
}

/// Plays an attack with so many clients, which then go: what the process has taken at most, and what
/// servers' large frames take of it, in KiB.
async fn played(process: &Process, routing: &str, attack: Attack, clients: usize) -> (usize, usize) {
    peak(process);
    let (metric, least) = attack.shows(routing);
    let before = process.metric(metric).await;
    let moved = Arc::new(AtomicU64::new(0));
    let mut playing = JoinSet::new();
    for n in 0..clients {
        let socket = TcpSocket::new_v4().unwrap();
        narrow(&SockRef::from(&socket));
        let stream = socket.connect(process.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (unread, moved, name) =
            (BytesMut::new(), Arc::clone(&moved), format!("{attack:?}-{clients}-{n}"));
        playing.spawn(attack.play(Hostile { stream, unread, name, moved }));
    }
    let least = f64::from(u32::try_from(least * clients).unwrap());
    process.until_metric(metric, |now| now - before >= least).await;
    quiet(process, &moved).await;
    let frames = process.metric(FRAMES).await as usize / 1024;
    let taken = peak(process);
    assert!(frames <= FRAMES_KIB, "{attack:?}: {frames} KiB of frames");
    playing.shutdown().await;
    (taken, frames)
}

/// Each attack on a process of its own: nothing of one is left for the next.
async fn hold_out(routing: &str, attacks: &[Attack]) {
    for attack in attacks {
        let opened = Arc::default();
        // Each placing asks all of them.
        let count = if *attack == Attack::Placing { 12 } else { 2 };
        let servers: Vec<Server> = (0..count).map(|_| Server::start(&opened)).collect();
        let text = servers
            .iter()
            .enumerate()
            .fold(Text::new(), |text, (n, server)| text.backend(&format!("n{n}"), server.address));
        let text = text
            .listener("routing", format!("\"{routing}\""))
            .set("timeouts.opening", "\"1m\"")
            .set("timeouts.locate", "\"20s\"")
            .set("timeouts.rehome", "\"30s\"")
            .set("limits.opening_bytes", format!("\"{OPENING_KIB}KiB\""))
            .set("placement.storage", "\"shared\"");
        let process = Process::start(&text).await;
        // What the process needs once, however many clients come.
        played(&process, routing, *attack, 2).await;
        let baseline = status(&process, "RssAnon");
        let before = opened.load(Relaxed);
        let (taken, frames) = played(&process, routing, *attack, CLIENTS).await;
        let taken = taken.saturating_sub(baseline);
        let sessions = usize::try_from(opened.load(Relaxed) - before).unwrap();
        let shared = frames + sessions * SESSION_BYTES / 1024;
        println!(
            "{routing}, {attack:?}: {} KiB each, of which {} are shared",
            taken / CLIENTS,
            shared / CLIENTS
        );
        let most = CLIENTS * EACH_KIB + LARGE_KIB + shared;
        assert!(taken <= most, "{routing}, {attack:?}: {taken} KiB, and not {most}");
    }
}

#[test]
fn hostile_clients_by_session_take_so_much_memory_and_no_more() {
    use Attack::{
        Asked, AskedAndBegun, Births, Events, Greeting, HalfClosed, Placing, Refused, State, Together,
        Unanswered, Unread,
    };
    let attacks = [
        Events,
        Unread,
        HalfClosed,
        Asked,
        AskedAndBegun,
        State,
        Unanswered,
        Together,
        Refused,
        Placing,
        Greeting,
        Births,
    ];
    alone(hold_out("session", &attacks));
}

#[test]
fn hostile_clients_by_connection_take_so_much_memory_and_no_more() {
    use Attack::{Begun, Events, HalfClosed, Placing, State, Unread};
    let attacks = [Begun(OPENING_KIB * 1000), Begun(60_000), State, Events, Unread, HalfClosed, Placing];
    alone(hold_out("connection", &attacks));
}
