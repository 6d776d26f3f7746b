//! What tells one connection that it has to look up from its bytes, and perhaps to end.
//!
//! Each of thousands has one, so it is a flag and a bell, not a future of each thing that may happen.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// The flag and the bell. One task waits for it at a time.
#[derive(Debug, Default)]
pub struct Alarm {
    raised: AtomicBool,
    task: AtomicWaker,
}

impl Alarm {
    /// The connection has to end: for good.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Makes the connection look at what else may concern it.
    pub fn ring(&self) {
        self.task.wake();
    }

    /// Whether the connection has to end.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Ready if the connection has to end; woken when it has, and whenever it is rung for.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        // First where to ring, then whether there is anything to say: in between it may come.
        self.task.register(cx.waker());
        if self.is_raised() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until the connection has to end.
    pub async fn raised(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_hears_it_and_so_does_whoever_comes_later() {
        let alarm = Arc::new(Alarm::default());
        let waiting = tokio::spawn({
            let alarm = Arc::clone(&alarm);
            async move { alarm.raised().await }
        });
        tokio::task::yield_now().await;
        assert!(!alarm.is_raised());
        alarm.raise();
        waiting.await.unwrap();
        alarm.raised().await;
    }

    #[tokio::test]
    async fn ringing_wakes_and_ends_nothing() {
        let alarm = Arc::new(Alarm::default());
        let (mut looks, waits) = (0, Arc::clone(&alarm));
        let second_look = tokio::spawn(poll_fn(move |cx| {
            looks += 1;
            assert!(waits.poll(cx).is_pending());
            if looks == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        tokio::task::yield_now().await;
        alarm.ring();
        second_look.await.unwrap();
        assert!(!alarm.is_raised());
    }
}
