//! A standing connection to a backend: requests by id, and who waits for the answer of each.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::oneshot;

use crate::close::By;
use crate::fleet::{Answer, Ask, Backend};
use crate::frames::{Reader, ReceivedBody, send_by};
use crate::net::{self, Stream};
use crate::wire::{Envelope, Scan, reply};

/// Error codes of servers that matter to a probe.
const AUTHENTICATION_REQUIRED: i64 = -32001;
const AUTHENTICATION_FAILED: i64 = -32002;
/// The error of a server that is shutting down.
const SHUTTING_DOWN: i64 = -32000;
const SHUTS_DOWN: &str = "the server is shutting down";
/// The answer of a server without a token to a `connect` with one.
const AUTHENTICATION_NOT_CONFIGURED: i64 = -32003;

/// A standing connection, and who waits for which answer. It holds no lease and no backend, to keep no removed one alive.
pub(super) struct Line<W> {
    pub(super) stream: Stream,
    pub(super) reader: Reader,
    pub(super) next_id: u64,
    pub(super) pending: HashMap<u64, W>,
}

impl<W> Line<W> {
    /// A connection on which nothing has been sent. `reader` reads it.
    pub(super) fn new(stream: Stream, reader: Reader) -> Self {
        Self { stream, reader, next_id: 0, pending: HashMap::new() }
    }

    /// The id of the next request.
    pub(super) fn number(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        id
    }

    /// Acknowledges what was received: the server may hold an answer back until then ([`net::acknowledge`]).
    pub(super) fn acknowledge(&self) {
        if !self.pending.is_empty() && self.reader.is_empty() {
            net::acknowledge(&self.stream);
        }
    }

    pub(super) async fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        send_by(&mut self.stream, frames, None).await
    }

    /// The next frame. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<ReceivedBody> {
        self.reader.next(&mut self.stream).await
    }

    /// Sends `connect`, with the token if there is one and the server wants one. Returns the answer, and whether the
    /// server demands a token. Only while nothing else is in flight.
    pub(super) async fn introduce(&mut self, token: Option<&str>) -> io::Result<(Answer, bool)> {
        let answer = self.connect(token).await?;
        if matches!(answer, Answer::Error(AUTHENTICATION_NOT_CONFIGURED, _)) {
            return Ok((self.connect(None).await?, false));
        }
        Ok((answer, token.is_some()))
    }

    async fn connect(&mut self, token: Option<&str>) -> io::Result<Answer> {
        let id = self.number();
        self.write(&reply::connect(id, token)).await?;
        loop {
            if let ReceivedBody::Body(body) = self.next().await?
                && let Some((answered, answer)) = read(&body)?
                && answered == id
            {
                return Ok(answer);
            }
        }
    }
}

/// What a server's answer to `connect` says of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Introduced {
    /// It refuses sessile's token, or sessile has none.
    pub(super) mute: bool,
    /// It wants a token.
    pub(super) demands_token: bool,
    /// The version that it reports.
    pub(super) version: Option<Arc<str>>,
}

impl Introduced {
    /// From the result of [`Line::introduce`].
    ///
    /// # Errors
    /// Why the server cannot serve.
    pub(super) fn of((answer, demands_token): (Answer, bool)) -> Result<Self, String> {
        let known = Self { mute: false, demands_token, version: None };
        match answer {
            Answer::Result(result) => {
                let version = result.get("version").and_then(Value::as_str).map(Arc::from);
                Ok(Self { version, ..known })
            }
            Answer::Error(AUTHENTICATION_REQUIRED | AUTHENTICATION_FAILED, _) => {
                Ok(Self { mute: true, demands_token: true, ..known })
            }
            Answer::Error(Answer::METHOD_NOT_FOUND, _) => Ok(known),
            Answer::Error(SHUTTING_DOWN, _) => Err(SHUTS_DOWN.into()),
            Answer::Error(code, _) => Err(format!("the server answered connect with error {code}")),
            Answer::TooLong => Err("the server answered connect with too much".into()),
        }
    }
}

/// Checks an answer to `ping`.
///
/// # Errors
/// Why the server cannot serve.
pub(super) fn pong(answer: &Answer) -> Result<(), String> {
    match answer {
        Answer::Error(SHUTTING_DOWN, _) => Err(SHUTS_DOWN.into()),
        _ => Ok(()),
    }
}

/// The connection that is probed.
pub(super) type OwnLine = Line<oneshot::Sender<Answer>>;

impl OwnLine {
    /// A request and the id it got.
    pub(super) fn request(&mut self, method: &str, params: &Value) -> (u64, Vec<u8>) {
        let id = self.number();
        (id, reply::request(id, method, params))
    }

