//! Slow start: the part of its share that a backend takes some time after it came up. Pure.
//!
//! Shares are only compared with each other: backends that came up together share as if there were no slow start.

use std::time::Duration;

/// Percent of its share that a backend takes after its slow start.
pub const WARM: u32 = 100;

/// Percent it takes at first: not zero, since a backend warms up by its sessions.
pub const COLD: u32 = 10;

/// Percent of its share that a backend takes which came up `since` ago (`None` = it was always there), with this
/// `slow_start`.
pub fn ramp(since: Option<Duration>, slow_start: Option<Duration>) -> u32 {
    let (Some(since), Some(slow_start)) = (since, slow_start) else { return WARM };
    let percent = since.as_millis().saturating_mul(u128::from(WARM)).checked_div(slow_start.as_millis());
    let percent = percent.and_then(|percent| u32::try_from(percent).ok()).unwrap_or(WARM);
    percent.clamp(COLD, WARM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmth_grows_with_time_from_a_little_to_all() {
        let seconds = Duration::from_secs;
        let at = |since| ramp(Some(since), Some(seconds(30)));
        let row = [0, 2, 6, 15, 29, 30, 31, 100_000_000_000].map(|since| at(seconds(since)));
        assert_eq!(row, [COLD, COLD, 20, 50, 96, WARM, WARM, WARM]);
        assert_eq!(ramp(None, Some(seconds(30))), WARM);
        assert_eq!(ramp(Some(seconds(0)), None), WARM);
    }
}
