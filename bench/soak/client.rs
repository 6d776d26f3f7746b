//! One connection of a client. Whatever it waits for has a deadline: a request without an answer is a fault.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::frame;
use crate::world::{Counts, World, letters};

/// For one answer. Servers answer at once, so whatever takes this long hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a client gets instead of an answer.
#[derive(Debug)]
pub enum Loss {
    /// The connection ended, or never was.
    Closed(&'static str),
    /// An error of the balancer or of a server.
    Refused(String),
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed(when) => write!(f, "closed while {when}"),
            Self::Refused(error) => write!(f, "refused with {error}"),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    world: Arc<World>,
    stream: TcpStream,
    unread: BytesMut,
    next_id: u64,
    opened: Instant,
    /// Servers this connection is on, as far as answers told.
    pub homes: Vec<usize>,
    /// Events that are still to come, by stream.
    events: HashMap<u64, (u64, usize)>,
}

impl Client {
    /// Connects; with `hello` it also introduces itself, as SDKs do.
    pub async fn open(world: &Arc<World>, address: SocketAddr, hello: bool) -> Result<Self, Loss> {
        let stream = TcpStream::connect(address).await.map_err(|_| Loss::Closed("connecting"))?;
        stream.set_nodelay(true).map_err(|_| Loss::Closed("connecting"))?;
        Counts::add(&world.counts.connections, 1);
        let mut client = Self {
            world: Arc::clone(world),
            stream,
            unread: BytesMut::new(),
            next_id: 0,
            opened: Instant::now(),
            homes: Vec::new(),
            events: HashMap::new(),
        };
        if hello {
            client.call("connect", json!({"clientInfo": {"name": "soak"}})).await?;
        }
        Ok(client)
    }

    /// Creates or resumes a session; the turns it remembers.
    pub async fn attach(&mut self, method: &str, session: &str) -> Result<u64, Loss> {
        let opened = self.call(method, json!({"sessionId": session, "model": "m"})).await?;
        if let Some(home) = opened["server"].as_u64() {
            self.homes.push(usize::try_from(home).unwrap());
        }
        Ok(opened["turns"].as_u64().unwrap_or_default())
    }

    /// A turn with `events` of `size` letters; the turns the session remembers then.
    pub async fn turn(
        &mut self,
        session: &str,
        prompt: usize,
        events: u64,
        size: usize,
    ) -> Result<u64, Loss> {
        let stream = self.world.number();
        self.events.insert(stream, (0, size));
        let params = json!({
            "sessionId": session, "stream": stream, "events": events, "size": size, "length": prompt,
            "prompt": letters(stream, prompt),
        });
        let answer = self.call("session.send", params).await;
        let came = self.events.remove(&stream).map_or(0, |(came, _)| came);
        let answer = answer?;
        if came != events {
            self.world.fault(format!("{session}: {came} of {events} events arrived before the answer"));
        }
        Counts::add(&self.world.counts.bytes, prompt as u64 + events * size as u64);
        Ok(answer["turns"].as_u64().unwrap_or_default())
    }

    /// Has the server ask something back.
    pub async fn ask_back(&mut self, session: &str) -> Result<(), Loss> {
        let number = self.world.number();
        let answer = self.call("session.ask", json!({"sessionId": session, "letters": number})).await?;
        if answer["letters"] != letters(number, 64) {
            self.world.fault(format!("{session}: an answer to the server came back damaged"));
        }
        Ok(())
    }

    /// A request and its answer, or what came instead.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value, Loss> {
        let id = self.next_id;
        self.next_id += 1;
        Counts::add(&self.world.counts.requests, 1);
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let waiting = async {
            self.write(&request).await?;
            loop {
                let message = self.message().await?;
                if message.get("method").is_some() {
                    self.told(&message).await?;
                } else if message["id"] == id {
                    return Ok(message);
                } else {
                    self.world.fault(format!("{method} {id}: an answer to {} came", message["id"]));
                }
            }
        };
        let mut answer: Value = match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(answer) => answer?,
            Err(_) => {
                self.world.fault(format!("{method} was not answered, homes {:?}", self.homes));
                return Err(Loss::Closed("waiting"));
            }
        };
        if answer.get("error").is_some() {
            return Err(Loss::Refused(answer["error"].to_string()));
        }
        Ok(answer["result"].take())
    }

    /// What the server sends of its own accord.
    async fn told(&mut self, message: &Value) -> Result<(), Loss> {
        let params = &message["params"];
        if let Some(id) = message.get("id") {
            let result = json!({"letters": letters(params["letters"].as_u64().unwrap_or_default(), 64)});
            return self.write(&json!({"jsonrpc": "2.0", "id": id, "result": result})).await;
        }
        let event = &params["event"];
        if event["type"] == "soak" {
            let stream = event["stream"].as_u64().unwrap_or_default();
            let Some((came, size)) = self.events.get_mut(&stream) else {
                self.world.fault(format!("an event of stream {stream}, which is not this client's"));
                return Ok(());
            };
            let expected = letters(stream ^ (*came + 1).rotate_left(32), *size);
            if event["at"] != *came || event["letters"] != expected.as_str() {
                self.world.fault(format!("event {came} of stream {stream} arrived damaged or out of order"));
            }
            *came += 1;
        }
        Ok(())
    }

    async fn write(&mut self, message: &Value) -> Result<(), Loss> {
        let body = message.to_string();
        let text = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        self.stream.write_all(text.as_bytes()).await.map_err(|_| Loss::Closed("writing"))
    }

    async fn message(&mut self) -> Result<Value, Loss> {
        loop {
            if let Some(body) = frame(&mut self.unread) {
                return serde_json::from_slice(&body).map_err(|error| {
                    self.world.fault(format!("a frame to a client is no JSON: {error}"));
                    Loss::Closed("reading")
                });
            }
            match self.stream.read_buf(&mut self.unread).await {
                Ok(read) if read > 0 => {}
                _ => return Err(Loss::Closed("reading")),
            }
        }
    }

    /// Says nothing until `time` has passed or the connection ends, which is a loss.
    pub async fn idle(&mut self, time: Duration) -> Result<(), Loss> {
        let ended = async {
            loop {
                let message = match self.message().await {
                    Ok(message) => message,
                    Err(loss) => return loss,
                };
                if let Err(loss) = self.told(&message).await {
                    return loss;
                }
            }
        };
        match tokio::time::timeout(time, ended).await {
            Ok(loss) => Err(loss),
            Err(_) => Ok(()),
        }
    }

    /// A loss is a fault unless a kill explains it.
    pub fn lost(&self, who: &str, loss: &Loss) {
        Counts::add(&self.world.counts.losses, 1);
        if !self.world.explains(&self.homes, self.opened) {
            self.world.fault(format!("{who}, on {:?}: {loss}, and nothing was killed", self.homes));
        }
    }

    /// Ends as clients do: in order, half first, or abruptly.
    pub async fn close(mut self, how: u64) {
        match how % 3 {
            0 => {}
            1 => {
                let _ = self.stream.shutdown().await;
                let closed = async { while self.message().await.is_ok() {} };
                if tokio::time::timeout(PATIENCE, closed).await.is_err() {
                    self.world.fault("a half-close was not answered with a close");
                }
            }
            _ => {
                let _ = self.stream.set_zero_linger();
            }
        }
    }
}
