//! Places for connections to an admin socket, and which connection gives one up when all are taken.
//!
//! Nobody can shut others out by holding connections: when all places are taken, the connection that has been without a
//! request for the longest time is closed for the new one (unless a request has come and was not read yet); if there is
//! none, one whose peer does not read its answer. A request in progress is never cut off. Answers that wait for their
//! readers are bounded in bytes, for all connections of a socket together.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Connections served at the same time, for each socket.
pub const CONNECTIONS_MAX: usize = 64;
/// A connection has this long to begin before it may be closed for another, so that a request sent at once is read.
pub(super) const BEGIN_MIN: Duration = Duration::from_millis(100);
/// A peer has this long to read its answer before it may be closed for another.
pub(super) const ANSWER_MIN: Duration = Duration::from_millis(500);
/// Answers that wait for their readers; one alone may be larger.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The places of one socket.
#[derive(Debug, Default)]
pub(super) struct Places {
    table: Mutex<Table>,
    /// A place has become free, or may be given up.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    held: BTreeMap<u64, Held>,
}

#[derive(Debug)]
struct Held {
    stage: Stage,
    since: Instant,
    /// Of an answer.
    bytes: usize,
    end: CancellationToken,
    /// A copy of its socket, to see whether it has unread bytes.
    socket: Option<OwnedFd>,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has sent no whole request since it began, or since its last answer.
    Idle,
    /// Its request is in progress.
    Asked,
    /// Its answer is made, and is sent as its peer reads.
    Answered,
}

/// The place of one connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    end: CancellationToken,
    /// The whole answer is in the buffers of the connection.
    taken: AtomicBool,
}

/// Whether there is a place.
#[derive(Debug)]
pub(super) enum Admitted {
    Place(Place),
    /// Not before this moment, or before something changes.
    NotBefore(Instant),
    /// Every connection has a request in progress.
    Full,
}

impl Places {
    /// A place for one more connection, if need be that of another, which is closed. Takes `socket` if there is one.
    pub(super) fn admit(self: &Arc<Self>, now: Instant, socket: &mut Option<OwnedFd>) -> Admitted {
        let mut table = self.table();
        while table.held.len() >= CONNECTIONS_MAX {
            match table.first_to_go(now) {
                Some((number, when)) if when <= now => table.close_unless_unread(number, now),
                Some((_, when)) => return Admitted::NotBefore(when),
                None => return Admitted::Full,
            }
        }
        let (number, end) = (table.next, CancellationToken::new());
        table.next = table.next.saturating_add(1);
        table.held.insert(
            number,
            Held { stage: Stage::Idle, since: now, bytes: 0, end: end.clone(), socket: socket.take() },
        );
        Admitted::Place(Place { places: Arc::clone(self), number, end, taken: AtomicBool::new(false) })
    }

    /// Returns when asking again may help.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Which connection gives up its place first, and from when on: an idle one before any with an unread answer.
    fn first_to_go(&self, now: Instant) -> Option<(u64, Instant)> {
        let oldest = |stage: Stage, least: Duration| {
            let of_stage = self.held.iter().filter(move |(_, held)| held.stage == stage);
            let (number, held) = of_stage.min_by_key(|(_, held)| held.since)?;
            Some((*number, held.since.checked_add(least).unwrap_or(now)))
        };
        let idle = oldest(Stage::Idle, BEGIN_MIN);
        let unread = oldest(Stage::Answered, ANSWER_MIN);
        match (idle, unread) {
            // One that may go now goes before one that may go later.
            (Some((_, later)), Some((number, when))) if later > now && when <= now => Some((number, when)),
            (None, unread) => unread,
            (idle, _) => idle,
        }
    }

    /// Closes a connection to make room. If it has unread bytes, since threads may be busy, its time begins anew instead.
    fn close_unless_unread(&mut self, number: u64, now: Instant) {
        match self.held.get_mut(&number) {
            Some(held) if held.stage == Stage::Idle && held.has_unread() => held.since = now,
            _ => self.close(number),
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(held) = self.held.remove(&number) {
            held.end.cancel();
        }
    }

    /// Closes connections with unread answers, the oldest first, until the rest fits; never that of `keep`.
    fn bound(&mut self, keep: u64) {
        while self.held.values().fold(0_usize, |sum, held| sum.saturating_add(held.bytes)) > ANSWER_BYTES_MAX
        {
            let others = self.held.iter().filter(|(number, held)| **number != keep && held.bytes > 0);
            let Some(number) = others.min_by_key(|(_, held)| held.since).map(|(number, _)| *number) else {
                return;
            };
            self.close(number);
        }
    }
}

impl Held {
    fn has_unread(&self) -> bool {
        let Some(socket) = &self.socket else { return false };
        SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]).is_ok_and(|bytes| bytes > 0)
    }
}

