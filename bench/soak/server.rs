//! The servers: what the balancer needs of a CLI server, and turns whose every letter is known beforehand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::world::{SERVERS, World, letters};

/// What a slow server takes for an answer; shorter than the balancer's patience.
const SLOW: Duration = Duration::from_millis(100);

/// Starts all servers on a thread of their own.
pub fn start(world: &Arc<World>) -> Vec<SocketAddr> {
    let (sender, started) = std::sync::mpsc::channel();
    let world = Arc::clone(world);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for server in 0..SERVERS {
                // Bound and never listening: it keeps the port while the server is dead.
                let reserved = TcpSocket::new_v4().unwrap();
                reserved.set_reuseaddr(true).unwrap();
                reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
                sender.send(reserved.local_addr().unwrap()).unwrap();
                tokio::spawn(live(Arc::clone(&world), server, reserved));
            }
            std::future::pending::<()>().await;
        });
    });
    (0..SERVERS).map(|_| started.recv().unwrap()).collect()
}

/// One life after the other.
async fn live(world: Arc<World>, server: usize, reserved: TcpSocket) {
    let address = reserved.local_addr().unwrap();
    let mut up = world.up[server].subscribe();
    loop {
        up.wait_for(|up| *up).await.unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        loop {
            let accepted = tokio::select! {
                _ = up.wait_for(|up| !*up) => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else { continue };
            let mut up = up.clone();
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let mut connection = Connection::new(&world, server);
                let (mut stream, reset) = (stream, connection.number.is_multiple_of(2));
                tokio::select! {
                    () = connection.serve(&mut stream) => {}
                    _ = up.wait_for(|up| !*up) => if reset { let _ = stream.set_zero_linger(); },
                }
            });
        }
    }
}

struct Connection {
    world: Arc<World>,
    server: usize,
    number: u64,
    sessions: Vec<String>,
    /// Requests of clients that wait for an answer of the client.
    asked: HashMap<u64, Value>,
    next_id: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        for session in &self.sessions {
            self.world.detach(session, self.server, self.number);
        }
    }
}

impl Connection {
    fn new(world: &Arc<World>, server: usize) -> Self {
        let number = world.number();
        Self {
            world: Arc::clone(world),
            server,
            number,
            sessions: Vec::new(),
            asked: HashMap::new(),
            next_id: 1,
        }
    }

    async fn serve(&mut self, stream: &mut TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut unread = BytesMut::new();
        loop {
            while let Some(body) = frame(&mut unread) {
                let Ok(message) = serde_json::from_slice::<Value>(&body) else {
                    self.world.fault(format!("server {}: a frame is no JSON", self.server));
                    return;
                };
                if self.world.slow.load(Ordering::Relaxed) {
                    tokio::time::sleep(SLOW).await;
                }
                if self.message(stream, &message).await.is_err() {
                    return;
                }
            }
            if !matches!(stream.read_buf(&mut unread).await, Ok(read) if read > 0) {
                return;
            }
        }
    }

    async fn message(&mut self, stream: &mut TcpStream, message: &Value) -> std::io::Result<()> {
        let Some(method) = message["method"].as_str() else {
            let waiting = message["id"].as_u64().and_then(|id| self.asked.remove(&id));
            let Some(id) = waiting else {
                self.world.fault(format!("server {}: an answer to nothing: {}", self.server, message["id"]));
                return Ok(());
            };
            return write(stream, &json!({"jsonrpc": "2.0", "id": id, "result": message["result"]})).await;
        };
        let params = &message["params"];
        let session = params["sessionId"].as_str().unwrap_or_default();
        let answer = match method {
            "connect" => json!({"ok": true, "protocolVersion": 3, "version": "soak"}),
            "ping" => json!({"message": "pong", "protocolVersion": 3}),
            "session.metadata.isProcessing" if self.world.is_live(session, self.server) => {
                json!({"processing": false})
            }
            "session.create" | "session.resume" => match self.open(method, session) {
                Some(opened) => opened,
                None => return self.deny(stream, &message["id"], session).await,
            },
            "session.send" if self.sessions.iter().any(|own| own == session) => {
                self.turn(stream, session, params).await?
            }
            "session.ask" => {
                let id = self.next_id;
                self.next_id += 1;
                self.asked.insert(id, message["id"].clone());
                let params = json!({"sessionId": session, "letters": params["letters"]});
                return write(
                    stream,
                    &json!({"jsonrpc": "2.0", "id": id, "method": "tool.call", "params": params}),
                )
                .await;
            }
            "session.detach" => {
                self.sessions.retain(|own| own != session);
                self.world.detach(session, self.server, self.number);
                json!({"success": true})
            }
            "session.delete" => {
                self.world.disk.lock().unwrap().remove(session);
                json!({"success": true})
            }
            "session.getMetadata" => json!({}),
            _ => return self.deny(stream, &message["id"], session).await,
        };
        if message.get("id").is_none() {
            return Ok(());
        }
        write(stream, &json!({"jsonrpc": "2.0", "id": message["id"], "result": answer})).await
    }

    async fn deny(&self, stream: &mut TcpStream, id: &Value, session: &str) -> std::io::Result<()> {
        let error = json!({"code": -32603, "message": format!("Session not found for sessionId: {session}")});
        write(stream, &json!({"jsonrpc": "2.0", "id": id, "error": error})).await
    }

    fn open(&mut self, method: &str, session: &str) -> Option<Value> {
        let turns = {
            let mut disk = self.world.disk.lock().unwrap();
            match disk.get(session) {
                Some(turns) => *turns,
                None if method == "session.create" => *disk.entry(session.to_owned()).or_default(),
                None => return None,
            }
        };
        self.world.attach(session, self.server, self.number);
        if !self.sessions.iter().any(|own| own == session) {
            self.sessions.push(session.to_owned());
        }
        Some(json!({"sessionId": session, "server": self.server, "turns": turns}))
    }

    /// Looks at every letter of the prompt and sends as many events as it asks for.
    async fn turn(&self, stream: &mut TcpStream, session: &str, params: &Value) -> std::io::Result<Value> {
        let number = |name: &str| params[name].as_u64().unwrap_or_default();
        let (stream_id, size) = (number("stream"), usize::try_from(number("size")).unwrap());
        let prompt = params["prompt"].as_str().unwrap_or_default();
        if prompt != letters(stream_id, prompt.len()) || number("length") != prompt.len() as u64 {
            self.world.fault(format!("server {}: a prompt of {session} arrived damaged", self.server));
        }
        let turns = {
            let mut disk = self.world.disk.lock().unwrap();
            let turns = disk.entry(session.to_owned()).or_default();
            *turns += 1;
            *turns
        };
        for at in 0..number("events") {
            let data = letters(stream_id ^ (at + 1).rotate_left(32), size);
            let event = json!({"type": "soak", "stream": stream_id, "at": at, "letters": data});
            let params = json!({"sessionId": session, "event": event});
            write(stream, &json!({"jsonrpc": "2.0", "method": "session.event", "params": params})).await?;
        }
        Ok(json!({"turns": turns}))
    }
}

async fn write(stream: &mut TcpStream, message: &Value) -> std::io::Result<()> {
    let body = message.to_string();
    stream.write_all(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await
}

/// The body of the frame at the front, once it is there.
pub fn frame(unread: &mut BytesMut) -> Option<BytesMut> {
    let end = memchr::memmem::find(unread, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&unread[..end]).ok()?;
    let length: usize = head.strip_prefix("Content-Length: ")?.trim_end().parse().ok()?;
    if unread.len() < end + length {
        return None;
    }
    unread.advance(end);
    Some(unread.split_to(length))
}
