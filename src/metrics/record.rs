//! One connection's record: opened at accept, settled exactly once, in `Drop` at the latest.
//!
//! Settling writes the access line and moves the counters, so they are right however the connection's task ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Metrics;
use crate::close::{At, By, Close, Why};
use crate::config::canonical;
use crate::wire::SessionId;

/// The record.
#[derive(Debug)]
pub struct Record {
    metrics: Arc<Metrics>,
    listener: Arc<str>,
    client: SocketAddr,
    accepted: Instant,
    session: Option<SessionId>,
    placed: Option<(Arc<str>, &'static str)>,
    to_backend: AtomicU64,
    to_client: AtomicU64,
    close: Close,
}

impl Record {
    /// A connection has been accepted.
    pub fn open(metrics: &Arc<Metrics>, listener: &Arc<str>, client: SocketAddr) -> Self {
        metrics.connections_accepted.with_label_values(&[listener]).inc();
        metrics.connections_active.with_label_values(&[listener]).inc();
        Self {
            metrics: Arc::clone(metrics),
            listener: Arc::clone(listener),
            client: canonical(client),
            accepted: Instant::now(),
            session: None,
            placed: None,
            to_backend: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            close: Close::new(By::Balancer, At::Accept, Why::Aborted),
        }
    }

    /// A PROXY header names the client's real address.
    pub fn comes_from(&mut self, client: SocketAddr) {
        self.client = canonical(client);
    }

    /// The client's address.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// The session that it was placed for.
    pub fn session(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }

    /// The connection's session is placed; its opening is over. With routing by session, only the first placement is
    /// recorded.
    pub fn placed(&mut self, session: Option<SessionId>, backend: &Arc<str>, reason: &'static str) {
        if self.placed.is_some() {
            return;
        }
        self.metrics.opening_duration.observe(self.accepted.elapsed().as_secs_f64());
        self.session = session;
        self.placed = Some((Arc::clone(backend), reason));
        self.close.at = At::Relay;
    }

    /// The phase that the connection has reached, in case its task is dropped.
    pub fn reached(&mut self, at: At) {
        self.close.at = at;
    }

    /// Bytes carried from the client.
    pub fn add_to_backend(&self, bytes: u64) {
        self.to_backend.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes carried to the client.
    pub fn add_to_client(&self, bytes: u64) {
        self.to_client.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The connection is over.
    pub fn settle(mut self, close: Close) {
        self.close = close;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Close { by, at, why } = self.close;
        let is_known = Close::all().any(|known| known == self.close);
        debug_assert!(is_known || std::thread::panicking(), "{} is in no list", self.close);
        let m = &self.metrics;
        m.connections_active.with_label_values(&[&self.listener]).dec();
        m.connections_closed.with_label_values(&[&self.listener, by.label(), at.label(), why.label()]).inc();
        tracing::info!(
            target: "sessile::access",
            listener = %self.listener,
            client = %self.client,
            session = self.session.as_ref().map(tracing::field::display),
            backend = self.placed.as_ref().map(|(name, _)| &**name),
            reason = self.placed.as_ref().map(|(_, reason)| *reason),
            to_backend = self.to_backend.load(Ordering::Relaxed),
            to_client = self.to_client.load(Ordering::Relaxed),
            seconds = self.accepted.elapsed().as_secs_f64(),
            by = by.label(),
            at = at.label(),
            why = why.label(),
            "connection closed"
        );
    }
}
