//! The facts of PROTOCOL, held against the fake server over real sockets: one test for each rule.
//!
//! [`Peer`] is a client of its own making: it shares no framing with the fake server either.
#![expect(clippy::arithmetic_side_effects, reason = "a test may panic")]

mod faults;
mod protocol;
mod sessions;

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::*;

/// Long enough never to be met by a test that passes.
const HANGS: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, future).await.unwrap()
}

fn frame(body: &str) -> String {
    format!("Content-Length: {}\r\n\r\n{body}", body.len())
}

fn request(id: impl Into<Value>, method: &str, params: Value) -> String {
    frame(&json!({"jsonrpc": "2.0", "id": id.into(), "method": method, "params": params}).to_string())
}

struct Peer {
    stream: BufReader<TcpStream>,
    id: u64,
    /// What came while an answer was awaited.
    seen: Vec<Value>,
}

impl Peer {
    async fn connect(fake_server: &FakeServer) -> Self {
        let stream = within(TcpStream::connect(fake_server.address())).await.unwrap();
        Self { stream: BufReader::new(stream), id: 0, seen: Vec::new() }
    }

    async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.get_mut().write_all(bytes.as_ref())).await.unwrap();
    }

    /// The next frame; None at FIN.
    async fn next(&mut self) -> io::Result<Option<Value>> {
        let mut head = String::new();
        if within(self.stream.read_line(&mut head)).await? == 0 {
            return Ok(None);
        }
        let length: usize = head.strip_prefix("Content-Length: ").unwrap().trim_end().parse().unwrap();
        let mut body = vec![0; 2 + length];
        within(self.stream.read_exact(&mut body)).await?;
        Ok(Some(serde_json::from_slice(&body[2..]).unwrap()))
    }

    /// The next frame, which must come.
    async fn frame(&mut self) -> Value {
        self.next().await.unwrap().unwrap()
    }

    /// Sends a request and returns its answer; what comes before it goes to `seen`.
    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.id += 1;
        self.write(request(self.id, method, params)).await;
        loop {
            let frame = self.frame().await;
            if frame["id"] == self.id && frame.get("method").is_none() {
                return frame;
            }
            self.seen.push(frame);
        }
    }

    /// The result of a call, which must succeed.
    async fn result(&mut self, method: &str, params: Value) -> Value {
        let answer = self.call(method, params).await;
        answer.get("result").unwrap_or_else(|| panic_with(&answer)).clone()
    }

    /// The code and the words of a call, which must fail.
    async fn refusal(&mut self, method: &str, params: Value) -> (i64, String) {
        let answer = self.call(method, params).await;
        (answer["error"]["code"].as_i64().unwrap(), answer["error"]["message"].as_str().unwrap().to_owned())
    }

    /// Whether a session is live here, as a balancer asks.
    async fn finds(&mut self, session: &str) -> bool {
        let answer = self.call("session.metadata.isProcessing", json!({"sessionId": session})).await;
        match answer["result"]["processing"].as_bool() {
            Some(_) => true,
            None => {
                let words = answer["error"]["message"].as_str().unwrap().to_owned();
                assert!(words.ends_with(&format!("Session not found for sessionId: {session}")), "{words}");
                false
            }
        }
    }

    async fn create(&mut self, session: &str) {
        let result = self.result("session.create", json!({"sessionId": session})).await;
        assert_eq!(result["sessionId"], session);
    }

    async fn prompt(&mut self, session: &str, prompt: &str) {
        self.result("session.send", json!({"sessionId": session, "prompt": prompt})).await;
    }

    /// The prompts a live session remembers.
    async fn prompts(&mut self, session: &str) -> Vec<String> {
        let result = self.result("session.getMessages", json!({"sessionId": session})).await;
        let events = result["events"].as_array().unwrap().iter();
        let prompts = events.filter(|event| event["type"] == "user.message");
        prompts.map(|event| event["data"]["content"].as_str().unwrap().to_owned()).collect()
    }

    /// The next frame with this method.
    async fn until(&mut self, method: &str) -> Value {
        loop {
            let frame = self.frame().await;
            if frame["method"] == method {
                return frame;
            }
        }
    }

    fn reset(self) {
        self.stream.get_ref().set_zero_linger().unwrap();
    }

    async fn half_close(&mut self) {
        self.stream.get_mut().shutdown().await.unwrap();
    }
}

fn panic_with(answer: &Value) -> ! {
    panic!("refused: {answer}")
}

async fn start() -> FakeServer {
    FakeServer::builder().start().await.unwrap()
}
