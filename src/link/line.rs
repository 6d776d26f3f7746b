//! A standing connection to a backend: questions by their ids, and whose answer has come.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use serde_json::Value;
use tokio::sync::oneshot;

use super::frames::{Came, Passing, next_of_any_length};
use crate::fleet::{Answer, Ask, Backend};
use crate::net::Stream;
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
