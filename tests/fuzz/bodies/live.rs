//! A whole balancer between a client and a server that both follow a script: any split, any interleaving of both
//! sides, bytes of any kind. Once for a connection with its opening and relay, once for the switch.
//!
//! What must hold: nothing panics, whatever is between the two; when both sides have ended, the connection ends at once;
//! what the switch sends its client is frames; and when it is over, nothing is left of it.
//!
//! The script: a first byte of flags, then steps of a kind, a length and so many bytes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use sessile::process::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Mutex as AsyncMutex;

/// Far beyond every deadline in the configuration.
const HANGS: Duration = Duration::from_secs(20);
/// Steps of one script.
const STEPS_MAX: usize = 64;

/// Everything that outlives one script.
struct Rig {
    runtime: Runtime,
    server: Server,
    listeners: [SocketAddr; 2],
    backend: Arc<Backend>,
    _folder: tempfile::TempDir,
}

/// The server of the script.
#[derive(Default)]
struct Backend {
    /// Whether requests are answered by themselves.
    answers: AtomicBool,
    accepted: AtomicUsize,
    /// The connections that belong to the script's client.
    links: AsyncMutex<Vec<OwnedWriteHalf>>,
}

static PANICKED: Mutex<Option<String>> = Mutex::new(None);

fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            *PANICKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(info.to_string());
            before(info);
        }));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (server, listeners, backend, folder) = runtime.block_on(start());
        Rig { runtime, server, listeners, backend, _folder: folder }
    })
}

async fn start() -> (Server, [SocketAddr; 2], Arc<Backend>, tempfile::TempDir) {
    let backend = Arc::new(Backend::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept(listener, Arc::clone(&backend)));
    let free: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let listeners: [SocketAddr; 2] = std::array::from_fn(|at| free[at].local_addr().unwrap());
    drop(free);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessile.toml");
    let [connection, session] = listeners;
    // One probe, and then never again: its connection is told from the script's by being first.
    let text = format!(
        "[[listener]]\naddress = '{connection}'\n[[listener]]\naddress = '{session}'\nrouting = 'session'\n\
         [admin]\naddress = '{}/admin'\n[health]\ninterval = '1h'\ntimeout = '5s'\n\
         [timeouts]\nopening = '300ms'\nconnect = '300ms'\nrehome = '300ms'\nlocate = '100ms'\nhalf_close = '300ms'\n\
         [[backend]]\nname = 'b'\naddress = '{address}'\n",
        folder.path().display()
    );
    std::fs::write(&path, text).unwrap();
    let server = Server::start(&path, sessile::config::load(&path).unwrap()).await.unwrap();
    server.reloader().balancer().until_probed().await;
    (server, listeners, backend, folder)
}

async fn accept(listener: TcpListener, backend: Arc<Backend>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (mut from, to) = stream.into_split();
        let first = backend.accepted.fetch_add(1, Ordering::AcqRel) == 0;
        let backend = Arc::clone(&backend);
        let mut own = Some(to);
        if !first {
            backend.links.lock().await.extend(own.take());
        }
        tokio::spawn(async move {
            let mut unread = Vec::new();
            while matches!(from.read_buf(&mut unread).await, Ok(read) if read > 0) {
                while let Some((body, used)) = frame(&unread) {
                    let answer = answer(body);
                    unread.drain(..used);
                    let Some(answer) = answer else { continue };
                    if let Some(to) = &mut own {
                        let _ = to.write_all(&answer).await;
                    } else if backend.answers.load(Ordering::Acquire) {
                        for to in &mut *backend.links.lock().await {
                            let _ = to.write_all(&answer).await;
                        }
                    }
                }
                if unread.len() > 1 << 20 {
                    unread.clear();
                }
            }
        });
    }
}

/// The frame at the front: its body, and where the next one begins.
fn frame(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let (name, value) = head.trim_end().split_once(':')?;
    let length: usize = value.trim().parse().ok().filter(|_| name.eq_ignore_ascii_case("content-length"))?;
    bytes.get(end..end.checked_add(length)?).map(|body| (body, end + length))
}

