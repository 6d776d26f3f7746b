//! One direction of a relay: what it begins with, who looks on, and who counts.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;

use super::tap::{Tap, Tapped};
use crate::fleet::Backend;
use crate::metrics::{BackendSeries, Record};

/// One direction: what it sends before it reads, who looks on, and who counts.
pub struct Direction<'a> {
    /// What is at hand already.
    pub(super) first: Bytes,
    /// Look at the bytes that follow `first`.
    pub taps: Vec<Box<dyn Tap + 'a>>,
    pub(super) tally: Tally<'a>,
}

impl<'a> Direction<'a> {
    /// A direction in which `first` is at hand.
    pub fn new(first: Bytes, tally: Tally<'a>) -> Self {
        Self { first, taps: Vec::new(), tally }
    }

    /// Lets `tap` look at everything, from what is at hand on.
    pub fn tap(&mut self, mut tap: impl Tap + 'a) {
        if tap.look(&self.first) == Tapped::More {
            self.taps.push(Box::new(tap));
        }
    }
}

/// Where carried bytes are counted.
#[derive(Clone, Copy)]
pub struct Tally<'a> {
    record: &'a Record,
    series: &'a BackendSeries,
    pub(super) to_client: bool,
}

impl<'a> Tally<'a> {
    /// Of bytes from the client.
    pub fn to_backend(record: &'a Record, backend: &'a Backend) -> Self {
        Self { record, series: backend.series(), to_client: false }
    }

    /// Of bytes to the client.
    pub fn to_client(record: &'a Record, backend: &'a Backend) -> Self {
        Self { record, series: backend.series(), to_client: true }
    }

    pub(super) fn add(self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.to_client {
            self.record.add_to_client(bytes);
            self.series.bytes_to_client.inc_by(bytes);
        } else {
            self.record.add_to_backend(bytes);
            self.series.bytes_to_backend.inc_by(bytes);
        }
    }
}

/// Lets whoever still looks on see `bytes`.
pub(super) fn show(bytes: &[u8], taps: &mut Vec<Box<dyn Tap + '_>>) -> Result<(), Fault> {
    let mut sound = true;
    taps.retain_mut(|tap| {
        let tapped = tap.look(bytes);
        sound &= tapped != Tapped::Fault;
        tapped == Tapped::More
    });
    if sound { Ok(()) } else { Err(Fault::Malformed) }
}

/// Who fails a direction.
pub(super) enum Fault {
    Read(io::Error),
    Write(io::Error),
    Malformed,
}

/// When bytes last moved.
pub(super) struct Clock {
    start: Instant,
    pub(super) last_ms: AtomicU64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    pub(super) fn tick(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
