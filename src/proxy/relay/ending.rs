//! What may end a connection before its bytes do: its session has to move, everything closes, its backend is down.
//!
//! Thousands wait for these at a time and for hours, and every byte wakes whoever waits: so the first two are one
//! [`StopFlag`], and what takes room or time is there only once it is needed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;

use super::poll_on_wake::PollOnWake;
use crate::balancer::Balancer;
use crate::close::Why;
use crate::config::OnDown;
use crate::fleet::{Backend, Health};
use crate::metrics::Record;
use crate::runtime::stop_flag::StopFlag;

/// Ready with the reason.
pub(in crate::proxy) struct Ending<'a> {
    balancer: &'a Balancer,
    record: &'a Record,
    stop_flag: &'a StopFlag,
    /// Under which the flag is registered to be woken when everything closes.
    number: usize,
    rare: Option<Box<Rare<'a>>>,
}

/// What most connections never wait for.
#[derive(Default)]
struct Rare<'a> {
    /// Until it is this connection's turn to close; from then on that everything does.
    closes: Option<BoxFuture<'a, ()>>,
    is_down: Option<PollOnWake<'a>>,
}

impl<'a> Ending<'a> {
    /// `stop_flag` is set when the session has to move.
    pub(in crate::proxy) fn new(
        balancer: &'a Balancer,
        record: &'a Record,
        backend: &'a Backend,
        stop_flag: &'a Arc<StopFlag>,
    ) -> Self {
        let closes_down = balancer.now().config.placement.on_down == OnDown::Close;
        let rare = closes_down.then(|| {
            let is_down = Some(PollOnWake::new(until_down(balancer, backend)));
            Box::new(Rare { is_down, closes: None })
        });
        let number = balancer.shutdown.register(stop_flag);
        Self { balancer, record, stop_flag, number, rare }
    }
}

impl Future for Ending<'_> {
    type Output = Why;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Why> {
        let ending = self.get_mut();
        if ending.stop_flag.poll(cx).is_ready() {
            return Poll::Ready(Why::Evicted);
        }
        let shutdown = &ending.balancer.shutdown;
        if shutdown.has_begun() {
            let closes = || -> BoxFuture<'_, ()> { Box::pin(shutdown.reaches(ending.record.client())) };
            ending.rare.get_or_insert_default().closes.get_or_insert_with(closes);
        }
        let Some(rare) = &mut ending.rare else { return Poll::Pending };
        if rare.closes.as_mut().is_some_and(|closes| closes.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Why::Draining);
        }
        match rare.is_down.as_mut().map(|is_down| is_down.poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Why::Down),
            _ => Poll::Pending,
        }
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.balancer.shutdown.unregister(self.number);
    }
}

/// Returns when the backend is down and that is to end its connections: not in a panic, which outlasts this outage for
/// them, as nobody knows then who is cut off.
async fn until_down(balancer: &Balancer, backend: &Backend) {
    let mut standing = backend.standing();
    while standing.wait_for(|standing| standing.health == Health::Down).await.is_ok() {
        if !balancer.now().is_panic() {
            return;
        }
        if standing.wait_for(|standing| standing.health != Health::Down).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}
