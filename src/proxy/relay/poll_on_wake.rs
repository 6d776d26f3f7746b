//! A future that is looked at only when it has something to say, not whenever its task is woken for something else.
//!
//! What may end a connection waits beside its bytes for hours, and every byte wakes the task. A set of futures does this
//! too, and takes 170 bytes more of each connection.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;

/// The future, and whether it has been woken.
pub(in crate::proxy) struct PollOnWake<'a> {
    future: BoxFuture<'a, ()>,
    waker: Arc<WakeFlag>,
}

/// Is woken by the future, and then wakes the task.
struct WakeFlag {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<'a> PollOnWake<'a> {
    /// It has not been looked at yet.
    pub(in crate::proxy) fn new(future: impl Future<Output = ()> + Send + 'a) -> Self {
        let waker = WakeFlag { woken: AtomicBool::new(true), task: AtomicWaker::new() };
        Self { future: Box::pin(future), waker: Arc::new(waker) }
    }

    /// Polls it if it has been woken. Not to be polled again once it is ready.
    pub(in crate::proxy) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        // The task first, then the flag: it may be woken in between.
        self.waker.task.register(cx.waker());
        if !self.waker.woken.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.waker));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn it_is_looked_at_when_it_rings_and_not_before() {
        let looks = AtomicUsize::new(0);
        let (ring, mut rung) = oneshot::channel();
        let mut poll_on_wake = PollOnWake::new(poll_fn(|cx| {
            looks.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut rung).poll(cx).map(Result::unwrap)
        }));
        for _ in 0..3 {
            poll_fn(|cx| {
                assert!(poll_on_wake.poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        let ringing = async {
            tokio::task::yield_now().await;
            ring.send(()).unwrap();
        };
        tokio::join!(poll_fn(|cx| poll_on_wake.poll(cx)), ringing);
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn it_rings_whoever_looked_last() {
        let (ring, rung) = oneshot::channel();
        let mut poll_on_wake = PollOnWake::new(async { rung.await.unwrap() });
        assert!(poll_on_wake.poll(&Context::from_waker(Waker::noop())).is_pending());
        let hearing = tokio::spawn(async move { poll_fn(|cx| poll_on_wake.poll(cx)).await });
        tokio::task::yield_now().await;
        ring.send(()).unwrap();
        hearing.await.unwrap();
    }
}
