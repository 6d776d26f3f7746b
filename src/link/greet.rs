//! Greeting a backend on a client's behalf: the client's state frames replayed, their answers swallowed.

use super::dial::Link;
use super::frames::next_body;
use crate::wire::{Id, Scan, reply};

/// A client's frame that changes its connection's state on a server, kept to be replayed verbatim.
#[derive(Clone, Debug)]
pub struct StateFrame {
    body: Box<[u8]>,
    id: Id,
    connect: bool,
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
}

impl StateFrame {
    /// Keeps the frame of `body`, a request of this method with this id.
    pub fn new(body: &[u8], method: &str, id: Id) -> Self {
        Self { body: body.into(), id, connect: method == "connect" }
    }

    /// Whether it is the one that carries the token.
    pub fn is_connect(&self) -> bool {
        self.connect
    }

    /// The id the client gave it.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// The body as the client sent it.
    pub fn body(&self) -> &[u8] {
        &self.body
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
        link.stream.send(&reply::with_id(&frame.body, frame.id.span(), id.as_bytes())).await?;
        loop {
            let body = next_body(&mut link.stream, &mut link.unread).await?;
            let Ok(answer) = Scan::whole(&body) else {
                return Err(std::io::Error::from(std::io::ErrorKind::InvalidData).into());
            };
            if answer.method.is_some() || answer.id.is_none_or(|own| own.raw() != id.as_bytes()) {
                continue;
            }
            if answer.is_error && frame.connect {
                return Err(GreetFault::Refused);
            }
            version = answer.protocol_version.or(version);
            break;
        }
    }
    Ok(version)
}
