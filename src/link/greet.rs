//! Greeting a backend on a client's behalf: the client's state frames replayed, their answers swallowed.

use serde_json::json;

use super::dial::Link;
use crate::frames::{next_envelope, send_by};
use crate::runtime::account::{Account, Held, Owns, allocated};
use crate::wire::{Envelope, Id, SessionId, reply};

/// Longest body of a `connect`.
pub const CONNECT_BYTES_MAX: usize = 64 * 1024;
/// What all state frames of one connection may take.
pub const STATE_BYTES_MAX: usize = 128 * 1024;

/// A client's frame that changes its connection's state on a server, kept to be replayed verbatim.
#[derive(Clone, Debug)]
pub struct StateFrame {
    body: Held<Box<[u8]>>,
    id: Id,
    connect: bool,
}

/// The state frames that a server has answered with a result, in order; of `connect` only the last.
#[derive(Clone, Debug, Default)]
pub struct State(Vec<StateFrame>);

/// Why a state frame is not taken, for the client to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateFault {
    /// Longer than [`CONNECT_BYTES_MAX`].
    #[error("a connect may be 64 KiB long")]
    ConnectTooLong,
    /// More than [`STATE_BYTES_MAX`].
    #[error("what this connection has told servers with connect and its like may be 128 KiB in all")]
    TooMuch,
    /// No more memory may be held.
    #[error("limits.opening_memory is used up by what connections hold")]
    NoMemory,
}

/// Why a backend did not take a replayed frame.
#[derive(Debug, thiserror::Error)]
pub enum GreetFault {
    /// It went away or sent garbage.
    #[error("the backend went away: {0}")]
    Lost(#[from] std::io::Error),
    /// It answered a `connect` with an error that another backend had answered with a result.
    #[error("the backend refused a replayed connect")]
    Refused,
    /// It did not attach a connection to a session.
    #[error("the backend refused to attach a connection to a session")]
    Unattached,
}

impl StateFrame {
    /// Keeps the frame of `body`, a request with this id that is a `connect` or another, beside what is kept in `state`.
    ///
    /// # Errors
    /// See [`StateFault`].
    pub fn new(
        account: &Account,
        state: &State,
        body: &[u8],
        connect: bool,
        id: Id,
    ) -> Result<Self, StateFault> {
        if connect && body.len() > CONNECT_BYTES_MAX {
            return Err(StateFault::ConnectTooLong);
        }
        let bytes = allocated(body.len()).saturating_add(id.owns()).saturating_add(size_of::<Self>());
        let kept = state.0.iter().filter(|frame| !(connect && frame.connect)).map(StateFrame::bytes);
        if kept.fold(bytes, usize::saturating_add) > STATE_BYTES_MAX {
            return Err(StateFault::TooMuch);
        }
        let body = account.hold(body.into(), bytes).map_err(|_| StateFault::NoMemory)?;
        Ok(Self { body, id, connect })
    }

    /// Whether it is the one that carries the token.
    pub fn is_connect(&self) -> bool {
        self.connect
    }

    /// The id the client gave it.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.body.bytes()
    }

    /// The body as the client sent it.
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

impl State {
    /// Keeps a frame that a server has answered with a result.
    pub fn keep(&mut self, frame: StateFrame) {
        if frame.connect {
            self.0.retain(|known| !known.connect);
        }
        self.0.reserve_exact(1);
        self.0.push(frame);
    }

    /// Whether the client has told nothing yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that all of it takes.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(StateFrame::bytes).fold(0, usize::saturating_add)
    }

    /// The frames.
    pub fn frames(&self) -> &[StateFrame] {
        &self.0
    }
}

/// Replays `frames` one at a time, each after the answer of the last, because servers handle requests concurrently.
/// Gives the `protocolVersion` that the backend answered, if one of the frames asked for it. Frames that belong to no
/// replayed request are dropped: before its first session, nothing on this link concerns the client. Only a refused
/// `connect` is fatal: `plugins.builtin.set` is refused by every server on which any session is live, and those servers
/// have been told before.
///
/// # Errors
/// See [`GreetFault`].
pub async fn greet(link: &mut Link, frames: &[StateFrame]) -> Result<Option<Box<[u8]>>, GreetFault> {
    let mut version = None;
    for (number, frame) in frames.iter().enumerate() {
        let id = format!("\"sessile-{number}\"");
        let replayed = reply::with_id(&frame.body, frame.id.span(), id.as_bytes());
        send_by(&mut link.stream, &replayed, None).await?;
        let answer = answer(link, id.as_bytes()).await?;
        if answer.is_error && frame.connect {
            return Err(GreetFault::Refused);
        }
        version = answer.protocol_version.or(version);
    }
    Ok(version)
}

/// Attaches to a session that is live there, without a word to anybody else and with nothing of its own.
///
/// # Errors
/// See [`GreetFault`].
pub async fn attach(link: &mut Link, session: &SessionId) -> Result<(), GreetFault> {
    let params = json!({ "sessionId": session.as_str(), "disableResume": true });
    send_by(&mut link.stream, &reply::request(1, "session.resume", &params), None).await?;
    let answer = answer(link, b"1").await?;
    if answer.is_error { Err(GreetFault::Unattached) } else { Ok(()) }
}

/// The answer to the request with this id; what else comes meanwhile is dropped. Nothing is gathered, for it may be as long as a
/// server likes, and be waited for on as many links at once as clients like.
async fn answer(link: &mut Link, id: &[u8]) -> Result<Envelope, GreetFault> {
    loop {
        let answer = next_envelope(&mut *link.stream, &mut link.unread).await?;
        if answer.method.is_none() && answer.id.as_ref().is_some_and(|own| own.raw() == id) {
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Timeouts;
    use crate::fleet::{Backend, Lease};
    use crate::link::dial;
    use crate::metrics::Metrics;
    use crate::runtime::account::Budget;
    use crate::wire::Scan;

    #[tokio::test]
    async fn what_a_server_says_before_its_answer_may_be_as_long_as_it_likes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let series = Metrics::new().unwrap().backend(&"cli-1".into());
        let (backend, _asked) = Backend::new("cli-1", &address, series);
        let lease = Lease::within_bound(&backend).unwrap();
        let mut link = dial(lease, &Timeouts::default()).await.unwrap();
        let serving = tokio::spawn(async move {
            let (mut accepted, _) = listener.accept().await.unwrap();
            let event = format!(r#"{{"jsonrpc":"2.0","method":"m","params":"{}"}}"#, "x".repeat(5_000_000));
            let answer = r#"{"jsonrpc":"2.0","id":"sessile-0","result":{"protocolVersion":3}}"#;
            for body in [&*event, answer] {
                accepted.write_all(&reply::frame(body.as_bytes())).await.unwrap();
            }
            accepted
        });
        let account = Budget::new(prometheus::IntGauge::new("g", "g").unwrap(), 0, None).account();
        let body = br#"{"jsonrpc":"2.0","id":1,"method":"connect"}"#;
        let id = Scan::whole(body).unwrap().id.unwrap();
        let frame = StateFrame::new(&account, &State::default(), body, true, id).unwrap();
        let version = greet(&mut link, &[frame]).await.unwrap();
        assert_eq!(version.as_deref(), Some(&b"3"[..]));
        drop(serving.await.unwrap());
    }
}