fn answer(body: &[u8]) -> Option<Vec<u8>> {
    let message: serde_json::Value = serde_json::from_slice(body).ok()?;
    let id = message.get("id").filter(|_| message.get("method").is_some())?;
    let result = serde_json::json!({"ok": true, "protocolVersion": 3, "version": "f", "sessionId": "born"});
    let body = serde_json::json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string();
    Some(format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

enum Step<'a> {
    Client(&'a [u8]),
    Backend(&'a [u8]),
    /// Waits until some bytes have come to the client, or for a moment.
    Rest,
    BackendCloses,
    ClientCloses,
}

fn steps(mut bytes: &[u8]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    while let [kind, length, rest @ ..] = bytes {
        let (part, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = rest;
        steps.push(match kind % 8 {
            0..=3 => Step::Client(part),
            4 | 5 => Step::Backend(part),
            6 => Step::Rest,
            _ if part.len() % 2 == 0 => Step::BackendCloses,
            _ => Step::ClientCloses,
        });
        if steps.len() == STEPS_MAX {
            break;
        }
    }
    steps
}

pub fn connection(bytes: &[u8]) {
    run(0, bytes);
}

pub fn switch(bytes: &[u8]) {
    run(1, bytes);
}

/// What the switch makes of whole frames that a server sends as it likes: each byte is a frame of either side. The client
/// gets whole frames, one answer at most to each of its requests and none to anything else, and no event about a stranger.
pub fn answers(bytes: &[u8]) {
    let (mut script, mut asked) = (Vec::new(), 0);
    for byte in bytes.iter().take(STEPS_MAX) {
        let (of_client, body) = spoken(*byte, &mut asked);
        let mut bytes = format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body.as_bytes());
        script.push((of_client, bytes));
    }
    let steps: Vec<Step<'_>> = script
        .iter()
        .flat_map(|(of_client, bytes)| {
            [if *of_client { Step::Client(bytes) } else { Step::Backend(bytes) }, Step::Rest]
        })
        .collect();
    let received = finish(|rig| play(rig, 1, 0, &steps));
    judge_frames(&received);
    let mut unanswered: Vec<usize> = (0..asked).collect();
    let mut rest = received.as_slice();
    while let Some((body, used)) = frame(rest) {
        let message: serde_json::Value = serde_json::from_slice(body).unwrap();
        rest = &rest[used..];
        if message.get("method").is_none() {
            let at = unanswered.iter().position(|id| message["id"] == *id);
            unanswered.remove(at.unwrap_or_else(|| panic!("nobody waits for {message}")));
        }
        assert_ne!(message["params"]["sessionId"], "stranger", "{message}");
    }
}

/// The frame that a byte stands for, and whether it is the client's.
fn spoken(byte: u8, asked: &mut usize) -> (bool, String) {
    let id = usize::from(byte >> 4);
    let mut ask = |rest: &str| {
        *asked += 1;
        (true, format!(r#"{{"jsonrpc":"2.0","id":{},{rest}}}"#, *asked - 1))
    };
    let text = if byte & 16 == 0 { String::new() } else { "x".repeat(70_000) };
    let sent = |rest: String| (false, format!(r#"{{"jsonrpc":"2.0",{rest}}}"#));
    match byte & 15 {
        0 => ask(r#""method":"session.create","params":{"sessionId":"s"}"#),
        1 => ask(r#""method":"session.create","params":{}"#),
        2 => ask(r#""method":"session.send","params":{"sessionId":"s"}"#),
        3 => ask(r#""method":"status.get","params":{}"#),
        4 | 5 => sent(format!(r#""id":{id},"result":{{"x":"{text}"}}"#)),
        6 => sent(format!(r#""id":{id},"result":{{"sessionId":"born"}}"#)),
        7 => sent(format!(r#""result":{{"sessionId":"born","x":"{text}"}},"id":{id}"#)),
        8 => sent(format!(r#""id":{id},"error":{{"code":1,"message":"m"}}"#)),
        9 => sent(r#""id":null,"error":{"code":-32600,"message":"m"}"#.into()),
        10 => {
            sent(format!(r#""method":"session.lifecycle","params":{{"sessionId":"stranger","x":"{text}"}}"#))
        }
        11 => sent(r#""method":"session.lifecycle","params":{"sessionId":"born"}"#.into()),
        12 => sent(format!(r#""method":"tool.call","params":{{"x":"{text}"}},"id":{id}"#)),
        13 => sent(format!(r#""method":"session.event","params":{{"sessionId":"s","x":"{text}"}}"#)),
        14 => sent(format!(r#""id":{id},"result":{{}},"method":"tool.call""#)),
        _ => (true, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#)),
    }
}

fn run(listener: usize, bytes: &[u8]) {
    let Some((flags, script)) = bytes.split_first() else { return };
    let steps = steps(script);
    let received = finish(|rig| play(rig, listener, *flags, &steps));
    let is_cut = steps.iter().any(|step| matches!(step, Step::Backend(_)));
    if listener == 1 && !is_cut {
        judge_frames(&received);
    }
}

/// Plays to the end; what the client received.
fn finish<'r, F: Future<Output = Vec<u8>>>(play: impl FnOnce(&'r Rig) -> F) -> Vec<u8> {
    let rig = rig();
    let over = rig.runtime.block_on(async { tokio::time::timeout(HANGS, play(rig)).await });
    let panicked = PANICKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    assert!(panicked.is_none(), "something panicked: {panicked:?}");
    over.unwrap_or_else(|_| panic!("a connection of which both sides have ended does not end"))
}

async fn play(rig: &Rig, listener: usize, flags: u8, steps: &[Step<'_>]) -> Vec<u8> {
    let Rig { backend, server, .. } = rig;
    backend.answers.store(flags & 1 == 1, Ordering::Release);
    let stream = TcpStream::connect(rig.listeners[listener]).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut from, mut to) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        while matches!(from.read_buf(&mut all).await, Ok(read) if read > 0) {}
        all
    });
    for step in steps {
        match step {
            Step::Client(bytes) => {
                let _ = to.write_all(bytes).await;
            }
            Step::Backend(bytes) => {
                for link in &mut *backend.links.lock().await {
                    let _ = link.write_all(bytes).await;
                }
            }
            Step::Rest => tokio::time::sleep(Duration::from_millis(1)).await,
            Step::BackendCloses => backend.links.lock().await.clear(),
            Step::ClientCloses => {
                let _ = to.shutdown().await;
            }
        }
        tokio::task::yield_now().await;
    }
    let _ = to.shutdown().await;
    backend.answers.store(false, Ordering::Release);
    let metrics = &server.reloader().balancer().metrics;
    let mut since = Instant::now();
    while !reading.is_finished() || !server.reloader().balancer().tasks.is_empty() {
        // Links that were dialled meanwhile end as well.
        backend.links.lock().await.clear();
        tokio::time::sleep(Duration::from_micros(200)).await;
        if since.elapsed() > HANGS / 2 {
            since = Instant::now();
            eprintln!("still open: {} tasks", server.reloader().balancer().tasks.len());
        }
    }
    let received = reading.await.unwrap();
    assert_eq!((metrics.owners.get(), metrics.openings_active.get()), (0, 0), "something is left");
    assert_eq!(metrics.requests_in_flight.get(), 0, "a request is left");
    received
}

/// What the switch sends when its servers send frames: frames, and nothing else.
fn judge_frames(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let Some((body, used)) = frame(bytes) else {
            panic!("no whole frame: {:?}", String::from_utf8_lossy(bytes));
        };
        // As JSON has it, where half a surrogate pair is a string as well.
        let is_json = |text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        assert!(body.starts_with(b"{") && str::from_utf8(body).is_ok_and(is_json), "{body:?}");
        bytes = &bytes[used..];
    }
}
