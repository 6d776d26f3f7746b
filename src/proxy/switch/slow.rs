//! Backends that take little: their client is not to wait behind them without end.
//!
//! A client's bytes come in one order: a frame for a backend that has no room keeps back the frames for others behind it. A
//! large frame is held for as long as there is room on the client's account. Behind that, the client waits; but only for a
//! backend that takes as much as a queue holds in each `timeouts.opening`, in whatever pieces. Of
//! backends that take nothing at all, see `stall`.

use std::time::Duration;

use tokio::time::Instant;

use super::in_flight::At;
use super::{QUEUE_BYTES_MAX, Switch};
use crate::close::Close;

/// How slow a backend may be before requests that find no room are refused instead of waiting; at most half of what it
/// takes to be given up.
const REFUSED_AFTER: Duration = Duration::from_secs(4);
/// Refusals of its own requests that a backend may leave untaken while more of it is read.
const REFUSALS_BYTES_MAX: usize = 16 * 1024;

/// What a backend takes while its client waits for that.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// Bytes taken in all.
    taken: u64,
    /// Since when somebody has found no room, or since when it has taken a queue's worth, and what it had taken then.
    full: Option<(Instant, u64)>,
    /// Bytes of refusals among what it has not taken.
    refusals: usize,
}

impl Intake {
    pub(super) fn took(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// It has taken everything.
    pub(super) fn drained(&mut self) {
        self.refusals = 0;
    }

    /// A request of the backend is refused.
    pub(super) fn refused(&mut self, bytes: usize) {
        self.refusals = self.refusals.saturating_add(bytes);
    }

    /// Whether it asks on without taking what it is told about that.
    pub(super) fn is_deaf(&self) -> bool {
        self.refusals >= REFUSALS_BYTES_MAX
    }

    /// There is room.
    pub(super) fn is_free(&mut self) {
        self.full = None;
    }

    /// Somebody has found no room.
    pub(super) fn is_full(&mut self) {
        let enough = u64::try_from(QUEUE_BYTES_MAX).unwrap_or(u64::MAX);
        if self.full.is_none_or(|(_, before)| self.taken.saturating_sub(before) >= enough) {
            self.full = Some((Instant::now(), self.taken));
        }
    }

    /// For how long it has taken less than a queue's worth, though that was waited for.
    pub(super) fn slow_for(&self) -> Duration {
        self.full.map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }
}

impl Switch<'_> {
    /// Whether requests for which an upstream has no room are refused instead of waiting.
    pub(super) fn is_slow(&self, at: At) -> bool {
        let after = self.config.timeouts.opening.checked_div(2).unwrap_or(REFUSED_AFTER).min(REFUSED_AFTER);
        self.upstreams.get(at).is_some_and(|upstream| upstream.slow_for() >= after)
    }

    /// Gives up an upstream that the client, which waits for it, has waited for long enough; whether it has.
    pub(super) fn give_up_slow(&mut self, at: At) -> Result<bool, Close> {
        let Some(upstream) = self.upstreams.get(at) else { return Ok(false) };
        if upstream.slow_for() < self.config.timeouts.opening {
            return Ok(false);
        }
        let (backend, client) = (upstream.backend().name(), self.record.client());
        tracing::warn!(%backend, %client, "a backend takes too little of what its client sends and is given up");
        self.lose(at)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_queues_worth_is_progress_and_only_where_it_is_waited_for() {
        let second = Duration::from_secs(1);
        let mut intake = Intake::default();
        intake.took(10);
        tokio::time::advance(second).await;
        assert_eq!(intake.slow_for(), Duration::ZERO, "nobody waits");
        intake.is_full();
        for round in 1..5 {
            tokio::time::advance(second).await;
            intake.took(QUEUE_BYTES_MAX / 4 - 1);
            intake.is_full();
            assert_eq!(intake.slow_for(), second * round, "it has moved, but not enough");
        }
        intake.took(4);
        assert_eq!(intake.slow_for(), second * 4);
        intake.is_full();
        assert_eq!(intake.slow_for(), Duration::ZERO);
        tokio::time::advance(second).await;
        intake.is_free();
        assert_eq!(intake.slow_for(), Duration::ZERO);
    }
}
