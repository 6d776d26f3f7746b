//! What a client has told servers of itself and what they have answered. Every further server is told the same.

use crate::link::{StateFault, StateFrame, StateFrames};
use crate::runtime::account::Account;
use crate::wire::Id;

/// A client's state as servers know it.
#[derive(Clone, Debug, Default)]
pub(super) struct Handshake {
    state: StateFrames,
    version: Option<Box<[u8]>>,
    is_authenticated: bool,
}

impl Handshake {
    /// A request that changes this state, kept until it is answered, if there is room for it.
    pub(super) fn request(
        &self,
        account: &Account,
        body: &[u8],
        connect: bool,
        id: Id,
    ) -> Result<StateFrame, StateFault> {
        StateFrame::new(account, &self.state, body, connect, id)
    }

    /// A server has answered such a request with a result.
    pub(super) fn accepted(&mut self, state: StateFrame) {
        self.is_authenticated |= state.is_connect();
        self.state.keep(state);
    }

    /// A `connect` was answered from memory. No server has looked at it, so the client is not authenticated.
    pub(super) fn recalled(&mut self, connect: StateFrame, version: Option<Box<[u8]>>) {
        self.state.keep(connect);
        self.version = version;
    }

    /// A server has answered with this version of the protocol, if with any.
    pub(super) fn speaks(&mut self, version: Option<Box<[u8]>>) {
        self.version = version.or(self.version.take());
    }

    /// What a further server is told.
    pub(super) fn frames(&self) -> &[StateFrame] {
        self.state.frames()
    }

    /// The version that a further server must answer with.
    pub(super) fn version(&self) -> Option<&[u8]> {
        self.version.as_deref()
    }

    /// Whether a server has accepted a `connect`.
    pub(super) fn is_authenticated(&self) -> bool {
        self.is_authenticated
    }

    /// Whether nothing has been told yet.
    pub(super) fn is_empty(&self) -> bool {
        self.state.is_empty()
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.state.bytes()
    }
}
