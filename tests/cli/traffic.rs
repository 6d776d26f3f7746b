//! Clients of a process of its own: some that come and go without end, some that stay and check every byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use sessile::wire::reply;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// A client.
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
    id: u64,
}

impl Client {
    /// Connects and introduces itself.
    pub async fn start(address: SocketAddr) -> std::io::Result<Self> {
        let mut client = Self { stream: TcpStream::connect(address).await?, unread: Vec::new(), id: 0 };
        client.call("connect", json!({})).await?;
        Ok(client)
    }

    /// Sends a request; its result.
    pub async fn call(&mut self, method: &str, params: Value) -> std::io::Result<Value> {
        self.id += 1;
        self.stream.write_all(&reply::request(self.id, method, &params)).await?;
        loop {
            let frame = self.frame().await?;
            if frame["id"] == self.id && frame.get("method").is_none() {
                let result = frame.get("result").cloned();
                return result.ok_or_else(|| std::io::Error::other(frame.to_string()));
            }
        }
    }

    /// Creates a session.
    pub async fn create(&mut self, session: &str) -> std::io::Result<Value> {
        self.call("session.create", json!({ "sessionId": session })).await
    }

    async fn frame(&mut self) -> std::io::Result<Value> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                let head = std::str::from_utf8(&self.unread[..at]).unwrap();
                let length: usize = head.strip_prefix("Content-Length: ").unwrap().parse().unwrap();
                if self.unread.len() >= at + 4 + length {
                    let frame: Vec<u8> = self.unread.drain(..at + 4 + length).collect();
                    return Ok(serde_json::from_slice(&frame[at + 4..])?);
                }
            }
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// What all clients of a test have in common.
#[derive(Default)]
pub struct Traffic {
    stop: AtomicBool,
    /// Connections that were opened, served and closed.
    pub opened: AtomicUsize,
    /// Exchanges of those that stay.
    pub exchanged: AtomicUsize,
    numbers: AtomicUsize,
}

impl Traffic {
    /// Ends every client after its exchange at hand.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Opens one connection after another, each with a session of its own; fails with the first that is not served.
    pub fn open_and_close(self: &Arc<Self>, address: SocketAddr) -> JoinHandle<std::io::Result<()>> {
        let traffic = Arc::clone(self);
        tokio::spawn(async move {
            while traffic.goes_on() {
                let number = traffic.numbers.fetch_add(1, Ordering::Relaxed);
                let mut client = Client::start(address).await?;
                client.create(&format!("short-{number}")).await?;
                traffic.opened.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    /// Sends bytes that nobody can guess on one connection, and compares what comes back.
    pub fn stay(self: &Arc<Self>, mut client: Client) -> JoinHandle<std::io::Result<Client>> {
        let traffic = Arc::clone(self);
        tokio::spawn(async move {
            let mut state = 1_u64;
            while traffic.goes_on() {
                // A linear congruential generator: cheap, and never the same twice.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let length = usize::try_from(state >> 50).unwrap();
                let text: String = (0..length)
                    .map(|at| char::from(b'a' + u8::try_from((state >> (at % 56)) & 15).unwrap()))
                    .collect();
                let pong = client.call("ping", json!({ "message": text })).await?;
                assert_eq!(pong["message"].as_str().map(|said| said.ends_with(&text)), Some(true));
                traffic.exchanged.fetch_add(1, Ordering::Relaxed);
            }
            Ok(client)
        })
    }
}
