//! The opening: from accept to the first frame that names a session.
//!
//! The first frame of an SDK names no session, and the SDK waits for its answer. So a scout answers until a session is
//! named; a scout that dies is replaced, and the client kept. Whatever goes wrong, a request known to wait gets an
//! answer before the connection closes.

pub mod client;
mod answered;
mod forbidden;
pub(super) mod learned;
pub mod rehome;
pub mod scout;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::refusals::{NO_SESSION, draining, malformed};
use super::rules::Rules;
use super::state_requests::StateRequests;
use crate::balancer::Balancer;
use crate::close::{At, By, Close};
use crate::config::{Config, Listener};
use crate::metrics::Record;
use crate::net::Stream;
use crate::place::{ASKED_BYTES, Refused, Want};
use crate::runtime::account::Held;
use crate::wire::method::Way;
use crate::wire::{Id, Named, Refusal, reply};
use client::{Client, Frame, OpeningFault};
use rehome::ForHome;
use scout::{News, Scout};

/// Requests of one opening that may wait for a scout's answer; a further one is not read meanwhile.
const PENDING_MAX: usize = 128;
/// For the first request of a client that is turned away: who waits for it keeps others from being told.
const AT_ONCE: Duration = Duration::from_secs(1);

/// An opening in progress.
pub struct Opening<'a> {
    balancer: &'a Balancer,
    config: Arc<Config>,
    rules: Rules<'a>,
    record: &'a Record,
    client: Client,
    scout: Option<Scout>,
    /// A frame read but not yet acted on.
    next: Option<Frame>,
    /// What servers are told of the client.
    state: StateRequests,
    scouts_lost: usize,
    for_home: ForHome,
}

/// What the client wants, now that it is known.
#[derive(Debug)]
pub struct Session {
    /// The frame that says so.
    pub frame: Frame,
    /// What it says.
    pub named: Named,
}

impl<'a> Opening<'a> {
    /// Begins: nothing has been read.
    pub fn new(balancer: &'a Balancer, listener: &'a Listener, record: &'a Record, stream: Stream) -> Self {
        let config = Arc::clone(&balancer.now().config);
        let rules = Rules::new(listener, &config);
        let account = balancer.memory.account();
        let client = Client::new(stream, &account, config.limits.clone(), config.timeouts.opening);
        Self {
            balancer,
            config,
            rules,
            record,
            client,
            scout: None,
            next: None,
            state: StateRequests::default(),
            scouts_lost: 0,
            for_home: ForHome::new(&account),
        }
    }

    /// Counts what it takes to ask the servers about a session, for as long as the answer is held.
    pub fn count_asking(&self) -> Held<()> {
        let servers = self.balancer.now().servers();
        self.client.held_by().hold_anyway((), servers.saturating_mul(ASKED_BYTES))
    }

    /// Serves the client until a frame names a session.
    ///
    /// # Errors
    /// How the connection ended instead; everything that waited has been answered.
    pub async fn until_session(&mut self) -> Result<Session, Close> {
        loop {
            let is_full = self.scout.as_ref().is_some_and(|scout| scout.pending() >= PENDING_MAX);
            let blocked = is_full || self.state.is_open();
            if !blocked && let Some(frame) = self.next.take() {
                if let Some(session) = self.act(frame).await? {
                    return Ok(session);
                }
                continue;
            }
            tokio::select! {
                frame = self.client.frame(), if self.next.is_none() => match frame {
                    Ok(frame) => self.next = Some(frame),
                    Err(fault) => return Err(self.faulty(fault).await),
                },
                news = news(&mut self.scout, self.state.due()) => self.heard(news).await?,
                () = self.balancer.shutdown.reaches(self.record.client()) => {
                    return Err(self.refuse(&draining(&self.config), None).await);
                }
            }
        }
    }

    /// Answers the first request with `limit`.
    pub async fn turn_away(&mut self, limit: &str) -> Close {
        self.client.hurry(AT_ONCE);
        match self.client.frame().await {
            Ok(frame) => {
                let refused = Refused::later(Refusal::Limit, limit, &self.config);
                self.refuse(&refused, frame.envelope.id.as_ref()).await
            }
            Err(fault) => self.faulty(fault).await,
        }
    }

    /// What placement needs to know.
    pub fn want<'w>(&'w self, session: &'w Session) -> Want<'w> {
        let (id, tracked) = match &session.named {
            Named::Session(id) => (Some(id), true),
            Named::Untracked(id) => (Some(id), false),
            Named::Born | Named::Nothing | Named::Unsaid | Named::Two => (None, false),
        };
        Want {
            session: id,
            tracked,
            must_exist: id.is_some() && !session.frame.envelope.creates(),
            frames: self.state.handshake().frames(),
            version: self.state.handshake().version(),
            have: self
                .scout
                .as_ref()
                .map_or(&[], |scout| std::slice::from_ref(scout.link().stream.backend())),
            dials: None,
        }
    }

