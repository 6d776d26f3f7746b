//! What an opening does not let through, and who may hear it.

use super::Opening;
use super::client::Frame;
use crate::proxy::refusals::{NOT_JSON, TWO_SESSIONS, UNSAID_SESSION};
use crate::wire::method::Way;
use crate::wire::{Named, Refusal, is_json};

impl Opening<'_> {
    /// Whether the client may learn where sessions are: where backends demand a token, only after a good `connect`.
    /// Until then every frame goes to a scout that demands one, and refuses it in its own words.
    pub(in crate::proxy) fn may_know(&self) -> bool {
        self.state.handshake().is_authenticated() || !self.balancer.demands_token()
    }

    /// Whether the scout may not hear the client: the fleet has come to demand a token since, and this one does not.
    pub(in crate::proxy) fn has_wrong_scout(&self) -> bool {
        let backend = self.scout.as_ref().map(|scout| scout.link().stream.backend());
        backend.is_some_and(|backend| {
            !self.balancer.may_hear(backend, self.state.handshake().is_authenticated())
        })
    }

    /// Why a request is not let through, if it is not.
    pub(in crate::proxy) fn forbidden(&self, frame: &Frame) -> Option<(Refusal, String)> {
        let envelope = &frame.envelope;
        let method = envelope.method.as_ref()?;
        if frame.rest.is_none() && !is_json(frame.bytes.get(frame.body_at..).unwrap_or_default()) {
            return Some((Refusal::Malformed, NOT_JSON.to_owned()));
        }
        if self.rules.listener().methods.denies(method) {
            let message = format!("{method} affects a whole server; this listener does not allow it");
            return Some((Refusal::Denied, message));
        }
        let many = || self.balancer.now().has_several();
        if method.known().way == Way::Provider && many() {
            let message = format!(
                "{method} must reach every backend, and the calls it brings back cannot be carried on a connection \
                 that belongs to one"
            );
            return Some((Refusal::Denied, message));
        }
        match envelope.named() {
            Named::Two => Some((Refusal::Malformed, TWO_SESSIONS.to_owned())),
            Named::Unsaid if self.may_know() && many() => Some((Refusal::Denied, UNSAID_SESSION.to_owned())),
            _ => None,
        }
    }
}
