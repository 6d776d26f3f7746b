//! A client's upstreams, one to a backend, by numbers that are never used twice.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::in_flight::At;
use super::upstream::Upstream;
use crate::fleet::Backend;
use crate::place::Dials;
use crate::runtime::account::{Account, Held};

/// What an upstream takes beside what it holds: itself, its socket, and who hears of its backend; and what TLS takes.
const UPSTREAM_BYTES: usize = 3 * 1024;
const SEALED_UPSTREAM_BYTES: usize = 12 * 1024;

/// The upstreams, those that are being made among them.
#[derive(Default)]
pub(super) struct Upstreams {
    by_number: BTreeMap<At, Held<Box<Upstream>>>,
    last: At,
    /// Those that are being made.
    dials: Arc<Dials>,
    /// When those that may be stalling are looked at.
    stalls: Option<Pin<Box<Sleep>>>,
}

impl Upstreams {
    /// Takes one into service, at the expense of `account`: its number.
    pub(super) fn insert(&mut self, upstream: Upstream, account: &Account) -> At {
        self.last = self.last.saturating_add(1);
        let bytes = if upstream.is_sealed() { SEALED_UPSTREAM_BYTES } else { UPSTREAM_BYTES };
        self.by_number.insert(self.last, account.hold_anyway(Box::new(upstream), bytes));
        self.last
    }

    /// Takes one out of service.
    pub(super) fn remove(&mut self, at: At) -> Option<Box<Upstream>> {
        self.by_number.remove(&at).map(Held::into_value)
    }

    /// Takes all of them.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = (At, Box<Upstream>)> + use<> {
        std::mem::take(&mut self.by_number).into_iter().map(|(at, upstream)| (at, upstream.into_value()))
    }

    pub(super) fn get(&self, at: At) -> Option<&Upstream> {
        self.by_number.get(&at).map(|upstream| &***upstream)
    }

    pub(super) fn get_mut(&mut self, at: At) -> Option<&mut Upstream> {
        self.by_number.get_mut(&at).map(|upstream| &mut ***upstream)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (At, &Upstream)> + Clone {
        self.by_number.iter().map(|(at, upstream)| (*at, &***upstream))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (At, &mut Upstream)> {
        self.by_number.iter_mut().map(|(at, upstream)| (*at, &mut ***upstream))
    }

    /// The first with this number or a higher one.
    pub(super) fn first_from(&self, at: At) -> Option<At> {
        self.by_number.range(at..).next().map(|(at, _)| *at)
    }

    /// Their numbers.
    pub(super) fn numbers(&self) -> impl Iterator<Item = At> {
        self.by_number.keys().copied()
    }

    /// The one to a backend.
    pub(super) fn to(&self, backend: &Arc<Backend>) -> Option<At> {
        self.iter().find(|(_, upstream)| Arc::ptr_eq(upstream.backend(), backend)).map(|(at, _)| at)
    }

    /// The backends that there are upstreams to.
    pub(super) fn backends(&self) -> Vec<Arc<Backend>> {
        self.iter().map(|(_, upstream)| Arc::clone(upstream.backend())).collect()
    }

    /// Those that are being made.
    pub(super) fn dials(&self) -> &Arc<Dials> {
        &self.dials
    }

    /// Whether the backends have taken all that was queued for them.
    pub(super) fn have_taken_all(&self) -> bool {
        self.iter().all(|(_, upstream)| upstream.has_taken_all())
    }

    /// Bytes queued for all of them.
    pub(super) fn owed(&self) -> usize {
        self.iter().map(|(_, upstream)| upstream.owed()).fold(0, usize::saturating_add)
    }

    /// One whose backend is in the middle of a frame that goes on coming.
    pub(super) fn midway(&self) -> Option<At> {
        self.iter().find(|(_, upstream)| upstream.is_midway() && !upstream.is_dry()).map(|(at, _)| at)
    }

    /// Has them looked at after this time, unless that is to happen anyway; whether that is new.
    pub(super) fn watch_stalls(&mut self, after: Duration) -> bool {
        let is_new = self.stalls.is_none();
        self.stalls.get_or_insert_with(|| Box::pin(sleep(after)));
        is_new
    }

    /// Ready once, when they are to be looked at.
    pub(super) fn poll_stalls(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.stalls.as_mut().is_none_or(|stalls| stalls.as_mut().poll(cx).is_pending()) {
            return Poll::Pending;
        }
        self.stalls = None;
        Poll::Ready(())
    }
}
