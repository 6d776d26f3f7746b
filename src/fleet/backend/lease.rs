//! The counted use of a backend: while one is held, the backend is not over.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;

use super::Backend;
use crate::net::{self, Stream};
use crate::runtime::descriptors::Purpose;

/// How long a connection that has ended here keeps its place if the server does not close its side.
const PARTING_MAX: Duration = Duration::from_secs(5);

/// A counted use of a backend: every open link holds one.
#[derive(Debug)]
pub struct Lease(Arc<Backend>);

impl Lease {
    /// Counts one more link.
    pub fn new(backend: &Arc<Backend>) -> Self {
        backend.connections.fetch_add(1, Ordering::Relaxed);
        backend.series.connections_active.inc();
        Self(Arc::clone(backend))
    }

    /// Counts one more link, if there may be one more.
    pub fn within_bound(backend: &Arc<Backend>) -> Option<Self> {
        let most = backend.connections_max.load(Ordering::Relaxed);
        let lease = Self::new(backend);
        // Counted first, so that two at once cannot both exceed the bound.
        (most == 0 || backend.connections() <= most).then_some(lease)
    }

    /// Whose.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.series.connections_active.dec();
        if self.0.connections.fetch_sub(1, Ordering::Relaxed) == 1 && self.0.is_retired() {
            self.0.nudge.notify_one();
        }
    }
}

/// An open connection to a backend, and its lease. Dropped, it is closed in order, and counts until the server has
/// closed its side too: until then it takes one of the server's places, and must count towards their bound. One
/// that is reset stops counting at once.
#[derive(Debug)]
pub struct Leased(Option<(Stream, Lease)>);

impl Leased {
    /// A connection that is open.
    pub fn new(stream: Stream, lease: Lease) -> Self {
        Self(Some((stream, lease)))
    }

    /// Whose.
    pub fn backend(&self) -> &Arc<Backend> {
        self.whole().1.backend()
    }

    /// What carries its bytes, and whose it is.
    pub fn apart(&mut self) -> (&mut Stream, &Arc<Backend>) {
        let (stream, lease) = self.whole_mut();
        (stream, lease.backend())
    }

    #[expect(clippy::expect_used, reason = "it is taken when this is dropped")]
    fn whole(&self) -> &(Stream, Lease) {
        self.0.as_ref().expect("it has not been dropped")
    }

    #[expect(clippy::expect_used, reason = "it is taken when this is dropped")]
    fn whole_mut(&mut self) -> &mut (Stream, Lease) {
        self.0.as_mut().expect("it has not been dropped")
    }
}

impl Deref for Leased {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        &self.whole().0
    }
}

impl DerefMut for Leased {
    fn deref_mut(&mut self) -> &mut Stream {
        &mut self.whole_mut().0
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let Some((stream, lease)) = self.0.take() else { return };
        // When descriptors run out, freeing one matters more than an exact count.
        if net::is_over(&stream) || !Purpose::Link.has_room_for(stream.socket()) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            net::part(stream, PARTING_MAX).await;
            drop(lease);
        });
    }
}
