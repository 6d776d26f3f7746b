//! The load: clients that speak the protocol, on a thread of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::frame;

/// Clients of the closed loop.
const CLIENTS: u64 = 64;

static SESSION: AtomicU64 = AtomicU64::new(0);

/// What a scene does.
pub fn what(scene: &str) -> &'static str {
    match scene {
        "turn" => "64 pinned connections, 512 B request and answer",
        _ => "16 clients: open, first frame with a session, answer, close",
    }
}

/// Runs a scene; how much of its work was done.
pub fn run(scene: &str, target: SocketAddr, time: Duration) -> u64 {
    let done = Arc::new(AtomicU64::new(0));
    let turn = scene == "turn";
    runtime().block_on(async {
        let until = Instant::now() + time;
        let clients: Vec<_> = (0..if turn { CLIENTS } else { 16 })
            .map(|_| {
                let done = Arc::clone(&done);
                tokio::spawn(async move {
                    if turn {
                        exchange(target, until, &done).await
                    } else {
                        churn(target, until, &done).await
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
    });
    done.load(Ordering::Relaxed)
}

/// Pinned connections, for as long as they are held.
pub fn hold(target: SocketAddr, count: usize) -> (tokio::runtime::Runtime, Vec<Client>) {
    let runtime = runtime();
    let clients = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut client = Client::open(target).await;
            client.pin().await;
            clients.push(client);
        }
        clients
    });
    (runtime, clients)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn exchange(target: SocketAddr, until: Instant, done: &AtomicU64) {
    let mut client = Client::open(target).await;
    let session = client.pin().await;
    let filler = "y".repeat(400);
    while Instant::now() < until {
        client.call("session.send", &format!(r#"{{"sessionId":"{session}","prompt":"{filler}"}}"#)).await;
        done.fetch_add(1, Ordering::Relaxed);
    }
}

async fn churn(target: SocketAddr, until: Instant, done: &AtomicU64) {
    while Instant::now() < until {
        let mut client = Client::open(target).await;
        client.create().await;
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
    id: u64,
}

impl Client {
    async fn open(target: SocketAddr) -> Self {
        let stream = TcpStream::connect(target).await.expect("the target listens");
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new(), id: 0 }
    }

    /// `connect` and a session of its own.
    async fn pin(&mut self) -> String {
        self.call("connect", "{}").await;
        self.create().await
    }

    async fn create(&mut self) -> String {
        // A random UUID in form: nobody is asked for it.
        let number = SESSION.fetch_add(1, Ordering::Relaxed);
        let session = format!("00000000-0000-4000-8000-{number:012x}");
        self.call("session.create", &format!(r#"{{"sessionId":"{session}","model":"m"}}"#)).await;
        session
    }

    async fn call(&mut self, method: &str, params: &str) {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{},"method":"{method}","params":{params}}}"#, self.id);
        self.id += 1;
        let frame_bytes = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        self.stream.write_all(frame_bytes.as_bytes()).await.unwrap();
        loop {
            if let Some((body, used)) = frame(&self.unread) {
                assert!(
                    !body.windows(8).any(|word| word == b"\"error\":"),
                    "{}",
                    String::from_utf8_lossy(body)
                );
                self.unread.drain(..used);
                return;
            }
            assert!(self.stream.read_buf(&mut self.unread).await.unwrap() > 0, "the target hung up");
        }
    }
}