    /// Answers `id` and everything else that waits with a refusal; the close that follows.
    pub async fn refuse(&mut self, refused: &Refused, id: Option<&Id>) -> Close {
        let waiting = self.scout.take().into_iter().flat_map(Scout::into_pending);
        let next = self.next.take().and_then(|frame| frame.envelope.method.and(frame.envelope.id));
        let owed = self.for_home.take_owed();
        let ids: Vec<Id> = id.cloned().into_iter().chain(waiting).chain(next).chain(owed).collect();
        for id in ids {
            if let Err(close) = self.answer(&id, refused).await {
                return close;
            }
        }
        Close::new(By::Balancer, At::Opening, refused.refusal.why())
    }

    /// The client's socket, to be closed in order.
    pub fn into_client(self) -> Stream {
        self.client.into_parts().0
    }

    /// Acts on a frame: refuses it, lets the scout answer it, or finds that it names a session.
    async fn act(&mut self, frame: Frame) -> Result<Option<Session>, Close> {
        let envelope = &frame.envelope;
        self.rules.renew(self.balancer);
        if let Some((refusal, message)) = self.forbidden(&frame) {
            let refused = Refused { refusal, message, retry_after: None };
            if frame.rest.is_some() {
                // The rest of it is still to come, and must not be read as frames.
                return Err(self.refuse(&refused, envelope.id.as_ref()).await);
            }
            if let Some(id) = envelope.id.clone() {
                self.answer(&id, &refused).await?;
            }
            return Ok(None);
        }
        let frame = if envelope.known().is_some_and(|known| known.way == Way::Close) {
            match Frame::instead(envelope, self.client.held_by()).filter(|_| frame.rest.is_none()) {
                Some(closing) => closing,
                None => return Err(self.refuse(&malformed(NO_SESSION), envelope.id.as_ref()).await),
            }
        } else {
            frame
        };
        let named = frame.envelope.named();
        // What is not there yet may still change where any but a plain request goes.
        let is_unsure = frame.rest.is_some() && !frame.envelope.is_plainly_of_a_session();
        if named == Named::Nothing || is_unsure || !self.may_know() {
            if !self.recalled(&frame).await? {
                self.scouted(frame).await?;
            }
            return Ok(None);
        }
        Ok(Some(Session { frame, named }))
    }

    /// `work` to its end, or a refusal as soon as everything is to close: nobody may wait longer than the drain does.
    pub(super) async fn unless_closing<T>(
        &self,
        work: impl Future<Output = Result<T, Refused>>,
    ) -> Result<T, Refused> {
        tokio::select! {
            done = work => done,
            () = self.balancer.shutdown.reaches(self.record.client()) => Err(draining(&self.config)),
        }
    }

    pub(super) async fn faulty(&mut self, fault: OpeningFault) -> Close {
        self.faulty_on(fault, None).await
    }

    /// Answers a fault of the client on the id that is known, and ends the connection.
    pub(super) async fn faulty_on(&mut self, fault: OpeningFault, asked: Option<Id>) -> Close {
        let close = fault.close();
        let (refusal, message, id) = match fault {
            OpeningFault::End | OpeningFault::Io(_) => return close,
            OpeningFault::Limit(message, id) => (Refusal::Limit, message.to_owned(), id),
            OpeningFault::Body(fault, id) => (Refusal::Malformed, fault.to_string(), id),
            OpeningFault::Head(fault) => (Refusal::Malformed, fault.to_string(), None),
            OpeningFault::Timeout(id) => {
                (Refusal::Limit, "the frame was not whole within timeouts.opening".into(), id)
            }
        };
        let refused = Refused { refusal, message, retry_after: None };
        self.refuse(&refused, id.or(asked).as_ref()).await;
        close
    }

    pub(super) async fn answer(&mut self, id: &Id, refused: &Refused) -> Result<(), Close> {
        let Refused { refusal, message, retry_after } = refused;
        self.balancer.metrics.errors_answered.with_label_values(&[refusal.label()]).inc();
        self.client.send(&reply::error(id, *refusal, message, *retry_after)).await
    }

    fn carried_up(&self, scout: &Scout, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.record.add_to_backend(bytes);
        scout.link().stream.backend().series().bytes_to_backend.inc_by(bytes);
    }

    pub(super) fn carried_down(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.record.add_to_client(bytes);
        if let Some(scout) = &self.scout {
            scout.link().stream.backend().series().bytes_to_client.inc_by(bytes);
        }
    }
}

/// News of the scout, if there is one.
async fn news(scout: &mut Option<Scout>, due: Option<Instant>) -> io::Result<News> {
    match scout {
        Some(scout) => scout.news(due).await,
        None => std::future::pending().await,
    }
}