impl Place {
    /// Cancelled when the connection has to make room.
    pub(super) fn end(&self) -> &CancellationToken {
        &self.end
    }

    /// A whole request was received.
    pub(super) fn asked(&self) {
        self.taken.store(false, Ordering::Relaxed);
        self.enter(Stage::Asked, 0);
    }

    /// Its answer is `body`, which notes when the connection has taken it over.
    pub(super) fn answered(self: &Arc<Self>, body: Body) -> Answer {
        let bytes =
            body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
        self.enter(Stage::Answered, bytes);
        Answer { body, place: Arc::clone(self) }
    }

    /// Everything was written.
    fn flushed(&self) {
        if self.taken.swap(false, Ordering::Relaxed) {
            self.enter(Stage::Idle, 0);
        }
    }

    fn enter(&self, stage: Stage, bytes: usize) {
        let mut table = self.places.table();
        if let Some(held) = table.held.get_mut(&self.number) {
            (held.stage, held.since, held.bytes) = (stage, Instant::now(), bytes);
            table.bound(self.number);
        }
        drop(table);
        self.places.changed.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.table().held.remove(&self.number);
        self.places.changed.notify_one();
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    place: Arc<Place>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.place.taken.store(true, Ordering::Relaxed);
    }
}

/// A connection that notes when all is written: hyper flushes only when its own buffers are empty.
#[derive(Debug)]
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) place: Arc<Place>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.place.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(now: Instant) -> (Arc<Places>, Vec<Arc<Place>>) {
        let places = Arc::new(Places::default());
        let all = (0..CONNECTIONS_MAX).map(|_| Arc::new(place(&places, now))).collect();
        (places, all)
    }

    fn place(places: &Arc<Places>, now: Instant) -> Place {
        match places.admit(now, &mut None) {
            Admitted::Place(place) => place,
            other => panic!("{other:?}"),
        }
    }

    fn closed(all: &[Arc<Place>]) -> Vec<usize> {
        (0..all.len()).filter(|at| all[*at].end.is_cancelled()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_asked_and_was_not_read_yet_is_not_idle() {
        let places = Arc::new(Places::default());
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let asked = match places.admit(Instant::now(), &mut Some(near.into())) {
            Admitted::Place(place) => place,
            other => panic!("{other:?}"),
        };
        let silent: Vec<_> = (1..CONNECTIONS_MAX).map(|_| place(&places, Instant::now())).collect();
        io::Write::write_all(&mut &far, b"G").unwrap();
        tokio::time::advance(BEGIN_MIN).await;
        let _next = place(&places, Instant::now());
        assert!(!asked.end.is_cancelled() && silent[0].end.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_idled_longest_makes_room() {
        let (places, all) = full(Instant::now());
        assert!(
            matches!(places.admit(Instant::now(), &mut None), Admitted::NotBefore(_)),
            "they have just come"
        );
        tokio::time::advance(BEGIN_MIN).await;
        all[0].asked();
        drop(all[1].answered(Body::empty()));
        all[1].flushed();
        tokio::time::advance(BEGIN_MIN).await;
        let _new = place(&places, Instant::now());
        assert_eq!(closed(&all), [2]);
        assert_eq!(places.table().held.len(), CONNECTIONS_MAX, "never one more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_worked_on_is_never_cut_off() {
        let (places, all) = full(Instant::now());
        for place in &all {
            place.asked();
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(matches!(places.admit(Instant::now(), &mut None), Admitted::Full));
        let answer = all[7].answered(Body::from("unread"));
        assert!(
            matches!(places.admit(Instant::now(), &mut None), Admitted::NotBefore(_)),
            "it gets a moment to be read"
        );
        tokio::time::advance(ANSWER_MIN).await;
        let _new = place(&places, Instant::now());
        assert_eq!(closed(&all), [7]);
        drop(answer);
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_are_bounded_in_bytes() {
        let (places, all) = full(Instant::now());
        let mut answers = Vec::new();
        for place in &all {
            place.asked();
            answers.push(place.answered(Body::from(vec![b'x'; ANSWER_BYTES_MAX / 8])));
        }
        assert_eq!(closed(&all).len(), CONNECTIONS_MAX - 8);
        assert!(places.table().held.values().map(|held| held.bytes).sum::<usize>() <= ANSWER_BYTES_MAX);
        all[63].asked();
        answers.push(all[63].answered(Body::from(vec![b'x'; 2 * ANSWER_BYTES_MAX])));
        assert!(!all[63].end.is_cancelled(), "one alone may be larger");
    }

    #[tokio::test]
    async fn places_are_given_back() {
        let (places, all) = full(Instant::now());
        drop(all);
        assert!(places.table().held.is_empty());
    }
}
