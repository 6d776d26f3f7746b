//! Frames that a scout answers, and what happens when it is lost: the client is kept, and another scout takes its place.

use std::io;
use std::sync::Arc;

use tokio::time::Instant;

use super::Opening;
use super::client::Frame;
use super::scout::{News, Scout};
use crate::close::{At, By, Close, Why};
use crate::link::Link;
use crate::place::{self, Refused};
use crate::proxy::refusals::{lost, malformed, too_much};
use crate::wire::method::Way;
use crate::wire::{Id, Refusal};

/// Scouts that one opening may lose before it is given up.
const SCOUTS_MAX: usize = 8;

impl Opening<'_> {
    /// Lets the scout answer.
    pub(super) async fn scouted(&mut self, frame: Frame) -> Result<(), Close> {
        let Frame { bytes, body_at, envelope, rest } = frame;
        if rest.is_some() {
            let refused = Refused {
                refusal: Refusal::Limit,
                message: "the frame is longer than limits.opening_bytes".into(),
                retry_after: None,
            };
            return Err(self.refuse(&refused, envelope.id.as_ref()).await);
        }
        if let Some(id) = &envelope.id
            && self.scout.as_ref().is_some_and(|scout| envelope.method.is_some() && scout.owes(id))
        {
            return self.answer(id, &malformed("a request with this id is in flight")).await;
        }
        let body = bytes.get(body_at..).unwrap_or_default();
        let mut state = match (envelope.known(), &envelope.id) {
            (Some(known), Some(id)) if known.way == Way::State => {
                match self.state.handshake().request(self.client.held_by(), body, known.greets, id.clone()) {
                    Ok(state) => Some(state),
                    Err(fault) => return self.answer(id, &too_much(fault)).await,
                }
            }
            (None, _) if self.scout.is_none() => return Ok(()),
            _ => None,
        };
        loop {
            if self.has_wrong_scout() {
                self.lost(envelope.id.as_ref()).await?;
            }
            let mut scout = match self.scout.take() {
                Some(scout) => scout,
                None if self.scouts_lost >= SCOUTS_MAX => {
                    return Err(self.refuse(&lost(&self.config), envelope.id.as_ref()).await);
                }
                None => match self.seek_scout().await {
                    Ok(link) => Scout::new(link, self.client.held_by()),
                    Err(refused) => return Err(self.refuse(&refused, envelope.id.as_ref()).await),
                },
            };
            let due = Instant::now().checked_add(self.config.timeouts.rehome);
            self.carried_up(&scout, bytes.len());
            let sent = scout.send(&bytes, &envelope, due).await;
            self.scout = Some(scout);
            if sent.is_ok() {
                if let (Some(state), Some(id)) = (state.take(), envelope.id) {
                    self.state.open(id, state, self.config.timeouts.rehome);
                }
                return Ok(());
            }
            // The request itself is still unsent, so it is not among those that are lost.
            self.lost(envelope.id.as_ref()).await?;
        }
    }

    async fn seek_scout(&mut self) -> Result<Link, Refused> {
        let mut avoided = self.state.avoided().clone();
        let handshake = self.state.handshake();
        let seeking = place::scout(
            self.balancer,
            handshake.frames(),
            handshake.version(),
            handshake.is_authenticated(),
            &mut avoided,
        );
        let sought = self.unless_closing(seeking).await;
        self.state.set_avoided(avoided);
        sought
    }

    /// News of the scout, or of its loss.
    pub(super) async fn heard(&mut self, news: io::Result<News>) -> Result<(), Close> {
        let news = match news {
            Ok(news) => news,
            Err(error) => return self.replaced(error.kind() == io::ErrorKind::TimedOut).await,
        };
        if let Some((id, answer)) = news.answered {
            if let (false, Some(connect)) = (answer.is_error, self.state.open_connect(&id)) {
                self.learn(connect, &news.bytes);
            }
            if !self.state.answered(&id, &answer)
                && let (false, Some(version)) = (answer.is_error, answer.protocol_version)
            {
                self.state.speaks(version);
            }
        }
        self.carried_down(news.bytes.len());
        self.client.send(&news.bytes).await
    }

    /// The scout is lost, or was `silent`. A state request goes to the next at once: nothing else can go on before it.
    async fn replaced(&mut self, silent: bool) -> Result<(), Close> {
        if let (true, Some(scout)) = (silent, &self.scout) {
            self.state.note_silence(scout.link().stream.backend());
        }
        self.lost(None).await?;
        let open = self.state.open_id().cloned();
        match self.state.give_up(open.as_ref()) {
            None => Ok(()),
            Some(state) if self.state.may_repeat() => {
                self.scouted(Frame::of_state(&state, self.client.held_by())).await
            }
            Some(state) => Err(self.refuse(&lost(&self.config), Some(state.id())).await),
        }
    }

    /// The scout is lost: what it owed is answered, but for a state request and for `unsent`.
    async fn lost(&mut self, unsent: Option<&Id>) -> Result<(), Close> {
        let Some(scout) = self.scout.take() else { return Ok(()) };
        self.scouts_lost = self.scouts_lost.saturating_add(1);
        let backend = Arc::clone(scout.link().stream.backend());
        tracing::debug!(backend = %backend.name(), "scout lost");
        // A scout may be lost over what this client has sent it.
        backend.hasten_probe();
        self.state.avoid(&backend);
        if scout.is_midway() {
            return Err(Close::new(By::Backend, At::Opening, Why::BackendLost));
        }
        let refused = lost(&self.config);
        for id in scout.into_pending() {
            if Some(&id) != unsent && self.state.open_id() != Some(&id) {
                self.answer(&id, &refused).await?;
            }
        }
        Ok(())
    }
}
