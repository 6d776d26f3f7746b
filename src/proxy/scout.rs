//! A scout at work: it answers the client's frames until one names a session, its bytes unchanged.
//!
//! What it still owes the client and what the client owes it is counted, because only a connection with nothing in
//! flight can be moved. Frames are forwarded whole where they are small, so that a scout that dies between two of them
//! can be replaced without the client noticing.

use std::collections::HashMap;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::close::By;
use crate::fleet::{Health, Standing};
use crate::link::{Link, StateFrame};
use crate::net;
use crate::wire::{Envelope, Head, Id, Scan};

/// Frames up to this size are forwarded whole.
const WHOLE_BYTES_MAX: usize = 64 * 1024;

/// The provisional backend.
#[derive(Debug)]
pub struct Scout {
    link: Link,
    standing: watch::Receiver<Standing>,
    /// Requests of the client that it has not answered.
    pending: HashMap<Id, Pending>,
    /// Requests of its own that the client has not answered.
    asks: usize,
    begun: Option<Begun>,
}

/// A request the scout has to answer.
#[derive(Debug)]
struct Pending {
    state: Option<StateFrame>,
    /// By when a state frame must be answered: nothing else is sent meanwhile.
    due: Option<Instant>,
}

/// A frame from the scout of which some has been read.
#[derive(Debug)]
struct Begun {
    scan: Scan,
    body_left: usize,
}

/// What came from the scout.
#[derive(Debug)]
pub struct News {
    /// Bytes for the client.
    pub bytes: Bytes,
    /// A state frame was answered with a result.
    pub state: Option<StateFrame>,
    /// And that result said this.
    pub version: Option<Box<[u8]>>,
}

impl Scout {
    /// Puts a greeted link to work.
    pub fn new(link: Link) -> Self {
        let standing = link.lease.backend().standing();
        Self { link, standing, pending: HashMap::new(), asks: 0, begun: None }
    }

    /// The link, for looking.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The link, to be kept: the scout is the home. What it has sent of a frame it had begun goes on from there.
    pub fn into_link(self) -> Link {
        self.link
    }

    /// Whether a state frame waits for its answer: the next frame must wait for it too.
    pub fn is_busy(&self) -> bool {
        self.pending.values().any(|pending| pending.state.is_some())
    }

    /// Whether it has a request with this id to answer.
    pub fn owes(&self, id: &Id) -> bool {
        self.pending.contains_key(id)
    }

    /// Requests of the client in flight.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether nothing is in flight in either direction.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.asks == 0 && !self.is_midway()
    }

    /// Whether a part of a frame has reached the client, so that nothing but its rest may follow.
    pub fn is_midway(&self) -> bool {
        self.begun.is_some()
    }

    /// Bytes of that rest.
    pub fn left(&self) -> usize {
        self.begun.as_ref().map_or(0, |begun| begun.body_left)
    }

    /// The ids that wait for an answer, and the state frames among them.
    pub fn into_pending(self) -> impl Iterator<Item = (Id, Option<StateFrame>)> {
        self.pending.into_iter().map(|(id, pending)| (id, pending.state))
    }

    /// Sends a frame of the client, by `due`. `state` marks one that changes the connection's state.
    ///
    /// # Errors
    /// The socket's: the scout is lost.
    pub async fn send(
        &mut self,
        bytes: &[u8],
        envelope: &Envelope,
        state: Option<StateFrame>,
        due: Option<Instant>,
    ) -> io::Result<()> {
        match (&envelope.method, &envelope.id) {
            (Some(_), Some(id)) => {
                self.pending.insert(id.clone(), Pending { due: state.as_ref().and(due), state });
            }
            (None, Some(_)) => self.asks = self.asks.saturating_sub(1),
            _ => {}
        }
        let write = self.link.stream.send(bytes);
        let Some(due) = due else { return write.await };
        tokio::time::timeout_at(due, write).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The next bytes for the client. Cancel-safe.
    ///
    /// # Errors
    /// The scout is lost: its socket ended or failed, it sent what is no frame, it did not answer a state frame in time,
    /// or probes say it is down.
    pub async fn news(&mut self) -> io::Result<News> {
        let due = self.pending.values().filter_map(|pending| pending.due).min();
        loop {
            if let Some(news) = self.take()? {
                return Ok(news);
            }
            let late = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = net::hear(By::Backend, &mut self.link.stream, &mut self.link.unread, net::READ_BYTES_MAX) => {
                    if read? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                () = late => return Err(io::ErrorKind::TimedOut.into()),
                down = self.standing.wait_for(|standing| standing.health == Health::Down) => {
                    drop(down);
                    return Err(io::ErrorKind::HostUnreachable.into());
                }
            }
        }
    }

    /// What of `unread` can go to the client.
    fn take(&mut self) -> io::Result<Option<News>> {
        if self.begun.is_none() {
            let head = Head::read(&self.link.unread)
                .map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
            let Some(head) = head else { return Ok(None) };
            let there = self.link.unread.len();
            if there < head.frame_bytes() && head.frame_bytes() <= WHOLE_BYTES_MAX {
                return Ok(None);
            }
            let bytes = self.link.unread.split_to(head.frame_bytes().min(there));
            let mut scan = Scan::default();
            let body = bytes.get(head.head_bytes..).unwrap_or_default();
            scan.feed(body);
            let body_left = head.body_bytes.saturating_sub(body.len());
            return Ok(Some(self.forward(bytes, Begun { scan, body_left })));
        }
        if self.link.unread.is_empty() {
            return Ok(None);
        }
        let Some(mut begun) = self.begun.take() else { return Ok(None) };
        let bytes = self.link.unread.split_to(begun.body_left.min(self.link.unread.len()));
        begun.scan.feed(&bytes);
        begun.body_left = begun.body_left.saturating_sub(bytes.len());
        Ok(Some(self.forward(bytes, begun)))
    }

    /// Notes what a frame settles when it is whole.
    fn forward(&mut self, bytes: BytesMut, begun: Begun) -> News {
        if self.link.unread.is_empty() {
            self.link.unread = BytesMut::new();
        }
        let mut news = News { bytes: bytes.freeze(), state: None, version: None };
        if begun.body_left > 0 {
            self.begun = Some(begun);
            return news;
        }
        // A body that is no envelope settles nothing; the client may make of it what it will.
        let Ok(envelope) = begun.scan.finish() else { return news };
        match (envelope.method, envelope.id) {
            (Some(_), Some(_)) => self.asks = self.asks.saturating_add(1),
            (None, Some(id)) => {
                let state = self.pending.remove(&id).and_then(|pending| pending.state);
                if !envelope.is_error {
                    news.state = state;
                    news.version = envelope.protocol_version;
                }
            }
            _ => {}
        }
        news
    }
}
