//! A standing connection to a backend: questions by their ids, and whose answer has come.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use serde_json::Value;
use tokio::sync::oneshot;

use super::frames::{Came, Passing, next_of_any_length};
use crate::fleet::{Answer, Ask, Backend};
use crate::net::{self, Stream};
use crate::wire::{Envelope, reply};

/// The standing connection. It holds no lease: it must not keep a removed backend alive.
pub(super) struct Line {
    pub(super) backend: Arc<Backend>,
    pub(super) stream: Stream,
    pub(super) unread: BytesMut,
    pub(super) passing: Option<Passing>,
    pub(super) next_id: u64,
    pub(super) pending: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Line {
    /// A request and the id it got.
    pub(super) fn request(&mut self, method: &str, params: &Value) -> (u64, Vec<u8>) {
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        (id, reply::request(id, method, params))
    }

    /// The frame of a question whose answer will be handed on.
    pub(super) fn register(&mut self, ask: Ask) -> Vec<u8> {
        let (id, frame) = self.request(&ask.method, &ask.params);
        self.pending.insert(id, ask.answer);
        frame
    }

    pub(super) fn dispatch(&mut self, id: u64, answer: Answer) {
        if let Some(waiting) = self.pending.remove(&id) {
            self.backend.answered();
            // Who asked may have stopped waiting.
            drop(waiting.send(answer));
        }
        self.acknowledge();
    }

    /// An answer was too long to be taken: who waits for it gets none, and nobody else notices.
    pub(super) fn give_up(&mut self, answer: Option<&Envelope>) {
        tracing::warn!(backend = %self.backend.name(), "an answer to a question of sessile is too long to be taken");
        let id = answer.and_then(|answer| str::from_utf8(answer.id.as_ref()?.raw()).ok()?.parse().ok());
        if let Some(waiting) = id.and_then(|id: u64| self.pending.remove(&id)) {
            self.backend.answered();
            drop(waiting);
        }
    }

    /// What is waited for may be held back behind what has come ([`net::acknowledge`]).
    fn acknowledge(&self) {
        if !self.pending.is_empty() && self.unread.is_empty() {
            net::acknowledge(&self.stream);
        }
    }

    pub(super) async fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        self.stream.send(frames).await
    }

    /// Introduces itself and waits for the answer: only while nothing else is in flight.
    pub(super) async fn connect(&mut self, token: Option<&str>) -> io::Result<Answer> {
        let (id, frame) = (self.next_id, reply::connect(self.next_id, token));
        self.next_id = self.next_id.saturating_add(1);
        self.write(&frame).await?;
        loop {
            let (answered, answer) = self.next_answer().await?;
            if answered == id {
                return Ok(answer);
            }
        }
    }

    /// The next answer to a request of ours; everything else is dropped. Cancel-safe.
    pub(super) async fn next_answer(&mut self) -> io::Result<(u64, Answer)> {
        loop {
            let came = next_of_any_length(&mut self.stream, &mut self.unread, &mut self.passing).await?;
            let body = match came {
                Came::Body(body) => body,
                Came::TooLong(envelope) => {
                    self.give_up(envelope.as_ref());
                    continue;
                }
            };
            let mut frame: Value = serde_json::from_slice(&body)?;
            if frame.get("method").is_some() {
                self.acknowledge();
                continue;
            }
            let Some(id) = frame.get("id").and_then(Value::as_u64) else { continue };
            let answer = match frame.pointer("/error/code").and_then(Value::as_i64) {
                Some(code) => Answer::Error(code),
                None => Answer::Result(frame.get_mut("result").map(Value::take).unwrap_or_default()),
            };
            return Ok((id, answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::link::frames::next_body;
    use crate::metrics::Metrics;

    const ROUNDS: usize = 20;

    /// Answers every two questions with an event and two answers, each written on its own, with Nagle's algorithm on.
    async fn serve(mut stream: TcpStream) {
        let mut unread = BytesMut::new();
        loop {
            let mut frames =
                vec![reply::frame(br#"{"jsonrpc":"2.0","method":"session.lifecycle","params":{}}"#)];
            for _ in 0..2 {
                let Ok(asked) = next_body(&mut stream, &mut unread).await else { return };
                let asked: Value = serde_json::from_slice(&asked).unwrap();
                let answer = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": {} });
                frames.push(reply::frame(answer.to_string().as_bytes()));
            }
            for frame in frames {
                stream.write_all(&frame).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn an_answer_is_not_held_back_behind_what_came_before_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = Stream::Plain(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let (accepted, _) = listener.accept().await.unwrap();
        let serving = tokio::spawn(serve(accepted));
        let series = Metrics::new().unwrap().backend(&"cli-1".into());
        let (backend, _asked) = Backend::new("cli-1", "127.0.0.1:1", series);
        let (unread, pending) = (BytesMut::new(), HashMap::new());
        let mut line = Line { backend, stream, unread, passing: None, next_id: 0, pending };
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let mut frames = Vec::new();
            for _ in 0..2 {
                let (answer, _) = oneshot::channel();
                frames.extend(line.register(Ask { method: "ping".into(), params: json!({}), answer }));
            }
            line.write(&frames).await.unwrap();
            while !line.pending.is_empty() {
                let (id, answer) = line.next_answer().await.unwrap();
                line.dispatch(id, answer);
            }
            took.push(started.elapsed());
        }
        // Early ones the kernel may acknowledge at once by itself. A busy machine delays some, but not all.
        let fastest = took[ROUNDS / 2..].iter().min().unwrap();
        assert!(*fastest < Duration::from_millis(20), "an acknowledgement is put off for 40 ms: {took:?}");
        drop(line);
        serving.await.unwrap();
    }
}
