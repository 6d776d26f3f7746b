//! How far a backend that came up has warmed up. Pure.
//!
//! Shares are compared, never taken alone: a fleet that came up as one is as good as warm from its first moment.

use std::time::Duration;

/// Percent of its share that a backend takes when it has warmed up.
pub const WARM: u32 = 100;

/// What it takes in its first moment: not nothing, so that what comes is what warms it.
pub const COLD: u32 = 10;

/// Percent of its share that a backend takes which came up `since` ago (`None` = it was always there), if warming up
/// takes `slow_start`.
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
