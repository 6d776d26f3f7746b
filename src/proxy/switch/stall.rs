//! Backends that stop: in the middle of a frame, or taking nothing any more.
//!
//! Both hold up a client's other sessions, so both are tolerated for `timeouts.opening`, or for `health.timeout` if
//! probes say that the backend is down. Then the upstream is given up. So it is if it moves, but so slowly that the others wait
//! too long for the end of one frame to the client. Of backends that take too slowly, see `slow`.

use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::Switch;
use super::in_flight::At;
use crate::close::Close;
use crate::fleet::Health;

/// How long a backend may take nothing before requests that find no room are refused instead of waiting.
const REFUSED_AFTER: Duration = Duration::from_secs(1);
/// How often stalls are looked at, at least.
const LOOKED_AT: Duration = Duration::from_millis(500);

/// For how many times `timeouts.opening` others may wait for one frame in all.
const WAITED_FOR_MAX: u32 = 3;

/// The upstream whose frame others wait for, and for how long they have. Time passes only while it is to blame. What keeps
/// others waiting is one of these, so it cannot be without a time to end.
#[derive(Debug)]
pub(super) struct Delay {
    at: At,
    /// Until it was last to blame.
    before: Duration,
    /// Since when it is.
    since: Option<Instant>,
    /// Since when it is while probes say that its backend is down.
    down: Option<Instant>,
}

impl Delay {
    /// None so far.
    pub(super) fn by(at: At) -> Self {
        Self { at, before: Duration::ZERO, since: None, down: None }
    }

    pub(super) fn at(&self) -> At {
        self.at
    }

    /// Whether the upstream is to blame from now on.
    pub(super) fn blame(&mut self, is: bool) {
        if !is {
            self.before = self.total();
            (self.since, self.down) = (None, None);
        } else if self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    fn total(&self) -> Duration {
        self.before.saturating_add(self.since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Whether it has gone on for too long: for `in_all`, or `while_down` without a pause.
    fn is_over(&mut self, is_down: bool, in_all: Duration, while_down: Duration) -> bool {
        self.down = self.since.filter(|_| is_down).and(self.down.or_else(|| Some(Instant::now())));
        self.total() >= in_all || self.down.is_some_and(|since| since.elapsed() >= while_down)
    }
}

/// Since when an upstream has not moved.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// In the middle of a frame, the last byte came then.
    read: Option<Instant>,
    /// With bytes to be written, the last was taken then.
    wrote: Option<Instant>,
}

impl Pace {
    /// After reading: whether something came, and whether a frame is not whole.
    pub(super) fn read(&mut self, moved: bool, is_midway: bool) {
        note(&mut self.read, moved, is_midway);
    }

    /// After writing: whether something was taken, and whether all was.
    pub(super) fn wrote(&mut self, moved: bool, all: bool) {
        note(&mut self.wrote, moved, !all);
    }

    /// Whether it takes nothing for long enough that nobody should wait for room.
    pub(super) fn is_stuck(&self) -> bool {
        self.wrote.is_some_and(|since| since.elapsed() >= REFUSED_AFTER)
    }

    /// Whether nothing is to come or to be taken.
    pub(super) fn is_even(&self) -> bool {
        self.read.is_none() && self.wrote.is_none()
    }

    /// Whether in the middle of a frame nothing has come for so long.
    pub(super) fn has_not_read(&self, patience: Duration) -> bool {
        self.read.is_some_and(|since| since.elapsed() >= patience)
    }

    /// Whether of what is queued nothing was taken for so long.
    pub(super) fn has_not_written(&self, patience: Duration) -> bool {
        self.wrote.is_some_and(|since| since.elapsed() >= patience)
    }
}

fn note(since: &mut Option<Instant>, moved: bool, waits: bool) {
    match (waits, *since) {
        (false, None) | (true, Some(_)) if !moved => {}
        (false, _) => *since = None,
        (true, _) => *since = Some(Instant::now()),
    }
}

impl Switch<'_> {
    /// Has an upstream looked at in a while, if it may be stalling.
    pub(super) fn watch_pace(&mut self, at: At) {
        if self.upstreams.get(at).is_some_and(|upstream| upstream.may_stall()) {
            let often = LOOKED_AT.min(self.config.timeouts.opening.checked_div(10).unwrap_or(LOOKED_AT));
            // A timer runs only once it has been polled.
            self.barred |= self.upstreams.watch_stalls(often);
        }
    }

    /// Gives up the upstreams that have stalled for too long; whether there was anything to look at.
    pub(super) fn poll_stalls(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        if self.upstreams.poll_stalls(cx).is_pending() {
            return Ok(false);
        }
        let is_full = self.client.is_full();
        let unread: Vec<At> = self.upstreams.numbers().filter(|at| self.share_of(*at) == 0).collect();
        let (opening, while_down) = (self.config.timeouts.opening, self.config.health.timeout);
        let in_all = opening.saturating_mul(WAITED_FOR_MAX);
        let mut lost = Vec::new();
        for (at, upstream) in self.upstreams.iter_mut() {
            // One that is not read because others come first is not to blame.
            if is_full || unread.contains(&at) || self.client.hears_another(at) {
                upstream.note_read(true);
            }
            let is_down = upstream.backend().standing().borrow().health == Health::Down;
            let patience = if is_down { opening.min(while_down) } else { opening };
            let delay = self.client.delay_by(at);
            let is_slow = delay.is_some_and(|delay| delay.is_over(is_down, in_all, while_down));
            if is_slow || upstream.has_stalled(patience) {
                lost.push((at, is_down, is_slow));
            }
        }
        for (at, is_down, is_slow) in lost {
            if let Some(upstream) = self.upstreams.get(at) {
                let (backend, client) = (upstream.backend().name(), self.record.client());
                tracing::warn!(%backend, %client, is_down, is_slow, "a backend has stalled and is given up");
            }
            self.lose(at)?;
        }
        let ats: Vec<At> = self.upstreams.numbers().collect();
        for at in ats {
            self.watch_pace(at);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn time_passes_only_while_the_upstream_is_to_blame() {
        let mut delay = Delay::by(1);
        let mut total = Duration::ZERO;
        for (is, seconds) in [(false, 9), (true, 1), (true, 1), (false, 60), (false, 5), (true, 2)] {
            delay.blame(is);
            advance(SECOND * seconds).await;
            if is {
                total += SECOND * seconds;
            }
            assert_eq!(delay.total(), total);
            assert!(!delay.is_over(false, total + SECOND, Duration::ZERO));
            assert!(delay.is_over(false, total, Duration::ZERO));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_is_down_has_less_time_which_begins_anew_after_a_pause() {
        let mut delay = Delay::by(1);
        let mut is_over = |is, is_down| {
            delay.blame(is);
            delay.is_over(is_down, SECOND * 1000, SECOND * 2)
        };
        for (is, is_down) in [(true, true), (false, true), (true, true), (true, false), (true, true)] {
            assert!(!is_over(is, is_down));
            advance(SECOND).await;
        }
        assert!(!is_over(true, true));
        advance(SECOND).await;
        assert!(is_over(true, true));
    }
}