    /// The frame of a request; its answer will be handed on.
    pub(super) fn register(&mut self, ask: Ask) -> Vec<u8> {
        let (id, frame) = self.request(ask.method, &ask.params);
        self.pending.insert(id, ask.answer);
        frame
    }

    pub(super) fn dispatch(&mut self, backend: &Backend, id: u64, answer: Answer) {
        if let Some(waiting) = self.pending.remove(&id) {
            backend.answered();
            // The asker may have stopped waiting.
            drop(waiting.send(answer));
        }
        self.acknowledge();
    }

    /// The next answer to a request on this connection; everything else is dropped. Cancel-safe.
    pub(super) async fn next_answer(&mut self) -> io::Result<(u64, Answer)> {
        loop {
            match self.next().await? {
                ReceivedBody::Body(body) => match read(&body)? {
                    Some(answer) => return Ok(answer),
                    None => self.acknowledge(),
                },
                ReceivedBody::TooLong(Some(envelope)) if envelope.method.is_none() => {
                    if let Some(id) = number_of(&envelope) {
                        return Ok((id, without_body(&envelope)));
                    }
                }
                ReceivedBody::TooLong(_) => {}
            }
        }
    }
}

/// The number of the request that this answers.
pub(super) fn number_of(answer: &Envelope) -> Option<u64> {
    str::from_utf8(answer.id.as_ref()?.raw()).ok()?.parse().ok()
}

/// The number and the answer, if `body` answers a request.
fn read(body: &[u8]) -> io::Result<Option<(u64, Answer)>> {
    let frame: Value = match serde_json::from_slice(body) {
        Ok(frame) => frame,
        Err(fault) => return beyond(body).ok_or_else(|| fault.into()),
    };
    if frame.get("method").is_some() {
        return Ok(None);
    }
    let Some(id) = frame.get("id").and_then(Value::as_u64) else { return Ok(None) };
    Ok(Some((id, Answer::of(frame))))
}

/// The answer in a body that cannot be parsed (it is nested too deeply, say) and yet has an envelope: only the question
/// that it answers fails, not the connection. `None` if it has no envelope.
fn beyond(body: &[u8]) -> Option<Option<(u64, Answer)>> {
    let envelope = Scan::whole_of(By::Backend, body).ok()?;
    let answered = number_of(&envelope).filter(|_| envelope.method.is_none());
    Some(answered.map(|id| (id, without_body(&envelope))))
}

/// The answer, where only the envelope is known.
fn without_body(envelope: &Envelope) -> Answer {
    if envelope.is_error {
        Answer::Error(envelope.error_code.map(i64::from).unwrap_or_default(), Box::default())
    } else {
        Answer::TooLong
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::BytesMut;
    use serde_json::json;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::frames::next_body;
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

    /// Servers nest deeper than serde_json reads, and write halves of surrogate pairs.
    #[test]
    fn an_answer_that_cannot_be_parsed_costs_its_question_alone() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for result in [deep.as_str(), r#""\ud800""#] {
            let body = format!(r#"{{"jsonrpc":"2.0","result":{result},"id":5}}"#);
            assert_eq!(read(body.as_bytes()).unwrap(), Some((5, Answer::TooLong)));
            let event = format!(r#"{{"jsonrpc":"2.0","method":"m","params":{{"x":{result}}}}}"#);
            assert_eq!(read(event.as_bytes()).unwrap(), None);
            let error = format!(r#"{{"jsonrpc":"2.0","id":5,"error":{{"code":-7,"data":{result}}}}}"#);
            assert_eq!(read(error.as_bytes()).unwrap(), Some((5, Answer::Error(-7, "".into()))));
        }
        assert!(read(b"no JSON").is_err());
    }

    #[tokio::test]
    async fn an_answer_is_not_held_back_behind_what_came_before_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = Stream::Plain(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let (accepted, _) = listener.accept().await.unwrap();
        let serving = tokio::spawn(serve(accepted));
        let series = Metrics::new().unwrap().backend(&"cli-1".into());
        let (backend, _asked) = Backend::new("cli-1", "127.0.0.1:1", series);
        let mut line = Line::new(stream, Reader::default());
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let mut frames = Vec::new();
            for _ in 0..2 {
                let (answer, _) = oneshot::channel();
                frames.extend(line.register(Ask { method: "ping", params: json!({}), answer }));
            }
            line.write(&frames).await.unwrap();
            while !line.pending.is_empty() {
                let (id, answer) = line.next_answer().await.unwrap();
                line.dispatch(&backend, id, answer);
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
