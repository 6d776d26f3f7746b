//! Re-homing: an opening whose session is on another backend leaves its scout for that.
//!
//! What is in flight settles first, bounded by `timeouts.rehome`. The home has been greeted with the client's state
//! frames by then, so the frame that names the session is the first thing of the client's it sees.

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::client::Frame;
use super::scout::Scout;
use super::{Opening, Session};
use crate::close::{At, By, Close, Why};
use crate::link::Link;
use crate::net::Stream;
use crate::proxy::refusals::{draining, lost};
use crate::proxy::relay::tap::Rest;
use crate::runtime::account::{Account, Charge, Held};
use crate::wire::Id;

/// A connection that knows its home.
#[derive(Debug)]
pub struct Opened {
    /// The client.
    pub client: Stream,
    /// Bytes for the home that have not been sent.
    pub unsent: Held<Bytes>,
    /// The rest of a partial session frame.
    pub rest: Option<Box<Rest>>,
    /// The home.
    pub link: Link,
    /// What is still to come of a frame that the home, as a scout, has begun to send to the client.
    pub midway: usize,
}

/// What the home will get before anything else.
#[derive(Debug)]
pub(super) struct ForHome {
    /// Frames, the one that names the session first.
    frames: Vec<Held<Bytes>>,
    /// The requests among them.
    owed: Vec<Id>,
    /// What both take beside the bytes of the frames.
    charge: Charge,
}

impl ForHome {
    /// Nothing yet.
    pub(super) fn new(account: &Account) -> Self {
        Self { frames: Vec::new(), owed: Vec::new(), charge: account.charge() }
    }

    /// One more frame.
    fn push(&mut self, bytes: Held<Bytes>, id: Option<Id>) {
        self.frames.push(bytes);
        self.owed.extend(id);
    }

    /// Counts what a frame takes beside its bytes.
    fn count(&mut self, charge: Charge) {
        self.charge.join(charge);
    }

    /// The requests, to be answered otherwise.
    pub(super) fn take_owed(&mut self) -> Vec<Id> {
        std::mem::take(&mut self.owed)
    }

    /// All of it in one, with what came behind. A single frame is not copied.
    fn into_bytes(mut self, unread: &[u8], account: &Account) -> Held<Bytes> {
        match (self.frames.pop(), unread.is_empty()) {
            (Some(only), true) if self.frames.is_empty() => only,
            (last, _) => {
                let frames = self.frames.iter().chain(&last);
                let all: Bytes = frames.flat_map(|bytes| bytes.iter()).chain(unread).copied().collect();
                let bytes = all.len();
                account.hold_anyway(all, bytes)
            }
        }
    }
}

impl Opening<'_> {
    /// Moves to the home: `link`, or the scout itself.
    ///
    /// # Errors
    /// How the connection ended instead; everything that waited has been answered.
    pub async fn settle(mut self, session: Session, link: Option<Link>) -> Result<Opened, (Stream, Close)> {
        let Frame { bytes, rest, envelope, .. } = session.frame;
        self.for_home.push(bytes, envelope.id);
        let midway = self.scout.as_ref().filter(|_| link.is_none()).map_or(0, Scout::left);
        let link = match (link, self.scout.take()) {
            (None, Some(scout)) => scout.into_link(),
            (Some(link), None) => link,
            (Some(link), Some(scout)) => {
                self.scout = Some(scout);
                let result = self.part(rest.is_some()).await;
                let label = if result.is_ok() { "moved" } else { "failed" };
                self.balancer.metrics.rehomes.with_label_values(&[label]).inc();
                if let Err(close) = result {
                    return Err((self.into_client(), close));
                }
                link
            }
            (None, None) => {
                return Err((self.into_client(), Close::new(By::Balancer, At::Place, Why::Aborted)));
            }
        };
        let account = self.client.held_by().clone();
        let (client, unread) = self.client.into_parts();
        let unsent = self.for_home.into_bytes(&unread, &account);
        Ok(Opened { client, unsent, rest, link, midway })
    }

    /// Waits until nothing is in flight with the scout, then lets it go. Answers of the client reach it meanwhile;
    /// everything else the client sends is for the home. A partial session frame must be sent first, so with one
    /// nothing more is read.
    async fn part(&mut self, partial: bool) -> Result<(), Close> {
        let due = Instant::now().checked_add(self.config.timeouts.rehome);
        while let Some(scout) = self.scout.as_mut().filter(|scout| !scout.is_quiet()) {
            let late = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let reads = !partial && self.client.room() > 0;
            tokio::select! {
                // A state request is answered before a session is named.
                news = scout.news(None) => match news {
                    Ok(_) => self.heard(news).await?,
                    Err(_) => break,
                },
                frame = self.client.frame(), if reads => match frame {
                    Ok(frame) => self.hold(frame).await?,
                    Err(fault) => return Err(self.faulty(fault).await),
                },
                () = late => break,
                () = self.balancer.shutdown.reaches(self.record.client()) => {
                    return Err(self.refuse(&draining(&self.config), None).await);
                }
            }
        }
        let refused = lost(&self.config);
        let unanswered = match self.scout.take() {
            Some(scout) if scout.is_midway() => {
                return Err(Close::new(By::Backend, At::Opening, Why::BackendLost));
            }
            Some(scout) => scout.into_pending().collect(),
            None => Vec::new(),
        };
        for id in unanswered {
            self.answer(&id, &refused).await?;
        }
        Ok(())
    }

    /// A frame that came after the one that named the session.
    async fn hold(&mut self, frame: Frame) -> Result<(), Close> {
        if let (None, Some(scout)) = (&frame.envelope.method, self.scout.as_mut()) {
            let due = Instant::now().checked_add(self.config.timeouts.rehome);
            if let Err(error) = scout.send(&frame.bytes, &frame.envelope, due).await {
                tracing::debug!(%error, "the scout did not take an answer");
            }
            return Ok(());
        }
        match self.client.keep(frame.envelope.id.as_ref()) {
            Ok(kept) => self.for_home.count(kept),
            Err(fault) => return Err(self.faulty_on(fault, frame.envelope.id).await),
        }
        self.for_home.push(frame.bytes, frame.envelope.id);
        Ok(())
    }
}
