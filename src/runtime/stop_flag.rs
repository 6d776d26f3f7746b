//! What tells one connection that it has to end, or to check whether it has to.
//!
//! Each of thousands has one, so it is a flag and a waker, not a future for each thing that may happen.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// The flag and the waker. One task waits for it at a time.
#[derive(Debug, Default)]
pub struct StopFlag {
    set: AtomicBool,
    task: AtomicWaker,
}

impl StopFlag {
    /// The connection has to end: for good.
    pub fn set(&self) {
        self.set.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Makes the connection check what else may have happened.
    pub fn wake(&self) {
        self.task.wake();
    }

    /// Whether the connection has to end.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Ready if the connection has to end; woken when it has, and by [`wake`](Self::wake).
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        // The waker is registered before the flag is read: it may be set in between.
        self.task.register(cx.waker());
        if self.is_set() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until the connection has to end.
    pub async fn wait(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_hears_it_and_so_does_whoever_comes_later() {
        let stop_flag = Arc::new(StopFlag::default());
        let waiting = tokio::spawn({
            let stop_flag = Arc::clone(&stop_flag);
            async move { stop_flag.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(!stop_flag.is_set());
        stop_flag.set();
        waiting.await.unwrap();
        stop_flag.wait().await;
    }

    #[tokio::test]
    async fn ringing_wakes_and_ends_nothing() {
        let stop_flag = Arc::new(StopFlag::default());
        let (mut looks, waits) = (0, Arc::clone(&stop_flag));
        let second_look = tokio::spawn(poll_fn(move |cx| {
            looks += 1;
            assert!(waits.poll(cx).is_pending());
            if looks == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        tokio::task::yield_now().await;
        stop_flag.wake();
        second_look.await.unwrap();
        assert!(!stop_flag.is_set());
    }
}
