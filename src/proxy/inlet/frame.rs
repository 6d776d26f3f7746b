//! A frame as it goes through the switch: its bytes as they came, and what they say of their route.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;

use crate::link::StateFrame;
use crate::runtime::account::{Charge, Owns, allocated};
use crate::wire::{Envelope, Head, Id, Named, Scan, reply};

/// A frame.
#[derive(Debug)]
pub struct Frame {
    /// Head and as much of the body as is there.
    pub bytes: Bytes,
    /// Where in `bytes` the body begins.
    pub body_at: usize,
    /// The envelope; of a beginning, what is known so far.
    pub envelope: Envelope,
    /// Body bytes still to come, in [`Piece::More`].
    pub left: usize,
    /// For a frame that was gathered: held as long as its bytes are.
    pub charge: Option<Charge>,
}

impl Frame {
    /// A state frame as the client sent it, to be sent again.
    pub(in crate::proxy) fn of_state(state: &StateFrame) -> Self {
        Self::again(state.body())
    }

    /// A request that has been read before, to be sent once more.
    pub(in crate::proxy) fn again(body: &[u8]) -> Self {
        let bytes = Bytes::from(reply::frame(body));
        let body_at = bytes.len().saturating_sub(body.len());
        let envelope = Scan::whole(body).unwrap_or_default();
        Self { bytes, body_at, envelope, left: 0, charge: None }
    }

    /// The frame that is sent in place of a request, about the same session and with the same id, if one is to be.
    pub(in crate::proxy) fn instead(request: &Envelope) -> Option<Self> {
        let method = request.known()?.instead?;
        let Named::Session(session) = request.named() else { return None };
        let bytes = Bytes::from(reply::of_session(method, request.id.as_ref().map(Id::raw), &session));
        let head = Head::read(&bytes).ok().flatten()?;
        let envelope = Scan::whole(bytes.get(head.head_bytes..)?).ok()?;
        Some(Self { bytes, body_at: head.head_bytes, envelope, left: 0, charge: None })
    }

    /// What an error says, if the whole frame is one.
    pub(in crate::proxy) fn error_message(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Body {
            error: Message,
        }
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let body: Body = serde_json::from_slice(self.body()).ok()?;
        Some(body.error.message)
    }

    /// The same, without a hold on what was read with it.
    pub(in crate::proxy) fn apart(self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), ..self }
    }

    /// What it takes where it has to wait.
    pub(in crate::proxy) fn takes(&self) -> usize {
        let owns = allocated(self.bytes.len()).saturating_add(self.envelope.owns());
        owns.saturating_add(allocated(size_of::<Self>()))
    }

    /// The part of the body that is there.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(self.body_at..).unwrap_or_default()
    }

    /// The frame with `id` in place of the JSON text at `old`; a new head says the new length.
    pub(in crate::proxy) fn with_id(&self, old: &Id, id: &[u8]) -> Bytes {
        let span = old.span();
        let body = self.body();
        let before = body.get(..span.start).unwrap_or_default();
        let after = body.get(span.end..).unwrap_or_default();
        let length =
            (before.len().saturating_add(id.len()).saturating_add(after.len())).saturating_add(self.left);
        let head = format!("Content-Length: {length}\r\n\r\n");
        let mut bytes =
            BytesMut::with_capacity(head.len().saturating_add(body.len()).saturating_add(id.len()));
        for part in [head.as_bytes(), before, id, after] {
            bytes.extend_from_slice(part);
        }
        bytes.freeze()
    }
}
