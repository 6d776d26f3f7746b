//! A scout at work: it answers the client's frames until one names a session, its bytes unchanged.
//!
//! What it still owes the client and what the client owes it is counted, because only a connection with nothing in
//! flight can be moved. Frames are forwarded whole where they are small, so that a scout that dies between two of them
//! can be replaced without the client noticing.

use std::io;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::close::By;
use crate::fleet::{Health, Standing};
use crate::frames::{Piece, Pieces, more_and_ack, send_by};
use crate::link::Link;
use crate::runtime::account::{Account, Charge, HeldMap};
use crate::wire::{Envelope, Id, Scan};

/// Frames up to this size are forwarded whole.
const WHOLE_BYTES_MAX: usize = 64 * 1024;

/// The provisional backend.
#[derive(Debug)]
pub struct Scout {
    link: Link,
    standing: watch::Receiver<Standing>,
    /// Requests of the client that it has not answered.
    pending: HeldMap<Id, ()>,
    /// Requests of its own that the client has not answered.
    asks: usize,
    pieces: Pieces,
    /// Of a frame that has begun.
    scan: Option<Scan>,
    /// For what has come and has not been given out.
    charge: Option<Charge>,
}

/// What came from the scout.
#[derive(Debug)]
pub struct News {
    /// Bytes for the client.
    pub bytes: Bytes,
    /// The request that they answer, and what they say.
    pub answered: Option<(Id, Envelope)>,
}

impl Scout {
    /// Puts a greeted link to work.
    pub fn new(link: Link, account: &Account) -> Self {
        let standing = link.stream.backend().standing();
        Self {
            link,
            standing,
            pending: HeldMap::new(account),
            asks: 0,
            pieces: Pieces::default(),
            scan: None,
            charge: None,
        }
    }

    /// The link, for looking.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The link, to be kept: the scout is the home. What it has sent of a frame it had begun goes on from there.
    pub fn into_link(self) -> Link {
        self.link
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
        self.pieces.left() > 0
    }

    /// Bytes of that rest.
    pub fn left(&self) -> usize {
        self.pieces.left()
    }

    /// The ids that wait for an answer.
    pub fn into_pending(mut self) -> impl Iterator<Item = Id> {
        self.pending.extract(|_, ()| true).into_iter().map(|(id, ())| id)
    }

    /// Sends a frame of the client, by `due`.
    ///
    /// # Errors
    /// The socket's: the scout is lost.
    pub async fn send(&mut self, bytes: &[u8], envelope: &Envelope, due: Option<Instant>) -> io::Result<()> {
        match (&envelope.method, &envelope.id) {
            (Some(_), Some(id)) => self.pending.insert(id.clone(), ()),
            (None, Some(_)) => self.asks = self.asks.saturating_sub(1),
            _ => {}
        }
        send_by(&mut self.link.stream, bytes, due).await
    }

    /// The next bytes for the client, `due` by then if anything is. Cancel-safe.
    ///
    /// # Errors
    /// The scout is lost: its socket ended or failed, it sent what is no frame, nothing came in time, or probes say it is
    /// down.
    pub async fn news(&mut self, due: Option<Instant>) -> io::Result<News> {
        loop {
            let news = self.take()?;
            self.settle();
            if let Some(news) = news {
                return Ok(news);
            }
            let late = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = more_and_ack(&mut self.link.stream, &mut self.link.unread) => read?,
                () = late => return Err(io::ErrorKind::TimedOut.into()),
                down = self.standing.wait_for(|standing| standing.health == Health::Down) => {
                    drop(down);
                    return Err(io::ErrorKind::HostUnreachable.into());
                }
            }
        }
    }

    /// Charges what has come of a frame that is not whole, apart from what the client has sent.
    fn settle(&mut self) {
        if self.link.unread.is_empty() {
            self.charge = None;
            return;
        }
        let account = self.pending.account();
        let charge = self.charge.get_or_insert_with(|| account.apart().charge());
        charge.force(self.link.unread.capacity());
    }

    /// What of `unread` can go to the client.
    fn take(&mut self) -> io::Result<Option<News>> {
        let piece = self.pieces.take(&mut self.link.unread, WHOLE_BYTES_MAX)?;
        Ok(piece.map(|piece| self.forward(piece)))
    }

    /// Notes what a frame settles when it is whole.
    fn forward(&mut self, piece: Piece) -> News {
        let mut scan = self.scan.take().unwrap_or_else(|| Scan::of(By::Backend));
        scan.feed(piece.body());
        let mut news = News { bytes: piece.bytes.freeze(), answered: None };
        if piece.left > 0 {
            self.scan = Some(scan);
            return news;
        }
        // A body that is no envelope settles nothing; the client may make of it what it will.
        let Ok(envelope) = scan.finish() else { return news };
        match (&envelope.method, &envelope.id) {
            (Some(_), Some(_)) => self.asks = self.asks.saturating_add(1),
            (None, Some(id)) => {
                self.pending.remove(id);
                news.answered = Some((id.clone(), envelope));
            }
            _ => {}
        }
        news
    }
}
