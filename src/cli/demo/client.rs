//! A client that behaves like the SDKs: it connects, awaits every answer, and only then names its session.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::model::PROMPT;
use crate::frames::next_body;
use crate::wire::reply;

/// A limit for one answer, and for one turn: a server that has just started is slow.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection after `connect`.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    unread: BytesMut,
    next_id: u64,
}

impl Client {
    /// Connects and greets.
    pub(super) async fn connect(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
        let mut client = Self { stream, unread: BytesMut::new(), next_id: 0 };
        client.call("connect", &json!({})).await?;
        Ok(client)
    }

    /// One request and its result.
    pub(super) async fn call(&mut self, method: &str, params: &Value) -> Result<Value, String> {
        let id = self.send(method, params).await?;
        loop {
            let mut frame = self.next(method).await?;
            if frame.get("method").is_some() || frame.get("id").and_then(Value::as_u64) != Some(id) {
                continue;
            }
            return match frame.get("error") {
                Some(error) => Err(said(error)),
                None => Ok(frame.get_mut("result").map(Value::take).unwrap_or_default()),
            };
        }
    }

    /// One turn of a session this connection is attached to: what the server says.
    pub(super) async fn turn(&mut self, session: &str) -> Result<String, String> {
        const METHOD: &str = "session.send";
        let id = self.send(METHOD, &json!({ "sessionId": session, "prompt": PROMPT })).await?;
        let mut answer = String::new();
        loop {
            let frame = self.next(METHOD).await?;
            if frame.get("id").and_then(Value::as_u64) == Some(id)
                && let Some(error) = frame.get("error")
            {
                return Err(said(error));
            }
            let Some(event) = frame.pointer("/params/event") else { continue };
            let data =
                |key: &str| event.pointer(key).and_then(Value::as_str).map(str::to_owned).unwrap_or_default();
            match event.get("type").and_then(Value::as_str) {
                Some("assistant.message") => answer = data("/data/content"),
                Some("session.error") => return Err(data("/data/message")),
                Some("session.idle") => return Ok(answer),
                _ => {}
            }
        }
    }

    async fn send(&mut self, method: &str, params: &Value) -> Result<u64, String> {
        let id = self.next_id;
        self.next_id = id.saturating_add(1);
        let sent = self.stream.write_all(&reply::request(id, method, params)).await;
        sent.map(|()| id).map_err(|error| format!("{method}: {error}"))
    }

    async fn next(&mut self, method: &str) -> Result<Value, String> {
        let read = timeout(ANSWER_TIMEOUT, self.frame()).await;
        read.unwrap_or_else(|_| Err("no answer in time".into())).map_err(|error| format!("{method}: {error}"))
    }

    async fn frame(&mut self) -> Result<Value, String> {
        let body =
            next_body(&mut self.stream, &mut self.unread).await.map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => "the connection was closed".into(),
                _ => error.to_string(),
            })?;
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }
}

fn said(error: &Value) -> String {
    error.get("message").and_then(Value::as_str).unwrap_or("an error without a message").to_owned()
}
