//! Openings without a scout: a first `connect` is answered as the fleet has answered the same one before.
//!
//! The client's frame is kept as if a scout had answered it, and replayed to whatever backend the client gets to.

use std::sync::Arc;
use std::time::Instant;

use super::Opening;
use super::client::Frame;
use crate::balancer::Balancer;
use crate::close::Close;
use crate::config::{Config, Openings};
use crate::fleet::Greeting;
use crate::link::StateFrame;
use crate::proxy::refusals::too_much;
use crate::wire::{Head, Id};

/// What the fleet has answered to the `connect` of this body and id, if it would answer the same again.
pub(in crate::proxy) fn recall(
    balancer: &Balancer,
    config: &Config,
    body: &[u8],
    id: &Id,
) -> Option<Greeting> {
    let version = agreed_version(balancer, config)?;
    let greeting = balancer.greetings.recall(body, id, &version, Instant::now())?;
    balancer.metrics.connects_recalled.inc();
    Some(greeting)
}

/// Remembers the body with which a server has answered a `connect`.
pub(in crate::proxy) fn learn(balancer: &Balancer, config: &Config, connect: &StateFrame, answer: &[u8]) {
    if let Some(version) = agreed_version(balancer, config) {
        balancer.greetings.learn(connect.body(), connect.id(), answer, &version, Instant::now());
    }
}

/// The one version that all servers have, if answers are learned.
fn agreed_version(balancer: &Balancer, config: &Config) -> Option<Arc<str>> {
    match config.placement.openings {
        Openings::Learned => balancer.agreed_version(),
        Openings::Scouted => None,
    }
}

impl Opening<'_> {
    /// Answers a first `connect` from memory; false if a scout has to.
    pub(in crate::proxy) async fn recalled(&mut self, frame: &Frame) -> Result<bool, Close> {
        let envelope = &frame.envelope;
        let (Some(known), Some(id), None) = (envelope.known(), &envelope.id, &frame.rest) else {
            return Ok(false);
        };
        if !known.greets || self.scout.is_some() || !self.state.handshake().is_empty() {
            return Ok(false);
        }
        let body = frame.bytes.get(frame.body_at..).unwrap_or_default();
        let Some(greeting) = recall(self.balancer, &self.config, body, id) else { return Ok(false) };
        let state =
            match self.state.handshake().request(self.client.held_by(), body, known.greets, id.clone()) {
                Ok(state) => state,
                Err(fault) => return self.answer(id, &too_much(fault)).await.map(|()| true),
            };
        self.state.recalled(state, greeting.protocol_version);
        self.carried_down(greeting.frame.len());
        self.client.send(&greeting.frame).await?;
        Ok(true)
    }

    /// Remembers what a scout answered to a `connect`, if it was all in one piece.
    pub(in crate::proxy) fn learn(&self, connect: &StateFrame, answer: &[u8]) {
        if let Ok(Some(head)) = Head::read(answer)
            && head.frame_bytes() == answer.len()
        {
            learn(self.balancer, &self.config, connect, answer.get(head.head_bytes..).unwrap_or_default());
        }
    }
}
