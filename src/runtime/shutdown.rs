//! The end of all connections, spread over a time: clients that are closed all at once come back all at once.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::runtime::stop_flag::StopFlag;

/// Whether connections close, and since when.
#[derive(Debug, Default)]
pub struct Shutdown {
    begun: CancellationToken,
    at_once: CancellationToken,
    spread: OnceLock<(Instant, Duration)>,
    /// The flags of connections that do not wait for [`begun`](Self::begun).
    stop_flags: Mutex<Slab<Arc<StopFlag>>>,
}

impl Shutdown {
    /// From now on connections close, the last of them after `spread`.
    pub fn begin(&self, spread: Duration) {
        // The first call counts.
        let (_, _) = *self.spread.get_or_init(|| (Instant::now(), spread));
        self.begun.cancel();
        for (_, stop_flag) in &*self.stop_flags() {
            stop_flag.wake();
        }
    }

    /// Everything closes now.
    pub fn at_once(&self) {
        self.at_once.cancel();
        self.begin(Duration::ZERO);
    }

    /// Whether connections begin to close, or have begun to.
    pub fn has_begun(&self) -> bool {
        self.spread.get().is_some()
    }

    /// Wakes `stop_flag` when connections begin to close, until its number is unregistered. Whoever asks
    /// [`has_begun`](Self::has_begun) after this cannot miss it.
    pub fn register(&self, stop_flag: &Arc<StopFlag>) -> usize {
        self.stop_flags().insert(Arc::clone(stop_flag))
    }

    /// Forgets what was registered under `number`.
    pub fn unregister(&self, number: usize) {
        drop(self.stop_flags().try_remove(number));
    }

    fn stop_flags(&self) -> MutexGuard<'_, Slab<Arc<StopFlag>>> {
        self.stop_flags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until connections begin to close.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Waits until the connection of `client` is to close.
    #[expect(clippy::manual_async_fn, reason = "an async fn keeps its arguments twice, in every connection")]
    pub fn reaches(&self, client: SocketAddr) -> impl Future<Output = ()> + Send {
        async move {
            self.begun.cancelled().await;
            let Some(&(begun, spread)) = self.spread.get() else { return };
            let Some(moment) = begun.checked_add(moment(client, spread)) else { return };
            // Boxed, so that it takes no room in a connection before that.
            Box::pin(async {
                tokio::select! {
                    () = self.at_once.cancelled() => {}
                    () = sleep_until(moment) => {}
                }
            })
            .await;
        }
    }
}

/// How long after the beginning a client's connection closes: always the same for one client.
fn moment(client: SocketAddr, spread: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    client.hash(&mut hasher);
    let permyriad = u32::try_from(hasher.finish().checked_rem(10_000).unwrap_or(0)).unwrap_or(0);
    spread.checked_div(10_000).unwrap_or(spread).saturating_mul(permyriad)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[test]
    fn moments_lie_evenly_within_the_spread() {
        const SPREAD: Duration = Duration::from_secs(10);
        let mut tenths = [0; 10];
        for port in 1..=10_000 {
            let moment = moment(SocketAddr::from(([10, 0, 0, 1], port)), SPREAD);
            assert!(moment < SPREAD);
            tenths[usize::try_from(moment.as_secs()).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|count| (800..1200).contains(count)), "{tenths:?}");
        assert_eq!(moment(SocketAddr::from(([10, 0, 0, 1], 1)), Duration::ZERO), Duration::ZERO);
    }

    #[tokio::test]
    async fn what_is_registered_is_woken_when_connections_begin_to_close() {
        let (shutdown, registered, removed) = (Shutdown::default(), Arc::default(), Arc::default());
        let wakes = |stop_flag: &Arc<StopFlag>| {
            let (stop_flag, mut looks) = (Arc::clone(stop_flag), 0);
            tokio::spawn(poll_fn(move |cx| {
                looks += 1;
                assert!(stop_flag.poll(cx).is_pending());
                if looks == 2 { Poll::Ready(()) } else { Poll::Pending }
            }))
        };
        shutdown.register(&registered);
        let number = shutdown.register(&removed);
        shutdown.unregister(number);
        let (woken, not) = (wakes(&registered), wakes(&removed));
        tokio::task::yield_now().await;
        assert!(!shutdown.has_begun() && !woken.is_finished());
        shutdown.begin(Duration::from_secs(3600));
        assert!(shutdown.has_begun());
        woken.await.unwrap();
        tokio::task::yield_now().await;
        assert!(!not.is_finished());
        assert_eq!(Arc::strong_count(&removed), 2, "the test's own");
    }

    #[tokio::test]
    async fn at_once_outdoes_a_spread_that_has_begun() {
        let shutdown = Shutdown::default();
        let client = SocketAddr::from(([10, 0, 0, 1], 7));
        let mut reached = Box::pin(shutdown.reaches(client));
        assert!(futures_util::poll!(&mut reached).is_pending());
        shutdown.begin(Duration::from_secs(3600));
        assert!(futures_util::poll!(&mut reached).is_pending());
        shutdown.at_once();
        reached.await;
    }
}
