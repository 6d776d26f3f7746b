//! Servers that do what a prompt says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::BytesMut;
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::wire::next_body;
use crate::harness::*;

/// Small enough to keep send buffers small, which grow by segments.
const SEGMENT_BYTES: u32 = 1400;

/// A server.
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Counts the sessions that it opens.
    pub fn start(opened: &Arc<AtomicU64>) -> Self {
        let opened = Arc::clone(opened);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        narrow(&SockRef::from(&socket));
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(1024).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                served.spawn(serve(stream, Arc::clone(&opened)));
            }
        });
        Self { address, task }
    }
}

/// Keeps what the kernel holds small.
pub fn narrow(socket: &SockRef<'_>) {
    socket.set_tcp_mss(SEGMENT_BYTES).unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
}

async fn serve(mut stream: TcpStream, opened: Arc<AtomicU64>) {
    stream.set_nodelay(true).unwrap();
    let mut unread = BytesMut::new();
    while let Some(body) = next_body(&mut stream, &mut unread).await {
        let body: Value = serde_json::from_slice(&body).unwrap();
        let (id, session) = (&body["id"], body["params"]["sessionId"].as_str().unwrap_or_default());
        let method = body["method"].as_str().unwrap_or_default();
        let prompt = body["params"]["prompt"].as_str().unwrap_or_default();
        let is_own = id.as_str().is_some_and(|id| id.starts_with("sessile-"));
        let result = match (method, prompt) {
            ("connect", _) if is_own && body["params"]["x"] == "silent" => continue,
            ("connect", _) => json!({"ok": true, "protocolVersion": 3, "version": "1"}),
            ("session.metadata.isProcessing", _) if session.starts_with("silent") => continue,
            ("session.metadata.isProcessing", _) => Value::Null,
            ("session.create", _) if session.is_empty() => continue,
            (_, "nothing") => continue,
            (_, "stop") => std::future::pending().await,
            (_, "events" | "ask" | "begin") => return flood(stream, session, prompt, id).await,
            _ => {
                opened.fetch_add(u64::from(matches!(method, "session.create" | "session.resume")), Relaxed);
                json!({"sessionId": session})
            }
        };
        let answer = match result {
            Value::Null => {
                let message = format!("Session not found for sessionId: {session}");
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32603, "message": message}})
            }
            result => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        };
        if stream.write_all(&frame(answer.to_string())).await.is_err() {
            return;
        }
    }
}

/// Sends without end: events, or requests of long ids. Or the beginning of an answer.
async fn flood(mut stream: TcpStream, session: &str, what: &str, id: &Value) {
    if what == "begin" {
        let whole = json!({"jsonrpc": "2.0", "id": id, "result": "a".repeat(60_000)}).to_string();
        stream.write_all(&frame(&whole)[..50_000]).await.unwrap();
        std::future::pending().await
    }
    for n in 0_u64.. {
        let sent = if what == "events" {
            let event = json!({"type": "assistant.message", "data": {"content": "e".repeat(60_000)}});
            note("session.event", &json!({"sessionId": session, "event": event}))
        } else {
            let id = format!("{n:q>250}");
            let params = json!({"sessionId": session, "requestId": id, "toolName": "t", "arguments": "a"});
            request(id, "tool.call", &params)
        };
        if stream.write_all(&sent).await.is_err() {
            return;
        }
    }
}
