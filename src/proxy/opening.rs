//! The opening: from accept to the first frame that names a session.
//!
//! The first frame of an SDK names no session, and the SDK waits for its answer. So a scout answers until a session is
//! named; a scout that dies is replaced, and the client kept. Whatever goes wrong, a request known to wait gets an
//! answer before the connection closes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::client::{Client, Fault, Frame};
use super::scout::{News, Scout};
use crate::balancer::Balancer;
use crate::close::{At, By, Close, Why};
use crate::config::{Config, Listener, STATE_METHODS};
use crate::link::{Link, StateFrame};
use crate::metrics::Record;
use crate::net::Stream;
use crate::place::{self, Refused, Want};
use crate::wire::{Id, Named, Refusal, reply};

/// Requests of one opening that may wait for a scout's answer; a further one is not read meanwhile.
const PENDING_MAX: usize = 128;
/// For the first request of a client that is turned away: who waits for it keeps others from being told.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Scouts that one opening may lose before it is given up.
const SCOUTS_MAX: usize = 8;
/// Calls that bind a whole server to one connection: all backends or none.
const PROVIDER_METHODS: [&str; 2] = ["sessionFs.setProvider", "llmInference.setProvider"];

/// An opening in progress.
pub struct Opening<'a> {
    pub(super) balancer: &'a Balancer,
    pub(super) config: Arc<Config>,
    listener: &'a Listener,
    pub(super) record: &'a Record,
    pub(super) client: Client,
    pub(super) scout: Option<Scout>,
    /// A frame read but not yet acted on.
    next: Option<Frame>,
    pub(super) state: Vec<StateFrame>,
    pub(super) version: Option<Box<[u8]>>,
    authenticated: bool,
    scouts_lost: usize,
    /// Frames that the home will get, the one that names the session first.
    pub(super) held: Vec<Bytes>,
    /// The requests among them.
    pub(super) owed: Vec<Id>,
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
        let share = balancer.opening_memory.share();
        let client = Client::new(stream, share, config.limits.clone(), config.timeouts.opening);
        Self {
            balancer,
            config,
            listener,
            record,
            client,
            scout: None,
            next: None,
            state: Vec::new(),
            version: None,
            authenticated: false,
            scouts_lost: 0,
            held: Vec::new(),
            owed: Vec::new(),
        }
    }

    /// Serves the client until a frame names a session.
    ///
    /// # Errors
    /// How the connection ended instead; everything that waited has been answered.
    pub async fn until_session(&mut self) -> Result<Session, Close> {
        loop {
            let blocked =
                self.scout.as_ref().is_some_and(|scout| scout.is_busy() || scout.pending() >= PENDING_MAX);
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
                news = news(&mut self.scout) => self.heard(news).await?,
                () = self.balancer.closing.reaches(self.record.client()) => {
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
            Named::Born | Named::Nothing => (None, false),
        };
        Want {
            session: id,
            tracked,
            must_exist: id.is_some() && !session.frame.envelope.creates(),
            frames: &self.state,
            version: self.version.as_deref(),
            have: self.scout.as_ref().map_or(&[], |scout| std::slice::from_ref(scout.link().lease.backend())),
        }
    }

    /// Answers `id` and everything else that waits with a refusal; the close that follows.
    pub async fn refuse(&mut self, refused: &Refused, id: Option<&Id>) -> Close {
        let waiting = self.scout.take().into_iter().flat_map(Scout::into_pending).map(|(id, _)| id);
        let next = self.next.take().and_then(|frame| frame.envelope.method.and(frame.envelope.id));
        let owed = std::mem::take(&mut self.owed);
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
        if let Some(method) = envelope.method.as_deref()
            && let Some(why) = self.forbidden(method)
        {
            let refused = Refused { refusal: Refusal::Denied, message: why, retry_after: None };
            if frame.rest.is_some() {
                // The rest of it is still to come, and must not be read as frames.
                return Err(self.refuse(&refused, envelope.id.as_ref()).await);
            }
            if let Some(id) = envelope.id.clone() {
                self.answer(&id, &refused).await?;
            }
            return Ok(None);
        }
        let named = envelope.named();
        if named == Named::Nothing || !self.may_know() {
            if !self.recalled(&frame).await? {
                self.scouted(frame).await?;
            }
            return Ok(None);
        }
        Ok(Some(Session { frame, named }))
    }

    /// Why `method` is not let through, if it is not.
    fn forbidden(&self, method: &str) -> Option<String> {
        if self.listener.methods.denies(method) {
            return Some(format!("{method} affects a whole server; this listener does not allow it"));
        }
        let one = self.balancer.now().members.len() == 1;
        (PROVIDER_METHODS.contains(&method) && !one).then(|| {
            format!(
                "{method} must reach every backend, and the calls it brings back cannot be carried on a connection \
                 that belongs to one"
            )
        })
    }

    /// Whether the client may learn where sessions are: where backends demand a token, only after a good `connect`.
    /// Until then every frame goes to the scout, which refuses it in its own words.
    fn may_know(&self) -> bool {
        self.authenticated || !self.balancer.demands_token()
    }

    /// Lets the scout answer.
    async fn scouted(&mut self, frame: Frame) -> Result<(), Close> {
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
            let message = "a request with this id is in flight".into();
            let refused = Refused { refusal: Refusal::Malformed, message, retry_after: None };
            return self.answer(id, &refused).await;
        }
        let body = bytes.get(body_at..).unwrap_or_default();
        let state = match (&envelope.method, &envelope.id) {
            (Some(method), Some(id)) if STATE_METHODS.contains(&&**method) => {
                Some(StateFrame::new(body, method, id.clone()))
            }
            (None, _) if self.scout.is_none() => return Ok(()),
            _ => None,
        };
        if let Err(fault) = self.client.keep(state.as_ref().map_or(0, StateFrame::bytes)) {
            return Err(self.faulty_on(fault, envelope.id).await);
        }
        loop {
            let mut scout = match self.scout.take() {
                Some(scout) => scout,
                None if self.scouts_lost >= SCOUTS_MAX => {
                    return Err(self.refuse(&lost(&self.config), envelope.id.as_ref()).await);
                }
                None => match self.seek_scout().await {
                    Ok(link) => Scout::new(link),
                    Err(refused) => return Err(self.refuse(&refused, envelope.id.as_ref()).await),
                },
            };
            let due = Instant::now().checked_add(self.config.timeouts.rehome);
            self.carried_up(&scout, bytes.len());
            let sent = scout.send(&bytes, &envelope, state.clone(), due).await;
            self.scout = Some(scout);
            match sent {
                Ok(()) => return Ok(()),
                // The request itself is still unsent, so it is not among those that are lost.
                Err(_) => drop(self.lost(envelope.id.as_ref()).await?),
            }
        }
    }

    async fn seek_scout(&self) -> Result<Link, Refused> {
        let seeking = place::scout(self.balancer, &self.state, self.version.as_deref());
        self.unless_closing(seeking).await
    }

    /// `work` to its end, or a refusal as soon as everything is to close: nobody may wait longer than the drain does.
    pub(super) async fn unless_closing<T>(
        &self,
        work: impl Future<Output = Result<T, Refused>>,
    ) -> Result<T, Refused> {
        tokio::select! {
            done = work => done,
            () = self.balancer.closing.reaches(self.record.client()) => Err(draining(&self.config)),
        }
    }

    /// News of the scout, or of its loss.
    pub(super) async fn heard(&mut self, news: io::Result<News>) -> Result<(), Close> {
        let Ok(news) = news else {
            let unanswered = self.lost(None).await?;
            // Nothing else can go on before a state frame is answered, so the next scout gets it at once.
            for state in unanswered {
                self.scouted(Frame::of_state(&state)).await?;
            }
            return Ok(());
        };
        if let Some(state) = news.state {
            self.authenticated |= state.is_connect();
            if state.is_connect() {
                self.learn(&state, &news.bytes);
                self.state.retain(|known| !known.is_connect());
            }
            self.state.push(state);
        }
        self.version = news.version.or(self.version.take());
        self.carried_down(news.bytes.len());
        self.client.send(&news.bytes).await
    }

    /// The scout is lost: what it owed is answered, but for state frames, which are given back, and `unsent`.
    async fn lost(&mut self, unsent: Option<&Id>) -> Result<Vec<StateFrame>, Close> {
        let Some(scout) = self.scout.take() else { return Ok(Vec::new()) };
        self.scouts_lost = self.scouts_lost.saturating_add(1);
        let backend = Arc::clone(scout.link().lease.backend());
        tracing::debug!(backend = %backend.name(), "scout lost");
        backend.suspect();
        if scout.is_midway() {
            return Err(Close::new(By::Backend, At::Opening, Why::BackendLost));
        }
        let refused = lost(&self.config);
        let mut unanswered = Vec::new();
        for (id, state) in scout.into_pending() {
            if Some(&id) == unsent {
                continue;
            }
            match state {
                Some(state) => unanswered.push(state),
                None => self.answer(&id, &refused).await?,
            }
        }
        Ok(unanswered)
    }

    pub(super) async fn faulty(&mut self, fault: Fault) -> Close {
        self.faulty_on(fault, None).await
    }

    /// Answers a fault of the client on the id that is known, and ends the connection.
    pub(super) async fn faulty_on(&mut self, fault: Fault, asked: Option<Id>) -> Close {
        let close = fault.close();
        let (refusal, message, id) = match fault {
            Fault::End | Fault::Io(_) => return close,
            Fault::Limit(message, id) => (Refusal::Limit, message.to_owned(), id),
            Fault::Body(fault, id) => (Refusal::Malformed, fault.to_string(), id),
            Fault::Head(fault) => (Refusal::Malformed, fault.to_string(), None),
            Fault::Timeout(id) => {
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
        scout.link().lease.backend().series().bytes_to_backend.inc_by(bytes);
    }

    pub(super) fn carried_down(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.record.add_to_client(bytes);
        if let Some(scout) = &self.scout {
            scout.link().lease.backend().series().bytes_to_client.inc_by(bytes);
        }
    }
}

/// News of the scout, if there is one.
async fn news(scout: &mut Option<Scout>) -> io::Result<News> {
    match scout {
        Some(scout) => scout.news().await,
        None => std::future::pending().await,
    }
}

pub(super) fn lost(config: &Config) -> Refused {
    Refused::later(Refusal::BackendLost, "the backend went away before it answered", config)
}

pub(super) fn draining(config: &Config) -> Refused {
    Refused::later(Refusal::Draining, "this balancer is stopping", config)
}
