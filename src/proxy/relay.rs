//! The relay: two independent directions, every byte in order and unchanged, until both have ended.
//!
//! An idle connection holds no buffer: bytes are read into one that the thread lends, written at once, and only what the
//! other side does not take yet is copied aside. A direction that proves bulky goes through a pipe instead, uncopied
//! ([`splice`]). The directions are joined, not raced: a FIN is passed on after the last byte, and the other
//! direction goes on, for `timeouts.half_close` at most. A reset is passed on as a reset.
//!
//! Thousands of these wait at a time, so it is a struct whose size can be read off, not an `async fn`.

pub mod tap;
pub(super) mod splice;
pub mod direction;
mod poll_on_wake;
pub(super) mod ending;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::close::{At, By, Close, Why};
use crate::config::Timeouts;
use crate::net::{self, Stream};
use crate::session::Attachment;
use direction::{Direction, RelayFault, Tally};

/// Carries bytes until both directions have ended, one has failed, or `stop` says why not to go on.
pub struct Relay<'a, Stop> {
    client: &'a mut Stream,
    backend: &'a mut Stream,
    up: Direction<'a>,
    down: Direction<'a>,
    tally: Tally<'a>,
    /// Let go of at the backend's end: what it has left it has unloaded, however long the client takes to leave.
    owned: &'a OnceLock<Box<Attachment>>,
    /// Whose end came first.
    first_end: Option<By>,
    /// A client's end is not passed on: the backend's socket is left as it is, for whoever keeps it.
    lingers: bool,
    half_close: HalfClose,
    idle: Option<Box<Idle>>,
    stop: Stop,
}

/// How long the second end may follow the first.
enum HalfClose {
    /// For ever.
    Unbounded,
    /// No end has come yet.
    For(Duration),
    /// The first has.
    Until(Pin<Box<Sleep>>),
}

/// Ends a connection on which no byte has moved for some time.
struct Idle {
    limit: Duration,
    moved: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<'a, Stop: Future<Output = Why> + Unpin> Relay<'a, Stop> {
    /// Begins. `lingers`: a client's end is not passed on.
    pub fn new(
        (client, up): (&'a mut Stream, Direction<'a>),
        (backend, down): (&'a mut Stream, Direction<'a>),
        tally: Tally<'a>,
        owned: &'a OnceLock<Box<Attachment>>,
        timeouts: &Timeouts,
        lingers: bool,
        stop: Stop,
    ) -> Self {
        let idle = |limit| Box::new(Idle { limit, moved: Instant::now(), timer: Box::pin(sleep(limit)) });
        let idle = timeouts.idle.map(idle);
        let half_close = timeouts.half_close.map_or(HalfClose::Unbounded, HalfClose::For);
        Self { client, backend, up, down, tally, owned, first_end: None, lingers, half_close, idle, stop }
    }

    /// Moves what can be moved now.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        let Self { client, backend, up, down, tally, .. } = self;
        let passes_end = !self.lingers;
        let ends = [
            (By::Client, up.poll(cx, client, backend, passes_end, *tally)),
            (By::Backend, down.poll(cx, backend, client, true, *tally)),
        ];
        let both = up.is_over() && down.is_over();
        for (by, end) in ends {
            let Poll::Ready(result) = end else { continue };
            match (result, self.first_end) {
                (Ok(()), None) => {
                    self.first_end = Some(by);
                    if self.lingers && by == By::Client {
                        return Poll::Ready(fin(by));
                    }
                    if let (By::Backend, Some(attachment)) = (by, self.owned.get()) {
                        attachment.let_go();
                    }
                    if let HalfClose::For(limit) = self.half_close {
                        self.half_close = HalfClose::Until(Box::pin(sleep(limit)));
                    }
                }
                (Err(fault), None) => return Poll::Ready(failed(by, &fault)),
                // After a FIN the other side may fail as it likes: an RST in answer to late bytes is an ordinary end.
                (Err(_), Some(first)) => return Poll::Ready(fin(first)),
                (Ok(()), Some(_)) => {}
            }
        }
        match self.first_end {
            Some(first) if both => Poll::Ready(fin(first)),
            _ => Poll::Pending,
        }
    }

    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        if let (Some(first), HalfClose::Until(timer)) = (self.first_end, &mut self.half_close)
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Close { why: Why::Timeout, ..fin(first) });
        }
        match &mut self.idle {
            Some(idle) => idle.poll(cx, self.up.has_moved() | self.down.has_moved()),
            None => Poll::Pending,
        }
    }
}

impl<Stop: Future<Output = Why> + Unpin> Future for Relay<'_, Stop> {
    type Output = Close;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Close> {
        let relay = self.get_mut();
        if let Poll::Ready(close) = relay.poll_bytes(cx) {
            if close.why == Why::Reset {
                match close.by {
                    By::Client if relay.lingers => {}
                    By::Client => net::reset(relay.backend),
                    By::Backend | By::Balancer => net::reset(relay.client),
                }
            }
            return Poll::Ready(close);
        }
        if let Poll::Ready(why) = Pin::new(&mut relay.stop).poll(cx) {
            return Poll::Ready(Close::new(By::Balancer, At::Relay, why));
        }
        relay.poll_timers(cx)
    }
}

impl Idle {
    /// Looks at the clock only when the timer says so, not whenever a byte moves.
    fn poll(&mut self, cx: &mut Context<'_>, has_moved: bool) -> Poll<Close> {
        if has_moved {
            self.moved = Instant::now();
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            match self.moved.checked_add(self.limit) {
                Some(due) if due > Instant::now() => self.timer = Box::pin(sleep_until(due)),
                _ => return Poll::Ready(Close::new(By::Balancer, At::Relay, Why::Timeout)),
            }
        }
    }
}

fn fin(first: By) -> Close {
    Close::new(first, At::Relay, Why::Fin)
}

/// The close that a failed direction means; `from` is the side it reads.
fn failed(from: By, fault: &RelayFault) -> Close {
    let to = if from == By::Client { By::Backend } else { By::Client };
    let io = |by, error: &io::Error| Close::io(by, At::Relay, error);
    match fault {
        RelayFault::Read(error) => io(from, error),
        RelayFault::Write(error) => io(to, error),
        RelayFault::Malformed => Close::new(from, At::Relay, Why::Malformed),
    }
}

#[cfg(test)]
mod sealed;
#[cfg(test)]
mod tests;
