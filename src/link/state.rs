//! A client's state frames, kept to be replayed verbatim, within bounds in bytes.

use crate::runtime::account::{Account, Held, Owns, allocated};
use crate::wire::Id;

/// Longest body of a `connect`.
pub const CONNECT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of all state frames of one connection.
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
pub struct StateFrames(Vec<StateFrame>);

/// Why a state frame is refused, as a message for the client.
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

impl StateFrame {
    /// A frame from `body`, a request with this id that is a `connect` or not, to be kept beside those in `state`.
    ///
    /// # Errors
    /// See [`StateFault`].
    pub fn new(
        account: &Account,
        state: &StateFrames,
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

impl StateFrames {
    /// Keeps a frame that a server has answered with a result.
    pub fn keep(&mut self, frame: StateFrame) {
        if frame.connect {
            self.0.retain(|known| !known.connect);
        }
        self.0.reserve_exact(1);
        self.0.push(frame);
    }

    /// Whether there is none yet.
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
