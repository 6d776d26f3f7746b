//! A client of the balancer: a socket, frames by hand, nothing shared with the balancer's own code.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{IN_VAIN, frame, request, soon};

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Reset,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    unread: BytesMut,
    mark: String,
    next_id: u64,
    /// How long it waits for what must come.
    pub patience: Duration,
    /// Frames that came while an answer was awaited.
    pub seen: Vec<Value>,
}

impl Client {
    /// Connects, and says nothing yet.
    pub async fn dial(address: SocketAddr) -> Self {
        Self::of(soon(TcpStream::connect(address)).await.unwrap())
    }

    /// Connects with little room for what it does not read.
    pub async fn dial_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        Self::of(soon(socket.connect(address)).await.unwrap())
    }

    /// A client on a socket that is connected already.
    pub fn over(stream: std::net::TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self::of(TcpStream::from_std(stream).unwrap())
    }

    /// The other end: a server's, which has read more than it has looked at.
    pub fn resumed(stream: TcpStream, unread: BytesMut) -> Self {
        Self { unread, ..Self::of(stream) }
    }

    fn of(stream: TcpStream) -> Self {
        static CLIENTS: AtomicU64 = AtomicU64::new(0);
        let mark = format!("client-{}.", CLIENTS.fetch_add(1, Ordering::Relaxed));
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: BytesMut::new(), mark, next_id: 0, patience: IN_VAIN, seen: Vec::new() }
    }

    /// Connects and sends `connect`, as an SDK does.
    pub async fn start(address: SocketAddr) -> Self {
        let mut client = Self::dial(address).await;
        let answer = client.hello().await;
        assert_eq!(answer["result"]["ok"], true, "{answer}");
        client
    }

    /// What stands in this client's `connect` and in no other's.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The socket itself.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// The params of this client's `connect`.
    pub fn introduction(&self) -> Value {
        json!({"supportedTaskKinds": ["agent", "client", "shell"], "clientInfo": {"name": self.mark}})
    }

    /// Sends `connect`; the answer.
    pub async fn hello(&mut self) -> Value {
        let params = self.introduction();
        self.call("connect", params).await
    }

    /// Writes all of `bytes`.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Writes `bytes` in pieces of a size, a segment each.
    pub async fn write_pieces(&mut self, bytes: impl AsRef<[u8]>, size: usize) {
        for piece in bytes.as_ref().chunks(size) {
            self.write(piece).await;
            tokio::task::yield_now().await;
        }
    }

    /// The next frame, byte for byte, or how the connection ended.
    pub async fn next(&mut self) -> Result<Bytes, End> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                let head = std::str::from_utf8(&self.unread[..at]).unwrap();
                let length = head.strip_prefix("Content-Length: ").unwrap().parse::<usize>().unwrap();
                if self.unread.len() >= at + 4 + length {
                    return Ok(self.unread.split_to(at + 4 + length).freeze());
                }
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), End> {
        let read = tokio::time::timeout(self.patience, self.stream.read_buf(&mut self.unread)).await;
        match read.unwrap_or_else(|_| panic!("{} waits in vain", self.mark)) {
            Ok(0) => {
                assert!(self.unread.is_empty(), "ended within a frame: {:?}", self.unread);
                Err(End::Fin)
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(End::Reset),
            Err(error) => panic!("{error}"),
        }
    }

    /// The next `count` bytes.
    pub async fn bytes(&mut self, count: usize) -> Bytes {
        while self.unread.len() < count {
            self.fill().await.unwrap();
        }
        self.unread.split_to(count).freeze()
    }

    /// The next frame, which must come.
    pub async fn frame(&mut self) -> Value {
        body_of(&self.next().await.unwrap())
    }

    /// Sends a request; its id.
    pub async fn ask(&mut self, method: &str, params: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.write(request(id, method, &params)).await;
        id
    }

    /// The answer to a request; what comes before it goes to `seen`.
    pub async fn answer(&mut self, id: impl Into<Value>) -> Value {
        let id = id.into();
        self.frame_that(|frame| frame["id"] == id && frame.get("method").is_none()).await
    }

    /// The next request of the server with this method.
    pub async fn asked(&mut self, method: &str) -> Value {
        self.frame_that(|frame| frame["method"] == method).await
    }

    /// The first frame of which this is true; what comes before it goes to `seen`.
    async fn frame_that(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.seen.iter().position(&is_it) {
            return self.seen.remove(at);
        }
        loop {
            let frame = self.frame().await;
            if is_it(&frame) {
                return frame;
            }
            self.seen.push(frame);
        }
    }

    /// Answers a request of the server.
    pub async fn reply(&mut self, asked: &Value, result: Value) {
        let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "result": result});
        self.write(frame(answer.to_string())).await;
    }

    /// Sends a request; its answer, whichever it is.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.ask(method, params).await;
        self.answer(id).await
    }

    /// Sends a request; its result, which must come.
    pub async fn result(&mut self, method: &str, params: Value) -> Value {
        let mut answer = self.call(method, params).await;
        assert!(answer.get("error").is_none(), "{method} was refused: {answer}");
        answer["result"].take()
    }

    /// Sends a request; the code it is refused with, and the balancer's reason if the balancer refused it.
    pub async fn refusal(&mut self, method: &str, params: Value) -> (i64, Option<String>) {
        let answer = self.call(method, params).await;
        refusal(&answer)
    }

    /// Creates a session.
    pub async fn create(&mut self, session: &str) {
        let result = self.result("session.create", json!({"sessionId": session, "model": "m"})).await;
        assert_eq!(result["sessionId"], session);
    }

    /// Resumes a session.
    pub async fn resume(&mut self, session: &str) {
        let result = self.result("session.resume", json!({"sessionId": session})).await;
        assert_eq!(result["sessionId"], session);
    }

    /// Has a turn: the session is on disk then. What the server says.
    pub async fn turn(&mut self, session: &str) -> String {
        self.result("session.send", json!({"sessionId": session, "prompt": "go on"})).await;
        loop {
            let event = self.asked("session.event").await;
            if event["params"]["sessionId"] == session
                && event["params"]["event"]["type"] == "assistant.message"
            {
                return event["params"]["event"]["data"]["content"].as_str().unwrap().to_owned();
            }
        }
    }

    /// Prompts that a live session remembers.
    pub async fn prompts(&mut self, session: &str) -> usize {
        let result = self.result("session.getMessages", json!({"sessionId": session})).await;
        let events = result["events"].as_array().unwrap().iter();
        events.filter(|event| event["type"] == "user.message").count()
    }

    /// Reads and drops until the connection ends.
    pub async fn end(&mut self) -> End {
        loop {
            let read = soon(self.stream.read_buf(&mut self.unread)).await;
            match read {
                Ok(0) => return End::Fin,
                Ok(_) => self.unread.clear(),
                Err(_) => return End::Reset,
            }
        }
    }

    /// Whether the connection has ended, without waiting.
    pub fn is_open(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.try_read(&mut bytes) {
                Ok(0) => return false,
                Ok(count) => self.unread.extend_from_slice(&bytes[..count]),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Ends this side only.
    pub async fn half_close(&mut self) {
        soon(self.stream.shutdown()).await.unwrap();
    }

    /// Ends with RST.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

/// The body of a frame.
pub fn body_of(frame: &Bytes) -> Value {
    let mut frame = frame.clone();
    frame.advance(memchr::memmem::find(&frame, b"\r\n\r\n").unwrap() + 4);
    serde_json::from_slice(&frame).unwrap()
}

/// The code of a refusal, and the balancer's reason if it is the balancer's.
#[track_caller]
pub fn refusal(answer: &Value) -> (i64, Option<String>) {
    let error = &answer["error"];
    let code = error["code"].as_i64().unwrap_or_else(|| panic!("no refusal: {answer}"));
    let reason = error["data"]["reason"].as_str().map(str::to_owned);
    assert_eq!(error["data"]["source"] == "sessile", reason.is_some(), "{answer}");
    (code, reason)
}

/// A refusal of the balancer.
pub fn sessile(code: i64, reason: &str) -> (i64, Option<String>) {
    (code, Some(reason.to_owned()))
}
