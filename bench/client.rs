//! One client connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::frame;

static SESSION: AtomicU64 = AtomicU64::new(0);

/// A connection and what came over it.
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
    id: u64,
    session: String,
}

impl Client {
    pub async fn open(target: SocketAddr) -> Self {
        let stream = TcpStream::connect(target).await.expect("the target listens");
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new(), id: 0, session: String::new() }
    }

    /// A connection that has said `connect` and has a session of its own.
    pub async fn pinned(target: SocketAddr) -> Self {
        let mut client = Self::open(target).await;
        client.connect().await;
        client.create().await;
        client
    }

    pub async fn connect(&mut self) {
        self.call("connect", r#"{"supportedTaskKinds":["agent","client","shell"]}"#).await;
    }

    pub async fn create(&mut self) {
        // A random UUID in form: unless told to ask always, a balancer asks nobody for it.
        let number = SESSION.fetch_add(1, Ordering::Relaxed);
        self.session = format!("00000000-0000-4000-8000-{number:012x}");
        let params = format!(r#"{{"sessionId":"{}","model":"m"}}"#, self.session);
        self.call("session.create", &params).await;
    }

    /// Some 512 bytes there and back.
    pub async fn send_turn(&mut self) {
        let params = format!(r#"{{"sessionId":"{}","prompt":"{:y<372}"}}"#, self.session, "");
        self.call("session.send", &params).await;
    }

    /// Sixteen bytes that are the beginning of no frame anybody reads.
    pub async fn nudge(&mut self) {
        self.stream.write_all(b"Content-Length: ").await.unwrap();
    }

    /// Asks for `frames` frames and counts the bytes that come.
    pub async fn stream(&mut self, frames: usize, frame_bytes: usize) -> u64 {
        let params = format!(r#"{{"sessionId":"{}","frames":{frames},"bytes":{frame_bytes}}}"#, self.session);
        self.send("bench.stream", &params).await;
        let mut left = frames * frame_bytes;
        self.unread.resize(256 << 10, 0);
        while left > 0 {
            let read = self.stream.read(&mut self.unread).await.unwrap();
            assert!(read > 0, "the target hung up");
            left = left.checked_sub(read).expect("no more bytes than were asked for");
        }
        self.unread.clear();
        (frames * frame_bytes) as u64
    }

    /// Closes as SDKs do: FIN, then the other side's.
    pub async fn close(mut self) {
        self.stream.shutdown().await.unwrap();
        while self.stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
    }

    async fn send(&mut self, method: &str, params: &str) {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{},"method":"{method}","params":{params}}}"#, self.id);
        self.id += 1;
        let bytes = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    async fn call(&mut self, method: &str, params: &str) {
        self.send(method, params).await;
        loop {
            if let Some((body, used)) = frame(&self.unread) {
                let fine = memchr::memmem::find(body, b"\"error\":").is_none();
                assert!(fine, "{}", String::from_utf8_lossy(body));
                self.unread.drain(..used);
                return;
            }
            assert!(self.stream.read_buf(&mut self.unread).await.unwrap() > 0, "the target hung up");
        }
    }
}
